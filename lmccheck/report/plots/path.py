"""The loss along a path of segments: where it is known exactly, where it was sampled, and the limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from lmccheck.explain import number
from lmccheck.report.plots.drawing import Axes, Drawing
from lmccheck.report.plots.svg import XY, Scale
from lmccheck.report.record import CheckRecord

KINDS = {
    "a": "a: head only, convex",
    "b": "b: units that reach nothing, constant",
    "c": "c: units that compute the same, constant",
    "d": "d: anything",
    "l": "l: trained",
}
LABELLED, FEWER = 20, 8  # segments that are each labelled, and how many are where there are more


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of a path."""
    segments = record.curve["segments"]
    count = len(segments)
    losses = [end["loss"] for end in record.endpoints]
    limit = max(losses) + record.limit if losses and record.limit is not None else None
    worst = max(segments, key=lambda part: part["max"] if part["max"] == part["max"] else math.inf)
    if record.place.get("segment"):
        worst = next((p for p in segments if f"{p['number']}{p['kind']}" == record.place["segment"]), worst)
    title = f"Loss along the path of {count} segments"
    says = (
        f"The loss on {count} segments from a to b. It is highest on segment {worst['number']}, kind {worst['kind']}: "
        f"{number(worst['max'])}"
        + (
            f"; the limit is {number(limit)}, the worse endpoint and {number(record.limit)}."
            if limit is not None
            else "."
        )
    )
    heights = [part[key] for part in segments for key in ("loss_start", "loss_end", "max")]
    canvas = Axes(name, title, says, Scale.over([*heights, *losses, limit], 0.08))
    if limit is not None and math.isfinite(limit):
        canvas.box(0, 0, 1, canvas.y(limit), "beyond")
        canvas.line((0, canvas.y(limit)), (1, canvas.y(limit)), "limit")
        canvas.text((1, canvas.y(limit) - 6), f"limit {number(limit)}", "said limit", "end")
    for sampled, points in _runs(segments, canvas):
        canvas.curve(points, "sampled" if sampled else "exact")
    canvas.strokes((((k / count, canvas.floor - 4), (k / count, canvas.floor)) for k in range(1, count)), "axis")
    if not math.isfinite(worst["max"]):
        at = (worst["number"] - 0.5) / count
        canvas.text((at, 16), f"no number on {worst['number']}{worst['kind']}", "said worst")
    else:
        at = (worst["number"] - 1 + worst["worst"]) / count
        canvas.mark((at, worst["max"]), f"{number(worst['max'])} on {worst['number']}{worst['kind']}")
    step, kinds = 1 if count <= LABELLED else math.ceil(count / FEWER), {part["kind"] for part in segments}
    canvas.along([((k + 0.5) / count, _tick(part, step, kinds)) for k, part in enumerate(segments) if k % step == 0])
    known = [("exact", "known exactly")] if any(part["known"] != "sampled" for part in segments) else []
    known += [("sampled", "sampled")] if any(part["known"] == "sampled" for part in segments) else []
    known += [("", KINDS[kind]) for kind in sorted(kinds) if kind in KINDS]
    return Drawing(title, says, str(canvas), *_table(segments), known, unit=record.unit, kept=worst["number"] - 1)


def _tick(part: Mapping[str, Any], step: int, kinds: Collection[str]) -> str:
    if len(kinds) == 1:
        return str(part["number"])
    return str(part["kind"]) if step == 1 else f"{part['number']}{part['kind']}"


def _runs(segments: Sequence[Mapping[str, Any]], canvas: Axes) -> Iterator[tuple[bool, list[XY]]]:
    """Yield the points of segments that follow one another and are known alike, sampled or not.

    Between its ends a convex segment is at most as high as its highest point.
    """
    for sampled, run in groupby(segments, lambda part: part["known"] == "sampled"):
        points: list[XY] = []
        for part in run:
            heights = [(0.0, part["loss_start"]), (part["worst"], part["max"]), (1.0, part["loss_end"])]
            before = part["number"] - 1
            points += [((before + s) / len(segments), canvas.y(loss)) for s, loss in heights if math.isfinite(loss)]
        points = list(dict.fromkeys(sorted(points)))
        if len(points) > 1:
            yield sampled, points


def _table(segments: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = ["segment", "what moves", "start", "highest", "end", "known"]
    return columns, [
        [
            f"{part['number']}{part['kind']}",
            part["does"],
            *(number(part[key]) for key in ("loss_start", "max", "loss_end")),
            part["known"],
        ]
        for part in segments
    ]
