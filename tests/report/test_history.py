"""A history holds a row per check and run, also where several runs write at once, and is drawn in a line."""

from __future__ import annotations

import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lmccheck.errors import LmcError
from lmccheck.report.history import PLAIN, add_run, history_problem, history_table, read_history, sparkline
from lmccheck.report.record import CheckRecord

ROOT = Path("/project")
RECORD = CheckRecord(
    id="lmc.toml::a-b::x", manifest="lmc.toml", manifest_sha256="", pair="a-b", check="x", property="x",
    severity="fail", verdict="pass", blocking=False, value=0.5, limit=1.0, unit="nats",
    pair_description={"files": {"a": {"sha256": "a" * 64}}},
)  # fmt: skip


def add(path, *values, created="2026-11-26T10:00:00+00:00", **changes):
    """A run per value."""
    for value in values:
        add_run(path, [replace(RECORD, value=value, **changes)], ROOT, created, "0.2.0")


def rows(path, what="*"):
    with closing(sqlite3.connect(path)) as base:
        return base.execute(f"SELECT {what} FROM checks").fetchall()


def test_a_row_per_check_and_run(tmp_path):
    """The manifest's own item is no check; what is not measured has a row without a value."""
    path = tmp_path / "deep" / "h.sqlite"
    records = [
        RECORD,
        replace(RECORD, pair="", check="manifest"),
        replace(RECORD, check="y", value=None, verdict="not measured", interval=None),
    ]
    assert add_run(path, records, tmp_path, "2026-11-26T10:00:00+00:00", "0.2.0") == 2
    assert add_run(path, records, tmp_path, "2026-11-27T10:00:00+00:00", "0.2.0") == 2
    found = rows(path, "name, value, verdict")
    assert found == 2 * [("../lmc.toml::a-b::x", 0.5, "pass"), ("../lmc.toml::a-b::y", None, "not measured")]
    assert len({run for (run,) in rows(path, "run")}) == 2


def test_runs_that_write_at_once_lose_nothing(tmp_path):
    """Forty runs from eight threads, each with a connection of its own, into a file that none has made yet."""
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(add, tmp_path / "h.db", k / 40) for k in range(40)]
    assert [each.result() for each in done] == [None] * 40
    assert sorted(value for (value,) in rows(tmp_path / "h.db", "value")) == [k / 40 for k in range(40)]


def test_a_run_is_added_whole_or_not_at_all(tmp_path):
    """A row that cannot be stored, here one check twice, leaves none of its run."""
    add(tmp_path / "h.db", 0.25)
    with pytest.raises(LmcError, match="UNIQUE"):
        add_run(tmp_path / "h.db", [replace(RECORD, check="z"), RECORD, RECORD], ROOT, "2026", "0.2.0")
    assert rows(tmp_path / "h.db", "value") == [(0.25,)]


def test_what_is_no_history_is_refused_and_left_as_it_is(tmp_path):
    """Another program's database, a text, a folder, a later version: one line each, before and at the end of a run."""
    other, text, later = (tmp_path / name for name in ("other.db", "notes.txt", "later.db"))
    with closing(sqlite3.connect(other)) as base:
        base.execute("CREATE TABLE checks (mine TEXT)")
    text.write_text("shopping list " * 100)
    add(later, 0.5)
    with closing(sqlite3.connect(later)) as base:
        base.execute("PRAGMA user_version = 2")
    cases = {other: "a database of something else", text: "not a database", tmp_path: "is no file", later: "version 2"}
    for path, said in cases.items():
        before = path.read_bytes() if path.is_file() else b""
        assert said in (history_problem(path) or "")
        with pytest.raises(LmcError, match=r"; mend: give it a file of its own$"):
            add(path, 0.5)
        assert before == (path.read_bytes() if path.is_file() else b"")
    assert history_problem(tmp_path / "new.db") is None


def test_a_history_is_read_oldest_first(tmp_path):
    """Whatever was written when: by the time that the runs say."""
    path = tmp_path / "h.db"
    add(path, 0.3, created="2026-11-28T00:00:00+00:00", verdict="fail")
    add(path, 0.1, created="2026-11-26T00:00:00+00:00")
    add(path, None, created="2026-11-27T00:00:00+00:00", verdict="error")
    add(path, math.nan, created="2026-11-27T01:00:00+00:00")
    (past,) = read_history(path)
    assert past.values[0] == 0.1
    assert past.values[1] is None
    assert math.isnan(past.values[2] or 0.0)
    assert (past.values[3], past.verdict, past.limit) == (0.3, "fail", 1.0)
    assert read_history(path, last=1)[0].values == (0.3,)
    with pytest.raises(LmcError, match="no checks whose name holds 'zzz', of 1; mend: name another part"):
        read_history(path, "zzz")


def test_a_line_goes_from_the_lowest_to_the_highest():
    """Eight levels; a gap where nothing was measured; NaN and infinity marked; rounding is level."""
    assert sparkline([k / 7 for k in range(8)]) == "▁▂▃▄▅▆▇█"
    assert sparkline([k / 7 for k in range(8)], PLAIN) == "_.-=+*%#"
    assert sparkline([1.0, None, 0.0, math.inf, math.nan]) == "█.▁!!"
    assert sparkline([0.5, 0.5 + 5e-7, 0.5]) == "▁▁▁"
    assert sparkline([None, None]) == ".."
    assert sparkline([]) == ""


def test_the_table_says_last_and_change(tmp_path):
    """Change is since the first that was measured; names of one manifest go without it."""
    add(tmp_path / "h.db", 0.25, 0.75, 0.5)
    header, _, row = history_table(read_history(tmp_path / "h.db")).splitlines()
    assert header.split()[:5] == ["check", "runs", "values", "last", "change"]
    assert row.split() == ["a-b::x", "3", "▁█▅", "0.5", "+0.25", "1", "nats", "pass", "2026-11-26", "10:00:00"]
    add(tmp_path / "h.db", 0.25, manifest="other.lmc.toml")
    assert "other.lmc.toml::a-b::x" in history_table(read_history(tmp_path / "h.db"), plain=True)
    assert history_table(read_history(tmp_path / "h.db"), plain=True).isascii()
