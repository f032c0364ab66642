"""The terminal table: one row per check, what did not pass first, legible at 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tabulate import multiline_formats, tabulate

from lmccheck.explain import number
from lmccheck.report.record import CheckRecord, ordered

COLUMNS = ("pair", "check", "verdict", "value", "limit", "unit", "naive", "0-1 error", "where", "seconds")
ALIGNMENT = {"value": "right", "limit": "right", "naive": "right", "0-1 error": "right", "seconds": "right"}
DROPPED = ("seconds", "0-1 error")  # what a narrow terminal goes without, in this order
HEAD = "pair / check"
INDENT = 2
NARROWEST = 16
ESCAPED = ("pipe", "github", "orgtbl", "jira")  # formats in which an unescaped | would open a new cell


def cells(record: CheckRecord) -> dict[str, str]:
    """Return a record's row, as text."""
    warned = record.severity == "warn" and record.verdict not in ("pass", "error")
    return {
        "pair": record.pair or record.manifest,
        "check": record.check,
        "verdict": f"{record.verdict} (warn)" if warned else record.verdict,
        "value": number(record.value),
        "limit": number(record.limit),
        "unit": record.unit,
        "naive": number(record.naive),
        "0-1 error": error_barrier(record),
        "where": record.where,
        "seconds": "" if record.seconds is None else f"{record.seconds:.3g}",
    }


def error_barrier(record: CheckRecord) -> str:
    """Return the barrier in 0-1 error, in percentage points: it need not agree with the loss barrier."""
    value = record.error_barrier
    return "" if value is None else f"{100 * value:+.2g} pp"


def table(records: list[CheckRecord], fmt: str = "simple", width: int | None = None) -> str:
    """Return the table; where it is wider than ``width`` columns, pair and check share a column on two lines.

    Columns in which no row says anything are left out; seconds and 0-1 errors are, sooner than a name is broken.
    """
    rows = [cells(record) for record in ordered(records)]
    columns = [column for column in COLUMNS if any(row[column] for row in rows)]
    if fmt in ESCAPED:
        rows = [{column: text.replace("|", "\\|") for column, text in row.items()} for row in rows]
    wide = _draw(rows, columns, fmt)
    if width is None or fmt not in multiline_formats or fmt in ESCAPED or _width(wide) <= width:
        return wide
    briefer = [column for column in columns if column not in ("pair", "check")]
    stacked = _stacked(rows, briefer, fmt, room=width)
    for dropped in DROPPED:
        if _width(stacked) <= width:
            break
        briefer = [column for column in briefer if column != dropped]
        stacked = _stacked(rows, briefer, fmt, room=width)
    if _width(stacked) > width:
        stacked = _stacked(rows, briefer, fmt, room=width, word=NARROWEST)
    if _width(stacked) <= width:
        return stacked
    excess = _width(stacked) - width
    longest = max(max(len(row["pair"]), len(row["check"]) + INDENT) for row in rows)
    return _stacked(rows, briefer, fmt, room=max(longest - excess, NARROWEST), word=NARROWEST)


def _stacked(rows: list[dict[str, str]], columns: list[str], fmt: str, room: int, word: int | None = None) -> str:
    """Return the table with the pair above its check, each broken into lines of at most ``room`` characters.

    The words that say where the worst was seen stand below one another, each of at most ``word`` characters.
    """
    indent = " " * INDENT
    named = [
        {
            **row,
            "where": "\n".join(line for text in row["where"].split() for line in fold(text, word or len(text))),
            HEAD: "\n".join([*fold(row["pair"], room), *(indent + line for line in fold(row["check"], room - INDENT))]),
        }
        for row in rows
    ]
    return _draw(named, [HEAD, *columns], fmt)


def _draw(rows: list[dict[str, str]], columns: list[str], fmt: str) -> str:
    return tabulate(
        [[row[column] for column in columns] for row in rows],
        headers=columns,
        tablefmt=fmt,
        disable_numparse=True,
        colalign=[ALIGNMENT.get(column, "left") for column in columns],
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
