"""A merge beside its parents on each data set: one row a model, a dot where it lies, and the worst that is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lmccheck.explain import number
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.plots.svg import Canvas, Scale, shortened
from lmccheck.report.record import CheckRecord

DOTS = 0.78  # of the width: behind it stand the figures
HEAD, ROW, GAP = 40.0, 30.0, 18.0  # pixels of a data set's name and limit, of a model, and below
MOST, CHARACTERS = 8, 38  # data sets that are drawn, and characters of a name
MERGE = "the merge"


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of a merge on every data set."""
    rows, metric = record.curve["rows"], record.curve["metric"]
    higher = record.curve["higher_is_better"]
    shown = _worst_of(rows, higher)
    title = f"The merge beside its parents, {metric}"
    says = " ".join(_told(row, record.unit, higher) for row in shown)
    height = sum(HEAD + ROW * (len(row["parents"]) + 1) + GAP for row in shown)
    canvas = Canvas(name, title, says, height)
    found = Scale.over([figure for row in shown for figure in _figures(row)])
    room = 0.05 * (found.high - found.low)
    scale = Scale(found.low - room, found.high + room)
    y = 0.0
    for row in shown:
        y = _task(canvas, row, y, scale, higher)
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
    legend = [("dot", "higher is better" if higher else "lower is better")]
    legend += [("", f"the {len(shown)} worst of {len(rows)}")] if len(shown) < len(rows) else []
    return Drawing(title, says, str(canvas), columns, table, legend, "", record.unit, True)


def _worst_of(rows: list[dict[str, Any]], higher: bool) -> list[dict[str, Any]]:
    def beyond(row: dict[str, Any]) -> float:
        over = row["bound"] - row["merge"] if higher else row["merge"] - row["bound"]
        return math.inf if math.isnan(over) else float(over)

    return sorted(rows, key=beyond, reverse=True)[:MOST]


def _figures(row: dict[str, Any]) -> Iterator[float]:
    yield from row["parents"].values()
    yield from (row["merge"], row["bound"])


def _told(row: dict[str, Any], unit: str, higher: bool) -> str:
    parents = ", ".join(f"{name} {number(value)}" for name, value in row["parents"].items())
    edge = f"at {'least' if higher else 'most'} {number(row['bound'])} is allowed"
    return f"On {row['name']}: {parents}, the merge {number(row['merge'])} {unit}; {edge}."


def _task(canvas: Canvas, row: dict[str, Any], y: float, scale: Scale, higher: bool) -> float:
    """Draw one data set below y; return where the next one begins."""
    top, bottom = y + HEAD, y + HEAD + ROW * (len(row["parents"]) + 1)
    limit = DOTS * scale.of(row["bound"])
    canvas.text((0, y + 13), shortened(row["name"], CHARACTERS), "name strong", "start")
    if math.isfinite(row["bound"]):
        canvas.box(*((0.0, top, limit) if higher else (limit, top, DOTS)), bottom, "beyond")
        canvas.line((limit, top - 3), (limit, bottom), "limit")
        canvas.text((limit, top - 8), f"at {'least' if higher else 'most'} {number(row['bound'])}", "said limit")
    for k, (name, value) in enumerate(row["parents"].items()):
        _model(canvas, (name, number(value)), top + k * ROW, _place(scale, value), "model")
    over = not (row["merge"] >= row["bound"] if higher else row["merge"] <= row["bound"])
    said = MERGE, number(row["merge"])
    _model(canvas, said, bottom - ROW, _place(scale, row["merge"]), "worst" if over else "merge")
    return bottom + GAP


def _place(scale: Scale, value: float) -> float | None:
    return DOTS * scale.of(value) if math.isfinite(value) else None


def _model(canvas: Canvas, said: tuple[str, str], y: float, at: float | None, style: str) -> None:
    """Draw one model: its name, a dot, its figure."""
    canvas.text((0, y + 13), shortened(said[0], CHARACTERS), "name" if style == "model" else "name strong", "start")
    canvas.line((0, y + 22), (DOTS, y + 22), "grid")
    if at is not None:
        canvas.dot((at, y + 22), 4.5 if style == "model" else 5.5, style)
    canvas.text((1, y + 26), said[1], "value over" if style == "worst" else "value")
