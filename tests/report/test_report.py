"""Reports are functions from records to text."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from tabulate import tabulate_formats

from lmccheck.errors import LmcError
from lmccheck.finding import End, Failure, Finding, Seen, Where
from lmccheck.properties.judge import judge
from lmccheck.report.failure import failure_text, reproduce_command
from lmccheck.report.formats import FORMATS, Run, formats
from lmccheck.report.formats.json import json as to_json
from lmccheck.report.formats.markdown import fenced, markdown
from lmccheck.report.matrix import draw, matrices
from lmccheck.report.notes import notes
from lmccheck.report.record import CheckRecord, finite, ordered, plain
from lmccheck.report.table import fold, table
from lmccheck.report.write import write_reports
from lmccheck.result import Result


def record(name="one", verdict="pass", **facts):
    blank = CheckRecord(
        id=f"lmc.toml::{name}::linear_connectivity",
        manifest="lmc.toml",
        manifest_sha256="00",
        pair=name,
        check="linear_connectivity",
        property="linear_connectivity",
        severity="fail",
        verdict=verdict,
        blocking=verdict != "pass",
        value=0.0123456,
        limit=0.05,
        unit="nats",
        seconds=1.23456,
    )
    return CheckRecord.from_dict({**blank.to_dict(), **facts})


def document(*records, errors=()):
    text = to_json(list(records), Run(errors, version="0", created="now", environment={"device": "auto"}))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_record_survives_the_journey():
    """What an xdist worker sends is what the controller reads."""
    sent = record(details={"losses": [0.1, 0.2]}, notes=["x"])
    assert CheckRecord.from_dict(json.loads(json.dumps(sent.to_dict()))) == sent


def test_a_record_takes_over_what_a_result_says():
    """Value, limit, unit, interval and counts as they are; naive, where, notes and witness from the details."""
    result = Result(
        "linear_connectivity",
        "fail",
        0.3,
        0.1,
        "nats",
        interval=(0.2, 0.4),
        evaluations=7,
        seconds=2.0,
        details={"barrier_naive": 0.9, "worst_t": 0.25, "notes": ["n"], "alignment": {"method": "m"}, "t": (0, 1)},
    )
    row = record().measured(result)
    assert (row.verdict, row.value, row.limit, row.interval, row.naive) == ("fail", 0.3, 0.1, [0.2, 0.4], 0.9)
    assert (row.where, row.notes, row.evaluations) == ("t=0.25", ["n"], 7)
    assert row.witness == {"worst_t": 0.25, "alignment": {"method": "m"}}
    assert row.details["t"] == [0, 1]
    facts = dict(row.properties())
    assert (facts["lmc.ci_low"], facts["lmc.ci_high"], facts["lmc.worst_t"]) == (0.2, 0.4, 0.25)
    assert all(isinstance(fact, (str, int, float)) for fact in facts.values())


def test_rows_that_did_not_pass_come_first_then_by_id():
    """fail, inconclusive and error alike."""
    rows = [record("b"), record("d", "error"), record("a"), record("c", "fail"), record("e", "inconclusive")]
    assert [row.pair for row in ordered(rows)] == ["c", "d", "e", "a", "b"]


def test_the_table_shows_four_digits_and_no_empty_column():
    """0.0123456 reads 0.01235; a column in which nothing is said is left out."""
    lines = table([record()]).splitlines()
    assert lines[0].split() == ["pair", "check", "verdict", "value", "limit", "unit", "seconds"]
    assert lines[2].split() == ["one", "linear_connectivity", "pass", "0.01235", "0.05", "nats", "1.23"]


def test_names_that_look_like_numbers_stay_names():
    """A pair called 1e3 is not turned into 1000."""
    assert table([record("1e3")]).splitlines()[2].split()[0] == "1e3"


@pytest.mark.parametrize("fmt", tabulate_formats)
def test_every_format_draws_at_every_width(fmt):
    """No format of tabulate fails on the product's rows."""
    rows = [record("mlp-seed0-seed1", naive=1.0, where="t=0.5"), record("x", "error", value=None, limit=None, unit="")]
    for width in (None, 40, 80, 120):
        assert "mlp" in table(rows, fmt, width)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["x", "mlp-seed0-seed1", "transformer-half0-half1-of-the-longest-name-seen-so-far"])
def test_the_table_fits_the_terminal(name, width):
    """Long names are folded before anything is cut, and nothing is lost."""
    row = record(name, "fail", severity="warn", naive=0.7654321, where="t=0.5104")
    text = table([row], "simple", width)
    assert max(map(len, text.splitlines())) <= width
    assert name in "".join(line.split("  ")[0] for line in text.splitlines()[2:])


ENDS = [{"name": "a", "loss": 0.0726999, "error": 0.018}, {"name": "b", "loss": 0.5, "error": None}]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
@pytest.mark.parametrize("unit", ["nats", "squared error"])
def test_every_row_shows_the_losses_it_is_about(width, verdict, unit):
    """At any width: measured and limit with their unit, both endpoints, the worst point's own loss and where it is."""
    where = "t=0.4792" if verdict == "pass" else "seg=3a layer=hidden"
    facts = {"naive": 1.5, "error_barrier": 0.0035, "unit": unit, "endpoints": ENDS, "worst_loss": 0.31, "where": where}
    text = table([record("mlp-seed0-seed1", verdict, **facts)], "simple", width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("0.01235", "limit 0.05", unit, "a 0.0727", "b 0.5", "0.31", *where.split(), verdict):
        assert part in text


def test_a_narrow_table_is_read_line_by_line():
    """Pair over check, value over limit, a over b, the worst loss over its place; seconds go first."""
    row = record(endpoints=ENDS, worst_loss=0.31, where="t=0.5")
    assert [line.rstrip() for line in table([row], width=79).splitlines()] == [
        "pair / check           verdict    value / limit    endpoints    worst loss",
        "---------------------  ---------  ---------------  -----------  ------------",
        "one                    pass       0.01235 nats     a 0.0727     0.31",
        "  linear_connectivity             limit 0.05       b 0.5        t=0.5",
    ]


@pytest.mark.parametrize("width", [72, 80, 100, 120])
@pytest.mark.parametrize("known", ["exact", "inner: 'model.embed_tokens' and 2 more left whole", "g" * 70])
def test_every_row_shows_how_its_value_is_known(width, known):
    """Below the names, on lines no longer than these where it is words; the table fits."""
    row = record("mlp-seed0-seed1", endpoints=ENDS, worst_loss=0.31, where="t=0.5", naive=1.5, known=known)
    text = table([row], "simple", width)
    assert max(map(len, text.splitlines())) <= width
    head = [line.split("  ")[0].strip() or line[2:].split("  ")[0].strip() for line in text.splitlines()[2:]]
    assert "".join(known.split()) in "".join("".join(head).split())


def test_every_report_carries_how_a_value_is_known():
    """JSON a key, JUnit a fact, Markdown a cell, details and the result in words; nothing where nobody says."""
    result = judge("linear_connectivity", Finding(0.01, 0.05, "nats", known="sampled at 33 points"), 0.0)
    row = record().measured(result)
    assert document(row)["checks"][0]["known"] == result.details["known"] == "sampled at 33 points"
    assert dict(row.properties())["lmc.known"] == "sampled at 33 points"
    assert "| sampled at 33 points " in markdown([row], Run())
    assert "known: sampled at 33 points" in repr(result)
    assert document(record())["checks"][0]["known"] is None
    assert "lmc.known" not in dict(record().properties())


@pytest.mark.parametrize(
    ("barrier", "shown"), [(0.0035, "+0.35 pp"), (1.0, "+100 pp"), (-0.002, "-0.2 pp"), (0.0, "+0 pp")]
)
def test_errors_are_in_percentage_points(barrier, shown):
    """A barrier of 0.0035 in 0-1 error is a third of a point."""
    lines = table([record(error_barrier=barrier, seconds=None)]).splitlines()
    assert lines[0].endswith("0-1 error")
    assert lines[2].split("  ")[-1].strip() == shown


def test_a_set_shows_its_best_and_its_worst_model():
    """By their losses, whatever the order; a loss that is no number is the worst."""
    ends = [{"name": name, "loss": loss, "error": None} for name, loss in (("x", 0.3), ("y", 0.1), ("z", 0.2))]
    row = record(kind="set", endpoints=ends)
    assert "best 0.1, worst 0.3" in table([row])
    assert {"lmc.loss_best": 0.1, "lmc.loss_worst": 0.3}.items() <= dict(row.properties()).items()
    assert record(endpoints=[*ends, {"name": "n", "loss": float("nan"), "error": None}]).ends()["worst"]["name"] == "n"


def test_every_report_carries_the_endpoints():
    """JSON a list of them beside the worst loss, JUnit a flat fact each, Markdown a cell."""
    ends = End("a", 0.5, 0.25), End("b", 2.0)
    found = Finding(0.1, 0.05, "nats", endpoints=ends, worst_loss=1.35, above="chord")
    row = record().measured(judge("linear_connectivity", found, 0.0))
    entry = document(row)["checks"][0]
    assert entry["endpoints"] == [
        {"name": "a", "loss": 0.5, "error": 0.25, "token_loss": None},
        {"name": "b", "loss": 2.0, "error": None, "token_loss": None},
    ]
    assert (entry["worst_loss"], entry["next"]) == (1.35, [])
    facts = dict(row.properties())
    assert {"lmc.loss_a": 0.5, "lmc.error_a": 0.25, "lmc.loss_b": 2.0, "lmc.worst_loss": 1.35}.items() <= facts.items()
    assert "lmc.error_b" not in facts
    assert "| a 0.5, b 2 " in markdown([row], Run())
    assert any("the chord between them hides up to 1.5 nats" in line for line in notes([row]))


def test_fold_breaks_after_separators_and_only_then_within_words():
    """What is folded is what was given."""
    assert fold("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert "".join(fold("resnet20-seed0_vs.resnet20", 9)) == "resnet20-seed0_vs.resnet20"


def test_a_bar_in_a_cell_opens_no_column():
    """Pipe tables escape it."""
    text = markdown([record(unit="a|b")], Run())
    assert "a\\|b" in text
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_markdown_shows_what_did_not_pass_in_full():
    """A text that holds a fence is fenced with a longer one."""
    text = markdown([record("bad", "fail", text="line 1\n```\nline 3")], Run(report_only=True))
    assert "REPORT ONLY" in text
    assert "````\nline 1\n```\nline 3\n````" in text
    assert fenced("plain") == "```\nplain\n```"


def test_json_is_strict_whatever_was_measured():
    """NaN and the infinities become words, in values and deep inside details."""
    row = record(
        value=float("nan"), limit=float("inf"), details={"losses": [1.0, float("-inf")], "deep": {"x": float("nan")}}
    )
    entry = document(row)["checks"][0]
    assert (entry["value"], entry["limit"]) == ("nan", "inf")
    assert entry["details"] == {"losses": [1.0, "-inf"], "deep": {"x": "nan"}}


def test_json_has_the_manifests_own_items():
    """A manifest whose files are at fault is a check that failed."""
    row = dataclasses.replace(record("", "error"), id="lmc.toml::manifest", check="manifest", text="no file")
    assert [entry["id"] for entry in document(row, record())["checks"]] == ["lmc.toml::manifest", record().id]


def test_json_describes_each_pair_once():
    """By whichever of its checks could load it; manifests are listed once each."""
    described = {"files": {"a": {"sha256": "1"}}, "model": "m:f"}
    rows = [record("one", pair_description=described), record("two"), record("", check="manifest")]
    found = document(*rows, errors=[{"id": "x", "message": "y"}])
    assert [(pair["name"], pair.get("model")) for pair in found["pairs"]] == [("one", "m:f"), ("two", None)]
    assert found["manifests"] == [{"path": "lmc.toml", "sha256": "00"}]
    assert found["errors"] == [{"id": "x", "message": "y"}]
    assert "pair_description" not in found["checks"][0]


def test_json_states_the_device_that_was_used():
    """What the measuring process says wins over what was asked for."""
    assert document(record(environment={"device": "cuda:0", "torch": "2"}))["environment"] == {
        "device": "cuda:0",
        "torch": "2",
    }


def test_the_property_words_its_failure():
    """Its five lines as they are, then the command."""
    five = ["what", "measured", "where", "worst", "endpoints"]
    row = record(reproduce="pytest x").measured(Result("p", "fail", 0.1, 0.05, "nats", details={"failure": five}))
    assert failure_text(row).splitlines() == [*five, "reproduce: pytest x"]


def test_a_property_that_words_nothing_is_described_by_its_numbers():
    """So that a new property has a failure text from its first day."""
    ends = End("a", 0.1), End("b", 0.2)
    found = Finding(0.0123456, 0.01, "nats", endpoints=ends, naive=0.9, where=Where(t=0.5))
    row = record(reproduce="pytest x").measured(judge("linear_connectivity", found, 0.0))
    assert failure_text(row).splitlines() == [
        "linear_connectivity: fail for one",
        "measured 0.01235 nats, limit 0.01 nats",
        "worst at t=0.5",
        "without alignment: 0.9 nats",
        "endpoint losses: a 0.1, b 0.2 nats",
        "reproduce: pytest x",
    ]


def test_the_command_is_quoted_for_a_shell():
    """Spaces, quotes and dollar signs in a path reach pytest as they are."""
    import shlex

    node = "it's $HOME/lmc.toml::a::b"
    assert shlex.split(reproduce_command(node, ["--lmc-seed=1"])) == ["pytest", node, "--lmc-seed=1"]


def test_notes_say_what_each_verdict_means():
    """One line per verdict that occurs, none for others."""
    assert [line.split(":")[0] for line in notes([record(), record("x", "error")])] == ["pass", "error"]


def test_plain_data_from_what_properties_return():
    """Tuples, arrays and unknown objects become lists, lists and text."""

    class Array:
        def tolist(self):
            return [1.0, 2.0]

    class Version(str):
        pass

    assert type(plain(Version("2.13"))) is str  # xdist sends exact types only
    assert plain({1: (1, Array()), "p": object}) == {"1": [1, [1.0, 2.0]], "p": "<class 'object'>"}
    assert finite([float("inf"), 1.0]) == ["inf", 1.0]


def test_a_matrix_too_wide_has_numbered_columns():
    """Rows say which number is whose; nothing is above, below or on the diagonal that is not measured."""
    names = [f"resnet20-seed{k}" for k in range(3)]
    matrix = [[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.3, 0.0]]
    wide = draw(names, matrix, width=80).splitlines()
    assert wide[0].split() == names
    narrow = draw(names, matrix, width=40, above={frozenset(names[1:])}).splitlines()
    assert narrow[0].split() == ["1", "2", "3"]
    assert [line.split() for line in narrow[2:]] == [
        ["1", names[0], "0.1", "0.2"],
        ["2", names[1], "0.1", "0.3*"],
        ["3", names[2], "0.2", "0.3*"],
    ]
    assert max(map(len, narrow)) <= 40
    whole = draw(names, matrix, width=40).splitlines()
    parts = draw(names, matrix, width=max(map(len, whole)) - 1).split("\n\n")
    assert [part.split()[: 2 - k] for k, part in enumerate(parts)] == [["1", "2"], ["3"]]
    assert all(len(part.splitlines()) == 5 for part in parts)
    assert "0.3" in draw(names, matrix, width=1)


def test_a_set_that_was_not_moved_is_drawn_once():
    """Aligned and unaligned are the same matrix; a check that measured none has none."""
    matrix = [[0.0, 0.1], [0.1, 0.0]]
    found = {"names": ["a|x", "b"], "aligned": matrix, "naive": matrix}
    ((title, text),) = matrices([record(), record("set", matrix=found)], "github")
    assert title == "set::linear_connectivity, barriers in nats, aligned, which moved nothing"
    assert "a\\|x" in text


def test_where_a_set_is_worst_stands_on_lines_of_its_own():
    """So that two long names fit a narrow terminal, and are not cut."""
    row = record("digits", details={}, where="transformer-seed0, transformer-half1", naive=0.5)
    lines = table([row], width=78).splitlines()
    assert max(map(len, lines)) <= 78
    at = lines[0].index("where")
    assert "".join(line[at:].split("  ")[0].strip() for line in lines[2:]) == "transformer-seed0,transformer-half1"


def test_a_new_format_is_declared_and_becomes_an_option():
    """Files come in the order in which they are written: the one that states the exit status last."""
    assert [each.name for each in formats()] == ["md", "attest", "html", "json"]
    assert FORMATS.get("terminal").render([record()], Run()).startswith("pair ")
    assert FORMATS.get("terminal").render([], Run()) == ""
    with pytest.raises(LmcError, match=r"report format 'jsn': unknown \(did you mean 'json'\?\); expected one of"):
        FORMATS.get("jsn")


def test_reports_that_cannot_be_written_turn_the_status_of_those_that_can(tmp_path):
    """Markdown goes first; JSON says 1 where it could not be written, and the page of a CI job gets its own copy."""
    (tmp_path / "file").write_text("")
    paths = {"json": tmp_path / "a/r.json", "md": tmp_path / "file/r.md"}
    outcomes = write_reports(paths, [record()], Run(), summary=tmp_path / "page")
    assert [written for _, written in outcomes] == [True, False, True]
    assert json.loads(paths["json"].read_text())["exit_status"] == 1
    assert (tmp_path / "page").read_text() == markdown([record()], Run()) + "\n"


def test_a_failure_is_rendered_from_its_parts():
    """Worst and smallest are found among all that was seen, each against its own bound; no number is above all."""
    seen = [Seen(0.2, "here"), Seen(float("nan"), "there"), Seen(0.3, "beyond", bound=0.4), Seen(0.05, "below")]
    failure = Failure("p", "too high", "height", "there", "data x (3 samples)", seen, "places", ["and so on"], "; c 3")
    ends = End("a", 1.0, 0.25), End("b", 2.0, 0.5)
    found = Finding(float("nan"), "5%", "nats", endpoints=ends, failure=failure)
    result = judge("p", found, 1.0)
    assert (result.verdict, result.limit) == ("fail", 0.1)
    assert result.details["failure"] == [
        "p: too high",
        "height nan nats, limit 0.1 nats; and so on",
        "where: there, on data x (3 samples)",
        "worst nan there; smallest counterexample 0.2 here; 2 of 4 places above the limit",
        "endpoint losses: a 1, b 2 nats (0-1 error a 0.25, b 0.5); c 3",
    ]


@pytest.mark.parametrize(("limit", "verdict"), [(0.1, "pass"), ("10%", "pass"), (0.0999, "fail"), ("9.9%", "fail")])
def test_a_value_that_equals_its_limit_passes(limit, verdict):
    """A percentage is one of the worse endpoint's loss; a finding may name another reference, or its own verdict."""
    ends = End("a", 0.5), End("b", 1.0)
    assert Finding(0.1, limit, endpoints=ends).judged == verdict
    assert Finding(0.1, limit, endpoints=ends, verdict="inconclusive").judged == "inconclusive"
    assert Finding(0.1, "10%", endpoints=ends, reference=0.5).judged == "fail"


def test_a_result_made_by_hand_says_in_its_details_what_a_finding_does():
    """The same row either way."""
    ends = End("a", 0.1, 0.0), End("b", 0.2, 0.0)
    where = Where(side="b", layer="fc")
    found = Finding(0.3, 0.2, "nats", endpoints=ends, where=where, naive=0.4, notes=["n"], failure=["what", "where"])
    result = judge("linear_connectivity", found, 0.5)
    by_hand = dataclasses.replace(result, finding=None)
    assert record().measured(result) == record().measured(by_hand)
    assert record().measured(result).where == "b:fc"


HOSTILE = "\x1b[2J\x1b[31mPASSED\r\n::error::x ##[error]y | `c` <img src=x> ![i](http://e) [r]: h **b** $m$ \ud800 層"


def test_texts_of_others_are_shown_and_nothing_more():
    """Names, notes and errors cannot draw cells, code, tags, links or lines, nor command a terminal or a CI log."""
    row = record(
        "bad", "error", where=HOSTILE, text=f"tensor {HOSTILE}\nsecond line", notes=[HOSTILE], unit=HOSTILE,
        settings={HOSTILE: HOSTILE},
    )  # fmt: skip
    run = Run(errors=[{"id": HOSTILE, "message": HOSTILE}], report_only=True)
    sent = CheckRecord.from_dict(row.to_dict())  # as records reach every report
    for each in FORMATS:
        text = each.render([sent], run)
        text.encode()
        for line in text.split("\n"):
            assert line.isprintable(), (each.name, line)
            assert line.lstrip().startswith("::") <= (each.name == "github"), (each.name, line)
            assert "##[" not in line
        assert "層" in text
    text = markdown([sent], run)
    for line in text.split("```")[0].splitlines():
        assert not re.search(r"(?<!\\)(<img|\*\*b|`c|\$m|\]\(|\]:)", line), line
    cells = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in cells}) == 1
    json.loads(FORMATS.get("json").render([sent], run))
    assert all(str(fact).replace("\n", "").isprintable() for _, fact in row.properties())
