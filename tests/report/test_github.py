"""What GitHub Actions shows: annotations beside a manifest's lines, and a summary page of limited size."""

from __future__ import annotations

import re
from dataclasses import replace

from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.formats.markdown import markdown
from lmccheck.report.record import CheckRecord
from lmccheck.report.write import PAGE, write_reports


def record(name: str, verdict: str = "fail", **facts: object) -> CheckRecord:
    id = f"lmc.toml::{name}::linear_connectivity"
    row = CheckRecord(
        id, "lmc.toml", "0" * 64, name, "linear_connectivity", "linear_connectivity", "fail", verdict,
        verdict != "pass", value=1.0, limit=0.5, text="" if verdict == "pass" else f"{name}: {verdict}",
    )  # fmt: skip
    return replace(row, **facts)


def commands(*rows: CheckRecord) -> list[str]:
    return FORMATS.get("github").render(list(rows), Run()).splitlines()


def test_a_failure_is_an_error_at_the_line_of_its_pair():
    """One command a line: file, line and title, the message with its newlines escaped as the runner reads them."""
    (line,) = commands(record("mlp", line=7, text="50% worse:\nsecond, line"), record("good", "pass"))
    assert line == (
        "::error file=lmc.toml,line=7,title=lmc.toml%3A%3Amlp%3A%3Alinear_connectivity fail"
        "::50%25 worse:%0Asecond, line"
    )


def test_at_most_nine_the_worst_first():
    """Ten are shown a step; errors come before fails, those furthest above their limit first, warnings last."""
    rows = [record(f"f{k:02}", value=1.0 + k) for k in range(7)] + [record("z", "error", value=None)]
    warned = [record("w", severity="warn", blocking=False, value=99.0), record("n", value=float("nan"))]
    lines = commands(*rows, *warned[:1])
    order = [re.search("lmc.toml%3A%3A(.*?)%3A", line)[1] for line in lines]
    assert order == ["z", "f06", "f05", "f04", "f03", "f02", "f01", "f00", "w"]
    assert [re.match("::(error|warning)", line)[1] for line in lines] == ["error"] * 8 + ["warning"]
    lines = commands(*rows, *warned)
    assert len(lines) == 9
    assert "%3A%3An%3A" in lines[1]  # what is no number is as bad as can be
    assert lines[8] == "::error title=lmccheck::2 more did not pass: see the report"


def test_the_summary_page_is_never_larger_than_github_keeps(tmp_path):
    """Texts that do not fit are left out and counted; the table stays."""
    page = tmp_path / "page.md"
    page.write_text("x" * 300_000)
    rows = [record(f"p{k:03}", text="long " * 4000) for k in range(60)] + [record("good", "pass")]
    write_reports({}, rows, Run(), summary=page)
    text = page.read_text()
    assert page.stat().st_size <= PAGE
    assert text.count("\n### ") == int(re.search(r"(\d+) more texts do not fit this page", text)[1]) * -1 + 60
    assert "| good" in text
    assert "| p059" in text


def test_rows_that_do_not_fit_are_counted_and_what_failed_stays():
    """Of very many rows those that passed are left out first."""
    rows = [record("bad"), *(record(f"p{k:04}", "pass") for k in range(3000))]
    text = markdown(rows, Run(most=40_000))
    assert len(text.encode()) <= 40_000
    assert "| bad" in text
    shown = len(re.findall(r"^\| p\d", text, re.MULTILINE))
    assert f"{3000 - shown} more rows do not fit this page" in text


def test_a_report_file_is_no_larger_than_github_shows():
    """Nor is one of few: all of them are told."""
    rows = [record(f"p{k:03}", text="long " * 4000) for k in range(60)]
    assert len(markdown(rows, Run()).encode()) <= PAGE
    assert "more texts do not fit this page" in markdown(rows, Run())
    assert markdown(rows[:9], Run()).count("\n### ") == 9


def test_what_passed_is_folded():
    """Below what did not pass, in a table of its own; GitHub reads Markdown within tags after an empty line only."""
    text = markdown([record("good", "pass"), record("bad")], Run())
    lines = text.splitlines()
    assert lines[2] == "**1 of 2 checks failed.**"
    fold = lines.index("<details><summary>1 passed</summary>")
    assert lines[fold + 1] == ""
    assert lines[lines.index("</details>") - 1] == ""
    assert next(k for k, line in enumerate(lines) if line.startswith("| bad")) < fold
    assert fold < next(k for k, line in enumerate(lines) if line.startswith("| good")) < lines.index("</details>")
    assert "<details>" not in markdown([record("bad")], Run())
