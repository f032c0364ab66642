"""What rows, matrices and notes say of records that are not all alike."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from test_report import record

from lmccheck.report.escape import escaped
from lmccheck.report.failure import reproduce_command
from lmccheck.report.formats import Run, shown
from lmccheck.report.formats.json import json as to_json
from lmccheck.report.formats.markdown import markdown
from lmccheck.report.matrix import draw, matrices
from lmccheck.report.notes import notes, unreported
from lmccheck.report.table import fold, table
from lmccheck.report.write import write_reports
from lmccheck.result import Result


def cell(text: str, row: int, column: str) -> str:
    """Return a cell of a github table."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]
    return lines[row + 2][lines[0].index(column)]


def test_a_column_stays_where_one_row_says_something() -> None:
    """The others have an empty cell in it."""
    text = table([record("a", naive=0.5), record("b")], "github")
    assert (cell(text, 0, "naive"), cell(text, 1, "naive")) == ("0.5", "")


def test_a_warning_is_marked_where_it_keeps_something_from_failing() -> None:
    """An error fails the run whatever the severity, and a pass needs no excuse."""
    rows = [record(name, verdict, severity="warn") for name, verdict in (("a", "fail"), ("b", "error"), ("c", "pass"))]
    rows.append(record("d", "inconclusive", severity="warn"))
    text = table(rows, "github")
    assert [cell(text, k, "verdict") for k in range(4)] == ["fail (warn)", "error", "inconclusive (warn)", "pass"]


def test_numbers_have_four_digits() -> None:
    """As many as a reader needs to tell a value from its limit."""
    text = table([record("a", value=0.0500049, limit=0.0499951)], "github")
    assert (cell(text, 0, "value"), cell(text, 0, "limit")) == ("0.05", "0.05")
    text = table([record("a", value=0.05004, limit=0.04996)], "github")
    assert (cell(text, 0, "value"), cell(text, 0, "limit")) == ("0.05004", "0.04996")


def test_a_name_that_fits_is_not_broken() -> None:
    """Of exactly the width, and one letter more."""
    assert fold("abcd", 4) == ["abcd"]
    assert fold("abcde", 4) == ["abcd", "e"]
    assert fold("a-bcd", 4) == ["a-", "bcd"]


def test_a_remark_of_many_checks_names_two_and_counts_the_rest() -> None:
    """Once, however many have it."""
    for count, said in ((2, ""), (3, " and 1 more"), (5, " and 3 more")):
        rows = [record(name, notes=["the same"]) for name in "abcde"[:count]]
        first = "a::linear_connectivity, b::linear_connectivity"
        assert notes(rows)[-1] == f"{first}{said}: the same"


def test_texts_that_pytest_does_not_show_are_those_that_do_not_block() -> None:
    """Where nothing fails, what would have failed is said all the same."""
    rows = [record("a", "fail", blocking=True, text="x"), record("b", "fail", blocking=False, text="y"), record("c")]
    assert unreported(rows) == ["lmc.toml::b::linear_connectivity\ny"]


def test_what_is_not_settled_says_why() -> None:
    """An inconclusive result has its lines as a failure has."""
    result = Result("p", "inconclusive", 0.1, 0.2, "nats", details={"failure": ["not settled", "of 8 masks"]})
    assert record().measured(result).failure == ["not settled", "of 8 masks"]
    assert record().measured(Result("p", "pass", 0.1, 0.2, "nats", details={"failure": ["old"]})).failure == []


def test_a_set_that_was_moved_is_drawn_twice_and_what_is_too_high_is_marked() -> None:
    """Aligned with its marks, and as given."""
    aligned, naive = [[0.0, 0.5], [0.5, 0.0]], [[0.0, 0.75], [0.75, 0.0]]
    found = {"names": ["a", "b"], "aligned": aligned, "naive": naive, "above": [["b", "a"]], "method": "m"}
    (first, drawn), (second, plain) = matrices([record("set", matrix=found)])
    assert first == "set::linear_connectivity, barriers in nats, aligned (m); * above the limit"
    assert second == "set::linear_connectivity, barriers in nats, unaligned"
    assert "0.5*" in drawn
    assert "0.75" in plain
    assert "*" not in plain


def test_a_matrix_in_parts_has_all_its_columns() -> None:
    """Five models, two or three columns at a time: every number is somewhere."""
    names = [f"model-{k}" for k in range(5)]
    matrix = [[0.0 if i == j else float(f"0.{i + 1}{j + 1}") for j in range(5)] for i in range(5)]
    drawn = draw(names, matrix, width=30)
    assert max(map(len, drawn.splitlines())) <= 30
    assert all(f"0.{i + 1}{j + 1}" in drawn for i in range(5) for j in range(5) if i != j)


def test_a_report_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """Written twice it is what it is written once; the page of a job keeps what others wrote."""
    paths, page = {"md": tmp_path / "r.md", "json": tmp_path / "r.json"}, tmp_path / "page"
    page.write_text("others\n")
    write_reports(paths, [record()], Run(), summary=page)
    once = {name: path.read_text() for name, path in paths.items()}
    write_reports(paths, [record()], Run(), summary=page)
    assert {name: path.read_text() for name, path in paths.items()} == once
    assert page.read_text() == "others\n" + 2 * (once["md"] + "\n")


def test_pairs_and_sets_are_described_apart() -> None:
    """Each among its own kind, by name and manifest; the manifest's own item among neither."""
    rows = [record("p"), record("s", kind="set"), record("", check="manifest"), record("p", manifest="other.lmc.toml")]
    found = json.loads(to_json(rows, Run()))
    names = {kind: [(entry["manifest"], entry["name"]) for entry in found[kind]] for kind in ("pairs", "sets")}
    assert names == {"pairs": [("lmc.toml", "p"), ("other.lmc.toml", "p")], "sets": [("lmc.toml", "s")]}


def test_a_manifest_is_shown_where_something_is_wrong_with_it() -> None:
    """Its own item has a row only then."""
    wrong, sound = (record("", verdict, check="manifest") for verdict in ("error", "pass"))
    one = record("one")
    assert shown([wrong, sound, one]) == [wrong, one]


def test_a_manifest_that_cannot_be_read_is_in_the_page() -> None:
    """Its message in full, with rows and without."""
    errors = [{"id": "lmc.toml", "message": "lmc.toml: pair.one.b: missing"}]
    for rows in ([], [record()]):
        assert "```\nlmc.toml: pair.one.b: missing\n```" in markdown(rows, Run(errors=errors))


def test_flags_of_a_command_are_quoted() -> None:
    """As the path is: a shell gives them back as they were."""
    node, flags = "a b/lmc.toml::p::c", ["--lmc-device=cuda:1", "--odd=it's $HOME"]
    assert shlex.split(reproduce_command(node, flags)) == ["pytest", node, *flags]


@pytest.mark.parametrize("fmt", ["simple", "github", "jira"])
def test_a_name_draws_no_line(fmt: str) -> None:
    """A newline in a name is two characters in every format, so that no name adds a row to a table."""
    told = r"good\\nbad  pass" if fmt == "github" else r"good\nbad  pass"
    assert escaped("good\nbad  pass", fmt).splitlines() == [told]


def test_what_is_compared_is_not_said_to_be_searched_for() -> None:
    """A failure of files names the tensor below 'where', and no budget within which nothing better was found."""
    row = record("out", where="in=w", worst_loss=None, details={}, verdict="fail", of_losses=False)
    lines = table([row], width=78).splitlines()
    assert "where" in lines[0]
    assert "worst loss" not in lines[0]
    assert [line for line in notes([row]) if "budget" in line] == []
    assert notes([row])[0].startswith("fail of what is compared")
