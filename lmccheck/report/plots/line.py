"""The loss along a straight line: aligned and as given, over the chord between the endpoints, with its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmccheck.explain import number
from lmccheck.report.plots.drawing import Axes, Drawing
from lmccheck.report.plots.svg import XY, Scale, finite, simplified
from lmccheck.report.record import CheckRecord

CLIPPED = 4.0  # times as high as all else: an unaligned line that is higher leaves the picture
POINTS = 61  # that are each marked, where there are no more


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of a line."""
    curve = record.curve
    t, losses, naive = curve["t"], curve["losses"], _moved(curve)
    ends = curve.get("ends") or [None, None]
    at = record.place.get("t")  # where the value was measured
    worst = min(range(len(t)), key=lambda k: abs(t[k] - at)) if at is not None else None
    title = f"Loss along the line{'' if naive is None else ', aligned and as given'}"
    says = _says(record, worst, naive)
    canvas = Axes(name, title, says, _scale(record, losses, naive, ends))
    legend = [("s0", "aligned" if naive is not None else "loss")]
    if None not in ends:
        canvas.line((0, canvas.y(ends[0])), (1, canvas.y(ends[1])), "chord")
        legend.append(("chord", "chord between the endpoints"))
        _limit(canvas, record, ends)
    if naive is not None:
        _series(canvas, t, naive, "naive")
        top = max(finite(naive), default=math.inf)
        beyond = f", up to {number(top)}" if not top <= canvas.upward.high else ""
        legend.insert(1, ("naive", f"as given, unaligned{beyond}"))
    if curve.get("highest") is not None:
        canvas.line((0, canvas.y(curve["highest"])), (1, canvas.y(curve["highest"])), "certified")
        legend.append(("certified", f"no point is above {number(curve['highest'])} (certified)"))
    _series(canvas, t, losses, "s0")
    if worst is not None:
        _mark(canvas, record, (t[worst], losses[worst]), ends)
    first, last = record.place.get("pair") or ("a", "b")
    canvas.along([(0, f"{first}, t = 0"), (0.5, "0.5"), (1, f"t = 1, {last}")])
    columns, rows = _table(record, curve, ends)
    return Drawing(title, says, str(canvas), columns, rows, legend, unit=record.unit, kept=worst)


def _moved(curve: Mapping[str, Any]) -> list[float] | None:
    naive = curve.get("naive_losses")
    return None if naive is None or naive == curve["losses"] else naive


def _chord(ends: Sequence[Any], t: float) -> float:
    return float((1 - t) * ends[0] + t * ends[1])


def _scale(record: CheckRecord, losses: Sequence[float], naive: Sequence[float] | None, ends: Sequence[Any]) -> Scale:
    limit = [] if None in ends or record.limit is None else [end + record.limit for end in ends]
    inside = finite([*losses, *limit, *ends, record.curve.get("highest")])
    if naive is not None and inside:
        low, high = min(inside), max(inside)
        inside += [min(value, low + CLIPPED * (high - low)) for value in finite(naive)]
    return Scale.over(inside, 0.06)


def _limit(canvas: Axes, record: CheckRecord, ends: Sequence[float]) -> None:
    if record.limit is None or not math.isfinite(record.limit):
        return
    left, right = (canvas.y(end + record.limit) for end in ends)
    canvas.curve([(0, left), (1, right), (1, 0), (0, 0)], "beyond", closed=True)
    canvas.line((0, left), (1, right), "limit")
    at, y = (0, left) if left < right else (1, right)  # the higher end: nothing of the line lies above it
    canvas.text((at, y - 6), f"limit: chord + {number(record.limit)}", "said limit")


def _mark(canvas: Axes, record: CheckRecord, at: XY, ends: Sequence[Any]) -> None:
    t, loss = at
    if not math.isfinite(loss):
        canvas.text((t, 16), f"no number at t = {number(t)}", "said worst")
        return
    if None not in ends:
        foot = _chord(ends, t)
        canvas.line((t, canvas.y(foot)), (t, canvas.y(loss)), "height")
        for edge in record.interval or ():
            y = canvas.y(foot + edge)
            canvas.line((t - 0.015, y), (t + 0.015, y), "height")
    canvas.mark(at, f"{number(loss)} at t = {number(t)}")


def _series(canvas: Axes, t: Sequence[float], losses: Sequence[float], style: str) -> None:
    """Draw the parts of a line that have numbers."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, loss in zip(t, losses, strict=True):
        if math.isfinite(loss):
            parts[-1].append((x, loss))
        elif parts[-1]:
            parts.append([])
    for part in parts:
        points = [(x, canvas.y(loss)) for x, loss in part]
        if len(points) > 1:
            canvas.curve(simplified(points), style)
        if style == "s0" and len(part) <= POINTS:
            canvas.points(points, "point")


def _says(record: CheckRecord, worst: int | None, naive: Sequence[float] | None) -> str:
    said = f"The loss at {len(record.curve['t'])} points between the two endpoints."
    if worst is not None:
        at = f"{number(record.curve['losses'][worst])} at t = {number(record.curve['t'][worst])}"
        said += f" Worst is {at}, {number(record.value)} {record.unit} above the chord, limit {number(record.limit)}."
    if naive is not None and record.naive is not None:
        said += f" Unaligned it is {number(record.naive)} above the chord."
    return said


def _table(record: CheckRecord, curve: Mapping[str, Any], ends: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Return the points as a table; columns that say nothing are left out."""
    t, losses = curve["t"], curve["losses"]
    columns: dict[str, Sequence[float]] = {"t": t, "loss": losses}
    if None not in ends:
        columns["chord"] = [_chord(ends, x) for x in t]
        columns["above it"] = [loss - foot for loss, foot in zip(losses, columns["chord"], strict=True)]
    for title, values in (("unaligned", _moved(curve)), ("0-1 error", curve.get("errors"))):
        if values is not None:
            columns[title] = values
    return list(columns), [[number(value) for value in row] for row in zip(*columns.values(), strict=True)]
