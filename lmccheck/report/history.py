"""A history: a row per check and run in a file of sqlite3, and what became of each check, drawn in a line."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from lmccheck.errors import LmcError, shown_path
from lmccheck.explain import number
from lmccheck.report.baseline import EXACT, key_of
from lmccheck.report.record import CheckRecord

APPLICATION = 0x6C6D6363  # "lmcc", which tells the file from those of other programs
VERSION = 1
PATIENCE = 60.0  # seconds that a run waits for others that are writing
TABLE = """CREATE TABLE IF NOT EXISTS checks (
    run TEXT NOT NULL, created TEXT NOT NULL, name TEXT NOT NULL, property TEXT NOT NULL, verdict TEXT NOT NULL,
    value REAL, "limit" REAL, unit TEXT, low REAL, high REAL, known TEXT, profile TEXT, device TEXT, seconds REAL,
    lmccheck TEXT, torch TEXT, files TEXT, PRIMARY KEY (run, name))"""
BARS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*%#"
NONE, NO_NUMBER = ".", "!"  # of a sparkline: not measured, and NaN or infinite


@dataclass(frozen=True)
class Past:
    """One check over its runs, oldest first: ``values`` (None where nothing was measured), and the last row's facts."""

    name: str
    values: tuple[float | None, ...]
    verdict: str
    limit: float | None
    unit: str
    created: str


def history_problem(path: Path) -> str | None:
    """Return why a run cannot be added to a file, or None."""
    try:
        if path.exists():
            with _opened(path, readonly=True):
                pass
    except LmcError as error:
        return str(error)
    return None


def add_run(path: Path, records: Iterable[CheckRecord], root: Path, created: str, version: str) -> int:
    """Add a row for each check of a run, all of them or none, and return how many. Raises LmcError.

    Others may be writing to the file at the same time: whoever comes later waits.
    """
    run, rows = uuid4().hex, []
    for record in records:
        if not record.pair:
            continue
        low, high = record.interval or (None, None)
        files = {name: facts.get("sha256") for name, facts in record.pair_description.get("files", {}).items()}
        rows.append(
            (
                run, created, key_of(root / record.manifest, (record.pair, record.check), path), record.property,
                record.verdict, _stored(record.value), _stored(record.limit), record.unit, _stored(low), _stored(high),
                record.known, record.profile, record.pair_description.get("device"), record.seconds, version,
                record.environment.get("torch"), json.dumps(files, sort_keys=True),
            )
        )  # fmt: skip
    if not rows:
        return 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LmcError(f"history {shown_path(path)}: {error.strerror or error}") from None
    with _opened(path, readonly=False) as base:
        base.execute(TABLE)
        base.execute(f"PRAGMA application_id = {APPLICATION}")
        base.execute(f"PRAGMA user_version = {VERSION}")
        base.executemany(f"INSERT INTO checks VALUES ({','.join('?' * len(rows[0]))})", rows)
    return len(rows)


def _stored(value: float | None) -> float | str | None:
    """Return a number as sqlite keeps it: of NaN it would make NULL, which stands for what was not measured."""
    return "nan" if value is not None and math.isnan(value) else value


@contextmanager
def _opened(path: Path, *, readonly: bool) -> Iterator[sqlite3.Connection]:
    """Give a history in one transaction, which is kept whole or not at all. Raises LmcError for what is none."""
    what = f"history {shown_path(path)}"
    if path.exists() and not path.is_file():
        raise LmcError(f"{what}: is no file, expected a history of lmccheck; mend: {MEND}")
    mode = "ro" if readonly else "rwc"
    address = f"file:{quote(os.path.abspath(path))}?mode={mode}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)) as base:
            base.execute("BEGIN" if readonly else "BEGIN IMMEDIATE")
            told = [base.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version")]
            new = not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not new and told != [APPLICATION, VERSION]:
                got = f"version {told[1]}" if told[0] == APPLICATION else "a database of something else"
                raise LmcError(f"{what}: got {got}, expected a history of lmccheck, version {VERSION}; mend: {MEND}")
            yield base
            base.execute("COMMIT")
    except sqlite3.Error as error:
        raise LmcError(
            f"{what}: {error}; expected a history of lmccheck, which is a file of sqlite3; mend: {MEND}"
        ) from None


MEND = "give it a file of its own"


def read_history(path: Path, part: str = "", last: int | None = None) -> list[Past]:
    """Return the checks whose name holds ``part``, with their ``last`` runs, oldest first. Raises LmcError."""
    what = f"history {shown_path(path)}"
    if not path.is_file():
        raise LmcError(f"{what}: no such file; mend: pytest --lmc-models --lmc-history={shown_path(path)} makes it")
    rows: dict[str, list[tuple[object, ...]]] = {}
    with _opened(path, readonly=True) as base:
        if base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            asked = 'SELECT name, value, verdict, "limit", unit, created FROM checks ORDER BY created, rowid'
            for row in base.execute(asked):
                rows.setdefault(str(row[0]), []).append(row[1:])
    found = {name: each[-last:] if last else each for name, each in rows.items() if part in name}
    if not found:
        of = f" whose name holds {part!r}, of {len(rows)}" if rows else ""
        raise LmcError(f"{what}: no checks{of}; mend: {'name another part' if rows else 'run the gate with it first'}")
    return [_past(name, each) for name, each in sorted(found.items())]


def _past(name: str, rows: Sequence[Sequence[object]]) -> Past:
    values = tuple(None if value is None else float(str(value)) for value, *_ in rows)
    _, verdict, limit, unit, created = rows[-1]
    return Past(name, values, str(verdict), None if limit is None else float(str(limit)), str(unit or ""), str(created))


def sparkline(values: Sequence[float | None], bars: str = BARS) -> str:
    """Return a character per value, from the lowest to the highest of ``bars``; what rounding may change is level.

    >>> sparkline([0.0, None, 0.5, 1.0, float("nan")], PLAIN), sparkline([0.1, 0.1 + 1e-9])
    ('_.+#!', '▁▁')
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    span = high - low if high - low > EXACT * max(1.0, abs(high)) else math.inf

    def bar(value: float | None) -> str:
        if value is None:
            return NONE
        if not math.isfinite(value):
            return NO_NUMBER
        return bars[round((value - low) / span * (len(bars) - 1))]

    return "".join(map(bar, values))


def history_table(checks: Sequence[Past], fmt: str = "simple", *, plain: bool = False) -> str:
    """Return a row per check: how often it ran, its values as a line, the last one, the change since the first.

    ``plain``: with characters that every terminal has.
    """
    from tabulate import tabulate

    several = len({check.name.rpartition("::")[0].rpartition("::")[0] for check in checks}) > 1
    rows = []
    for check in checks:
        known = [value for value in check.values if value is not None]
        change = f"{known[-1] - known[0]:+.3g}" if len(known) > 1 else ""
        name = check.name if several else "::".join(check.name.rsplit("::", 2)[1:])
        line = sparkline(check.values, PLAIN if plain else BARS)
        when = check.created.replace("T", " ").partition("+")[0]
        last = [number(check.values[-1]), change, number(check.limit), check.unit, check.verdict, when]
        rows.append([name, str(len(check.values)), line, *last])
    headers = ["check", "runs", "values", "last", "change", "limit", "unit", "verdict", "last run (UTC)"]
    used = [k for k in range(len(headers)) if any(row[k] for row in rows)]
    right = ("runs", "last", "change", "limit")
    return tabulate(
        [[row[k] for k in used] for row in rows],
        headers=[headers[k] for k in used],
        tablefmt=fmt,
        disable_numparse=True,
        colalign=["right" if headers[k] in right else "left" for k in used],
    )
