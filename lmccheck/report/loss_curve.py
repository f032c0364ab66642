"""The curve that a check measured, as a table: of a line its points, of a path what is known of every segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmccheck.report.record import CheckRecord
from lmccheck.store.loss_curve import LossCurve

Row = tuple[float, int, float, float | None, float | None, float | None]


def loss_curve(record: CheckRecord) -> LossCurve | None:
    """Return what a check measured along a line or a path, nothing measured for it; None where it is about neither."""
    curve, kind = record.curve, record.curve.get("kind")
    if kind == "line":
        unknown: list[float | None] = [None] * len(curve["t"])
        known = [curve.get(key) or unknown for key in ("errors", "lower", "upper")]
        return LossCurve(curve["t"], [1] * len(unknown), curve["losses"], *known)
    if kind != "path":
        return None
    rows = [row for k, part in enumerate(curve["segments"]) for row in _rows(part, k, curve["segments"])]
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    return LossCurve(*columns)


def _rows(part: Mapping[str, Any], k: int, segments: list[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of a segment: its beginning, what was seen inside, and of the last one its end."""
    points = {s: (loss, error) for s, loss, error in part.get("seen", ())}
    points[part["worst"]] = part["max"], points.get(part["worst"], (None, None))[1]
    points[0.0] = part["loss_start"], part.get("error_start")
    points[1.0] = part["loss_end"], part.get("error_end")
    around = [_bounds(part)]
    found: list[Row] = []
    for s in sorted(points):
        if s == 1.0 and part is not segments[-1]:
            continue  # it is where the next one begins
        beside = [_bounds(segments[k - 1])] if s == 0.0 and k else []
        lower, upper = zip(*around, *beside, strict=True)
        bounds = None if None in lower else min(lower), None if None in upper else max(upper)
        found.append(((k + s) / len(segments), k + 1, *points[s], *bounds))
    return found


def _bounds(part: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return what the loss on a segment is at least and at most, None where that is not known."""
    seen = part["loss_start"], part["loss_end"], part["max"], *(loss for _, loss, _ in part.get("seen", ()))
    if part["known"] == "certified":
        return None, max(part["bound"], *seen)
    return min(seen) if part["known"] == "constant" else None, max(seen) if part["known"] != "sampled" else None
