"""A merge beside its parents on each data set: one row a model, a dot where it lies, and the worst that is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lmccheck.explain import number
from lmccheck.report.plots.drawing import TOP, Drawing
from lmccheck.report.plots.svg import Canvas, Scale, shortened
from lmccheck.report.record import CheckRecord

DOTS, HEAD, ROW, MOST = 0.84, 26.0, 30.0, 8
CHARACTERS = 44


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of a merge on every data set."""
    rows, metric = record.curve["rows"], record.curve["metric"]
    higher = record.curve["higher_is_better"]
    shown = _worst_of(rows, higher)
    title = f"The merge beside its parents, {metric}"
    says = " ".join(_told(row, record.unit, higher) for row in shown)
    height = sum(TOP + HEAD + ROW * (len(row["parents"]) + 1) for row in shown)
    canvas = Canvas(name, title, says, height)
    scale = _scale(shown)
    y = 0.0
    for row in shown:
        y = _task(canvas, row, y, scale, higher)
    left = f"The {len(shown)} worst of {len(rows)} are drawn; the table has all." if len(shown) < len(rows) else ""
    names = list(dict.fromkeys(parent for row in rows for parent in row["parents"]))
    columns = ["data", *names, "the merge", "allowed", "against"]
    table = [
        [
            row["name"],
            *(number(row["parents"].get(parent)) for parent in names),
            *(number(row[key]) for key in ("merge", "bound")),
            row["reference"],
        ]
        for row in rows
    ]
    better = "higher is better" if higher else "lower is better"
    return Drawing(title, says, str(canvas), columns, table, [("dot", better)], left, record.unit, True)


def _worst_of(rows: list[dict[str, Any]], higher: bool) -> list[dict[str, Any]]:
    def beyond(row: dict[str, Any]) -> float:
        over = row["bound"] - row["merge"] if higher else row["merge"] - row["bound"]
        return math.inf if math.isnan(over) else float(over)

    return sorted(rows, key=beyond, reverse=True)[:MOST]


def _figures(row: dict[str, Any]) -> Iterator[float]:
    yield from row["parents"].values()
    yield from (row["merge"], row["bound"])


def _scale(rows: list[dict[str, Any]]) -> Scale:
    found = Scale.over([figure for row in rows for figure in _figures(row)])
    room = 0.05 * (found.high - found.low)
    return Scale(found.low - room, found.high + room)


def _told(row: dict[str, Any], unit: str, higher: bool) -> str:
    parents = ", ".join(f"{name} {number(value)}" for name, value in row["parents"].items())
    edge = f"at {'least' if higher else 'most'} {number(row['bound'])} is allowed"
    return f"On {row['name']}: {parents}, the merge {number(row['merge'])} {unit}; {edge}."


def _task(canvas: Canvas, row: dict[str, Any], y: float, scale: Scale, higher: bool) -> float:
    """Draw one data set below y; return where the next one begins."""
    bottom = y + TOP + HEAD + ROW * (len(row["parents"]) + 1) - 8
    limit = DOTS * scale.of(row["bound"])
    canvas.text((0, y + 14), shortened(row["name"], CHARACTERS), "name strong", "start")
    if math.isfinite(row["bound"]):
        canvas.box(*((0.0, y + TOP + 6, limit) if higher else (limit, y + TOP + 6, DOTS)), bottom, "beyond")
        canvas.line((limit, y + TOP), (limit, bottom), "limit")
        edge = "at least" if higher else "at most"
        canvas.text((limit, y + TOP - 2), f"{edge} {number(row['bound'])}", "said limit")
    y += TOP + HEAD - 8
    for name, value in [*row["parents"].items(), ("the merge", row["merge"])]:
        merged = name == "the merge"
        over = merged and not (value >= row["bound"] if higher else value <= row["bound"])
        canvas.text((0, y), shortened(name, CHARACTERS), "name strong" if merged else "name", "start")
        canvas.line((0, y + 11), (DOTS, y + 11), "grid")
        if math.isfinite(value):
            canvas.dot(
                (DOTS * scale.of(value), y + 11),
                5.5 if merged else 4.5,
                ("worst" if over else "merge") if merged else "model",
            )
        canvas.text((1, y + 15), number(value), "value over" if over else "value", "end")
        y += ROW
    return bottom + 8
