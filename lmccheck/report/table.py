"""The terminal table: one row per check, what did not pass first, legible at 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import fill

from tabulate import multiline_formats, tabulate

from lmccheck.explain import number
from lmccheck.report.escape import PIPED, escaped
from lmccheck.report.record import CheckRecord, names_of, ordered

COLUMNS = (
    "pair", "check", "verdict", "value", "limit", "unit", "known", "naive", "endpoints", "worst loss", "where",
    "0-1 error", "seconds",
)  # fmt: skip
RIGHT = ("value", "limit", "naive", "worst loss", "0-1 error", "seconds")  # aligned there, where a cell is one line
STACKED = {  # columns that share one where the terminal is narrow, each on a line of its own
    "pair / check": ("pair", "check", "known"),
    "verdict": ("verdict",),
    "value / limit": ("value", "limit", "unit"),
    "endpoints": ("endpoints",),
    "worst loss": ("worst loss", "where"),
    "naive": ("naive",),
    "0-1 error": ("0-1 error",),
    "seconds": ("seconds",),
}
DROPPED = ("seconds", "0-1 error", "naive")  # what a narrower one goes without, in this order
HEAD = "pair / check"
INDENT = 2
NARROWEST = 16
CLAUSE = 24  # characters that how a value is known may take on a line, where names take no more
SHORT_UNIT = 5  # characters; a longer one stands below its value


def cells(record: CheckRecord) -> dict[str, str]:
    """Return a record's row, as text."""
    warned = record.severity == "warn" and record.verdict in ("fail", "inconclusive")
    return {
        "pair": record.pair or record.manifest,
        "check": record.check,
        "verdict": f"{record.verdict} (warn)" if warned else record.verdict,
        "value": number(record.value),
        "limit": number(record.limit),
        "unit": record.unit,
        "known": record.known or "",
        "naive": number(record.naive),
        "endpoints": ", ".join(f"{name} {number(end['loss'])}" for name, end in record.ends().items()),
        "worst loss": number(record.worst_loss),
        "0-1 error": error_barrier(record),
        "where": record.where,
        "seconds": "" if record.seconds is None else f"{record.seconds:.3g}",
    }


def error_barrier(record: CheckRecord) -> str:
    """Return the barrier in 0-1 error, in percentage points: it need not agree with the loss barrier."""
    if record.error_barrier is None:
        return ""
    points = 100 * record.error_barrier
    return f"{points:+.0f} pp" if abs(points) >= 10 else f"{points:+.2g} pp"


def table(records: list[CheckRecord], fmt: str = "simple", width: int | None = None) -> str:
    """Return the table; where it is wider than ``width`` columns, what belongs together shares a column, line by line.

    Columns in which no row says anything are left out. Where that is too wide still, seconds, 0-1 errors and naive
    values are, sooner than a name is broken; what was measured, the limit and the losses stay.
    """
    named = names_of(records)
    rows = [{**cells(record), **({"pair": named(record)} if record.pair else {})} for record in ordered(records)]
    rows = [{column: escaped(text, fmt) for column, text in row.items()} for row in rows]
    wide = _draw(rows, COLUMNS, fmt)
    if width is None or fmt not in multiline_formats or fmt in PIPED or _width(wide) <= width:
        return wide
    columns = list(STACKED)
    for dropped in (None, *DROPPED):
        columns = [column for column in columns if column != dropped]
        stacked = _stacked(rows, columns, fmt, room=width)
        if _width(stacked) <= width:
            return stacked
    stacked = _stacked(rows, columns, fmt, room=width, word=NARROWEST)
    if _width(stacked) <= width:
        return stacked
    excess = _width(stacked) - width
    longest = max(max(len(row["pair"]), len(row["check"]) + INDENT) for row in rows)
    return _stacked(rows, columns, fmt, room=max(longest - excess, NARROWEST), word=NARROWEST)


def _stacked(rows: list[dict[str, str]], columns: list[str], fmt: str, room: int, word: int | None = None) -> str:
    """Return the table, cells on lines below one another: names of at most ``room``, words of ``word`` characters."""
    names = max((len(part) for row in rows for part in (row["pair"], INDENT * " " + row["check"])), default=0)
    rows = [{**row, "known": fill(row["known"], min(max(names, CLAUSE), room) - INDENT)} for row in rows]
    lines = [{column: "\n".join(_lines(row, column, room, word)) for column in columns} for row in rows]
    if not any(row["worst loss"] for row in rows):  # below it stands where that is
        lines = [{**line, "where": line["worst loss"]} for line in lines]
        columns = ["where" if column == "worst loss" else column for column in columns]
    return _draw(lines, columns, fmt, left=("worst loss",))


def _lines(row: dict[str, str], column: str, room: int, word: int | None) -> list[str]:
    """Return the lines of a cell of the stacked table."""
    if column == HEAD:
        below = [*fold(row["check"], room - INDENT), *row["known"].splitlines()]
        return [*fold(row["pair"], room), *(" " * INDENT + line for line in below)]
    if column == "value / limit":
        unit, short = row["unit"], len(row["unit"]) <= SHORT_UNIT
        value = f"{row['value']} {unit}" if short else row["value"]
        limit = f"limit {row['limit']}" if row["limit"] else ""
        return [line for line in (value.strip(), limit, "" if short else unit) if line]
    if STACKED[column] == (column,) and column in RIGHT:
        return [row[column]]
    texts = [text for part in STACKED[column] for text in row[part].split(", " if part == "endpoints" else None)]
    return [line for text in texts for line in fold(text, word or max(len(text), 1))]


def _draw(rows: list[dict[str, str]], columns: Sequence[str], fmt: str, left: Sequence[str] = ()) -> str:
    """Return the table of those columns in which a row says anything; numbers on the right, those of ``left`` aside."""
    used = [column for column in columns if any(row[column] for row in rows)]
    return tabulate(
        [[row[column] for column in used] for row in rows],
        headers=used,
        tablefmt=fmt,
        disable_numparse=True,
        colalign=["right" if column in RIGHT and column not in left else "left" for column in used],
    )


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def fold(name: str, width: int) -> list[str]:
    """Return a long name on several lines, broken after a '-', '_' or '.' where there is one.

    >>> fold("resnet20-seed0-vs-resnet20-seed1", 20)
    ['resnet20-seed0-vs-', 'resnet20-seed1']
    """
    return list(_fold(name, width))


def _fold(name: str, width: int) -> Iterator[str]:
    while len(name) > width:
        breaks = [match.end() for match in re.finditer(r"[-_.]", name[:width])]
        cut = breaks[-1] if breaks else width
        yield name[:cut]
        name = name[cut:]
    yield name
