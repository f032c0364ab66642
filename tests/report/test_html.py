"""The page: what it says, in which order, that it holds nothing but itself, and that names are names."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pages import ENDS, MARKUP, RUN, SPIKE, Tree, every_kind, line, page, path, record

from lmccheck.report.formats import Run
from lmccheck.report.plots import drawings
from lmccheck.report.plots.svg import Scale
from lmccheck.report.record import NOT_MEASURED, CheckRecord


@pytest.fixture(scope="module")
def tree():
    return Tree(page(every_kind()))


def test_names_that_are_markup_are_shown_as_they_are(tree):
    """Of pairs, layers, classes, files, settings, in texts, attributes and drawings: no element is made of them."""
    assert not tree.all("script")
    assert not tree.all("img")
    assert not any(name.startswith("on") for _, attributes, _ in tree.elements for name in attributes)
    for tag in ("h3", "dd", "td", "text", "li", "pre", "desc"):
        assert any(MARKUP[:16] in text for _, text in tree.all(tag)), tag
    assert MARKUP in tree.all("h3")[0][1]
    assert not tree.open


def test_the_page_asks_nothing_of_anyone(tree):
    """No address but of its own parts, and its policy forbids all others."""
    links = [value for _, attributes, _ in tree.elements for key, value in attributes.items() if key in ("href", "src")]
    assert all(link.startswith(("#", "data:,")) for link in links)
    policy = next(a["content"] for a, _ in tree.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "url(" not in tree.all("style")[0][1]
    assert "@import" not in tree.all("style")[0][1]


def test_every_part_can_be_found_and_named_by_a_screen_reader(tree):
    """One main, headings in order, ids that are one each, every drawing an image with title and description."""
    ids = [attributes["id"] for _, attributes, _ in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = [
        part
        for _, attributes, _ in tree.elements
        for key, value in attributes.items()
        for part in (
            [value[1:]] if key == "href" and value[0] == "#" else value.split() if key == "aria-labelledby" else []
        )
    ]
    assert set(referred) <= set(ids)
    assert [len(tree.all(tag)) for tag in ("main", "h1", "nav", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag, _, _ in tree.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    plots = [attributes for attributes, _ in tree.all("svg") if attributes.get("class") == "plot"]
    assert len(plots) >= 10
    assert all(plot["role"] == "img" for plot in plots)
    assert len(tree.all("title")) == len(plots) + 1


def test_every_verdict_has_its_word_and_its_sign(tree):
    """Nothing is told by colour alone."""
    tags = {
        attributes["class"]: text for attributes, text in tree.all("span") if "tag" in (attributes.get("class") or "")
    }
    assert {key: tags[f"tag {key}"][0] for key in ("pass", "fail", "unsettled", "error", "unmeasured")} == {
        "pass": "✓", "fail": "✕", "unsettled": "?", "error": "!", "unmeasured": "–",
    }  # fmt: skip
    words = [text for attributes, text in tree.all("span") if "tag" in (attributes.get("class") or "")]
    assert words.count("✕ fail, warns only") == 2
    assert words.count("✕ fail") == 2 * sum(row.verdict == "fail" for row in every_kind()) - 2


def test_a_failure_answers_five_questions():
    """What broke, where, how badly, why, what next: each by its own text, the command ready to be taken."""
    answers = {
        "what": ["x: not connected"], "measured": ["barrier 0.5 nats, limit 0.1 nats"], "remarks": ["unaligned 0.9"],
        "where": ["t = 0.5"], "extremes": ["19 of 29"], "endpoints": ["a 0.1"], "why": ["fc1 carries it"],
    }  # fmt: skip
    tree = Tree(page([record(answers=answers, next=["align = 'best'"])]))
    said = dict(zip((text for _, text in tree.all("dt")), (text for _, text in tree.all("dd")), strict=False))
    assert said["What broke"] == "x: not connected"
    assert said["Where"] == "t = 0.5"
    assert said["How badly"] == "0.5 nats 5 times the limit barrier 0.5 nats, limit 0.1 nats19 of 29a 0.1"
    assert said["Why"] == "unaligned 0.9fc1 carries it"
    assert said["What next"].startswith("Try, in gates/lmc.toml, line 7:align = 'best'")
    assert "pytest 'gates/lmc.toml::one::linear_connectivity'" in [text for _, text in tree.all("pre")]


@pytest.mark.parametrize(
    ("verdicts", "exit_status", "headline", "gate"),
    [
        (["pass", "pass"], 0, "All 2 checks passed", "✓ The gate is green"),
        (["pass"], 0, "The check passed", "✓ The gate is green"),
        (["pass"], 1, "The check passed", "✕ The gate is red"),
        (["fail", "pass"], 1, "1 of 2 checks failed", "✕ The gate is red"),
        (["fail"], 0, "The check failed", "✕ The gate is red"),
        (["inconclusive"] * 2 + ["pass"], 1, "2 of 3 checks are inconclusive", "✕ The gate is red"),
        (["fail", "error", "pass"], 1, "2 of 3 checks did not pass", "✕ The gate is red"),
        ([NOT_MEASURED, "pass"], 1, "1 of 2 checks was not measured", "✕ The gate is red"),
        ([], 4, "No check ran", "✕ The gate is red"),
    ],
)
def test_what_was_decided_is_said_in_a_line(verdicts, exit_status, headline, gate):
    """A gate is green only where the run's status and every check are."""
    tree = Tree(
        page([record(str(k), verdict) for k, verdict in enumerate(verdicts)], replace(RUN, exit_status=exit_status))
    )
    assert tree.all("h1")[0][1] == headline
    assert gate in [text for _, text in tree.all("p")]


def test_what_only_warns_leaves_the_gate_green_and_what_has_not_finished_does_not():
    """Neither a killed run nor one that only reports says green, nor one that could not read a manifest."""
    warned = [record("x", "pass"), record("y", "fail", severity="warn", blocking=False)]
    text = page(warned, replace(RUN, exit_status=0))
    assert "The gate is green" in text
    assert "The limits hold on the data that was given, 1 of them warns only; other data may differ." in text
    assert "Do not merge" not in text
    for run in (
        replace(RUN, finished=False, exit_status=None),
        replace(RUN, report_only=True, exit_status=0),
        replace(RUN, exit_status=0, errors=[{"id": "b.lmc.toml", "message": "line 3: unknown key"}]),
    ):
        assert "The gate is green" not in page([record("x", "pass")], run)


def test_what_failed_comes_first_and_what_passed_is_folded():
    """In the order of all reports; a page on which all passed needs no list of it beside itself."""
    text = page([record("good", "pass"), record("bad")])
    assert text.index('id="check-1"') < text.index('<details class="check pass" id="check-2"')
    assert text.index(">bad ") < text.index(">good ")
    assert "<nav" not in page([record("good", "pass")], replace(RUN, exit_status=0))


def numbers(rows):
    return [[float(cell) for cell in row] for row in rows]


def test_the_table_of_a_line_has_its_numbers():
    """Point, loss, the chord between 0.1 and 0.3, what is above it; unaligned only where that differs."""
    losses = [0.1, 0.7, 0.3]
    (drawing,) = drawings(record(curve=line(losses, naive_losses=losses), place={"t": 0.5}), "x", 61)
    assert drawing.columns == ["t", "loss", "chord", "above it"]
    assert numbers(drawing.rows) == [[0, 0.1, 0.1, 0], [0.5, 0.7, 0.2, 0.5], [1, 0.3, 0.3, 0]]
    assert "0.7 at t = 0.5" in drawing.svg
    assert "limit: chord + 0.1" in drawing.svg
    assert "naive" not in drawing.svg


def test_a_long_line_is_thinned_and_keeps_its_worst_point():
    """Of 1001 points about 40 stand in the table, and in the picture those that matter; the spike is in both."""
    (drawing,) = drawings(record(curve=line(SPIKE), place={"t": 0.3}), "x", 40)
    assert len(drawing.rows) == 41
    assert f"{SPIKE[300]:.4g}" in [row[1] for row in drawing.rows]
    assert drawing.left_out.endswith("of 1001 rows are shown; the JSON report has all")
    (points,) = re.findall('<polyline points="([^"]+)" class="s0"', drawing.svg)
    heights = [float(point.split(",")[1]) for point in points.split()]
    scale = Scale.over([*SPIKE, 0.2, 0.4], 0.06)
    assert len(heights) <= 60
    assert min(heights) == pytest.approx(30 + 220 * (1 - scale.of(max(SPIKE))), abs=0.06)


def test_the_limit_of_a_path_is_above_the_worse_endpoint():
    """0.3 + 0.1, of endpoints 0.1 and 0.3; every segment has its row."""
    (drawing,) = drawings(record(curve=path(), endpoints=ENDS, place={"segment": "10b"}), "x", 61)
    assert "limit 0.4" in drawing.svg
    assert [row[0] for row in drawing.rows] == ["1a", "2b", "3c", "4d", "5a", "6b", "7c", "8d", "9a", "10b"]
    assert drawing.rows[9][2:5] == ["0.19", "0.21", "0.2"]


def test_draws_are_steps_that_rise_by_one_share_each():
    """Three draws of which one is infinite: the steps end at two thirds; those within the limit are counted."""
    curve = {
        "kind": "draws",
        "values": {"model": [0.05, 0.2, float("inf")]},
        "share": 0.5,
        "of": "mask",
        "attenuation": {},
    }
    (drawing,) = drawings(record(curve=curve, value=0.2), "x", 61)
    (points,) = re.findall('<polyline points="([^"]+)" class="s0"', drawing.svg)
    heights = sorted({float(point.split(",")[1]) for point in points.split()}, reverse=True)
    assert heights == [250, pytest.approx(250 - 220 / 3, abs=0.06), pytest.approx(250 - 440 / 3, abs=0.06)]
    assert "Within the limit of 0.1 nats are 1 of 3" in drawing.says


def test_bars_end_where_their_values_are():
    """On a scale from 0 to 0.4, 74 % of the width: 0.1 ends at a quarter of that; above the limit is marked."""
    said = {"of": "level", "what": "ε", "beside_what": "", "beside": {}}
    curve = {"kind": "bars", "names": ["fc1", "fc2"], "values": {"model": [0.4, 0.1]}, **said}
    (drawing,) = drawings(record(curve=curve, limit=0.2), "x", 61)
    widths = re.findall('<rect y="[0-9]+" width="([0-9.]+)%"[^>]*class="fill s0( over)?"', drawing.svg)
    assert widths == [("74", " over"), ("18.5", "")]
    assert drawing.rows == [["fc1", "0.4"], ["fc2", "0.1"]]


def test_of_many_names_the_costliest_are_drawn_and_all_are_in_the_table():
    """Of ten all but the two cheapest, in their order; the one that the verdict is about in any case."""
    costs = [0.5, 0.1, *(0.9 - 0.01 * k for k in range(8))]
    said = {"of": "level", "what": "ε", "beside_what": "", "beside": {}}
    curve = {"kind": "bars", "names": [f"fc{k}" for k in range(10)], "values": {"model": costs}, **said}
    (drawing,) = drawings(record(curve=curve), "x", 61)
    assert re.findall(r"fc\d", drawing.svg) == ["fc0", *(f"fc{k}" for k in range(2, 9))]
    assert len(drawing.rows) == 10
    (drawing,) = drawings(record(curve={**curve, "limited": False}), "x", 61)
    assert "limit" not in drawing.svg  # which is not one of these


def test_what_carries_a_failure_is_drawn_both_ways():
    """Put back alone, and moved alone, each named; the layers that are enough are said."""
    group = {"name": "fc1", "kind": "units", "share": 0.5, "alone": 0.25}
    explained = {
        "groups": [group],
        "minimal_layers": ["fc1", "fc2"],
        "samples": {"half": 3, "of": 9, "classes": {"7": 3}},
    }
    (drawing,) = drawings(record(explanation=explained), "x", 61)
    assert list(drawing.legend) == [("fill s0", "put back alone"), ("hollow", "moved alone")]
    assert (drawing.columns, drawing.rows) == (["group", "put back alone", "moved alone"], [["fc1", "50 %", "25 %"]])
    assert "alone are enough to break the limit: fc1, fc2." in drawing.says
    assert re.findall('width="([0-9.]+)%"[^>]*class="(fill s0|hollow)"', drawing.svg) == [
        ("74", "fill s0"),
        ("37", "hollow"),
    ]


@pytest.mark.parametrize(
    ("value", "limit", "said"),
    [(0.5, 0.1, "5 times the limit"), (0.05, 0.1, ""), (3.0, 0.0, ""), (math.inf, 0.1, ""), (23.4, 0.1, "234 times")],
)
def test_how_badly_is_also_told_in_limits(value, limit, said):
    """Where the value is above a limit that is above nothing."""
    text = page([record(value=value, limit=limit)])
    assert said in text
    assert said or "times the limit" not in text


def test_a_merge_is_drawn_on_the_side_of_its_limit_where_it_lies():
    """Below the least accuracy that is allowed it is marked; at it, it is not."""
    row = {"name": "d", "parents": {"x": 90.0}, "reference": "x", "reference_value": 90.0, "bound": 88.0}
    curve = {"kind": "tasks", "metric": "accuracy", "higher_is_better": True}
    for merge, style in ((87.0, "worst"), (88.0, "merge")):
        (drawing,) = drawings(record(curve={**curve, "rows": [{**row, "merge": merge}]}), "x", 61)
        assert f'class="{style}"' in drawing.svg
        assert drawing.rows == [["d", "90", str(int(merge)), "88", "x"]]


def test_a_matrix_has_all_pairs_of_few_models_and_the_worst_of_many():
    """Below the diagonal aligned, above it as given; cells above the limit are marked once."""
    rows = every_kind()
    (few,) = drawings(rows[6], "x", 200)
    assert len(few.rows) == 10
    assert ["model-0", "model-4", "0.04", "1", "above"] in few.rows
    assert len(re.findall("z", re.search('<path d="([^"]+)" class="cell over"', few.svg)[1])) == 1
    (many,) = drawings(rows[7], "x", 200)
    assert len(many.rows) == 120
    assert many.rows[0][2] == "0.39"


def test_ten_pairs_are_under_200_kilobytes():
    """Each with a long line that fails, explained, and with a path that passes."""
    rows = []
    for k in range(10):
        lines = {
            "where": ["t = 0.3 of θ_t = (1-t)·a + t·b"],
            "why": ["x" * 200] * 3,
            "measured": ["x" * 200],
            "what": ["x" * 200],
        }
        naive = [30 * loss for loss in SPIKE]
        curve = line(SPIKE, naive_losses=naive, errors=SPIKE)
        groups = [{"name": f"blocks.{g}.attention", "kind": "units", "share": 0.1, "alone": 0.1} for g in range(12)]
        more = {"endpoints": ENDS, "answers": lines, "explanation": {"groups": groups}, "next": ["x" * 80] * 3}
        rows.append(record(f"pair-{k}", curve=curve, place={"t": 0.3}, **more))
        rows.append(record(f"pair-{k}", "pass", id=f"lmc.toml::{k}::path", curve=path(20), endpoints=ENDS, value=0.05))
    assert len(page(rows).encode()) < 200_000


def test_a_run_that_reads_old_records_draws_what_they_hold():
    """Without a curve, with one of a kind that nobody knows, or without the losses of its ends."""
    for curve in ({}, {"kind": "unheard-of"}):
        assert drawings(record(curve=curve), "x", 61) == []
    bare = {"kind": "line", "t": [0.0, 1.0], "losses": [0.1, 0.2]}
    (drawing,) = drawings(record(curve=bare), "x", 61)
    assert drawing.columns == ["t", "loss"]


def test_paths_are_relative_to_the_root_and_secrets_stay_hidden(tmp_path: Path):
    """As in the JSON report."""
    files = {"files": {"a": {"path": str(tmp_path / "a.safetensors")}}, "model": "m"}
    text = page(
        [record(pair_description=files)], replace(RUN, root=str(tmp_path), environment={"arguments": ["--token=***"]})
    )
    assert str(tmp_path) not in text
    assert "a.safetensors" in text


def test_a_page_of_records_that_travelled_is_the_same():
    """What an xdist worker sends, as JSON, and what was measured here."""
    rows = [row for row in every_kind() if row.pair != "nan"]
    sent = [CheckRecord.from_dict(json.loads(json.dumps(row.to_dict()))) for row in rows]
    assert page(sent) == page(rows)


def test_a_run_without_anything_is_a_page():
    """Nothing selected, nothing known."""
    assert "No check ran" in page([], Run())


def test_what_a_text_says_to_do_is_what_comes_next():
    """Of a check that has a number and is not settled: it leaves the first line, and stands where one looks for it."""
    text = ["one: b answers no better than a constant; mend: name another b", "measured 0.1 nats, limit 0.2 nats"]
    row = record(verdict="inconclusive", failure=text, answers={"what": text[:1], "why": text[1:]})
    tree = Tree(page([row]))
    told = dict(zip((t for _, t in tree.all("dt")), (t for _, t in tree.all("dd")), strict=False))
    assert told["What broke"] == "one: b answers no better than a constant"
    assert told["What next"].startswith("name another b")
