"""Drawings of what checks measured: one file per kind of ``lmccheck.curves``; SVG as text, no library and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lmccheck.report.plots import bars, draws, line, path, tasks
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.record import CheckRecord

Draw = Callable[[CheckRecord, str], Drawing | None]
DRAWN: Mapping[str, tuple[Draw, ...]] = {
    "line": (line.draw,),
    "path": (path.draw,),
    "bars": (bars.draw,),
    "draws": (draws.draw, draws.attenuation),
    "tasks": (tasks.draw,),
}


def drawings(record: CheckRecord, name: str) -> list[Drawing]:
    """Return what a check measured as drawings; ``name`` begins the ids of their parts."""
    from lmccheck.report.plots import matrix

    found = [each(record, f"{name}-{k}") for k, each in enumerate(DRAWN.get(record.curve.get("kind", ""), ()))]
    if record.matrix:
        found.append(matrix.draw(record, f"{name}-matrix"))
    return [drawing for drawing in found if drawing is not None]
