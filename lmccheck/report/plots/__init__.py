"""Drawings of what checks measured: one file per kind of ``lmccheck.curves``; SVG as text, no library and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lmccheck.report.plots import bars, draws, line, path, tasks
from lmccheck.report.plots.drawing import Drawing, fewer
from lmccheck.report.record import CheckRecord

Draw = Callable[[CheckRecord, str], Drawing | None]
DRAWN: Mapping[str, tuple[Draw, ...]] = {
    "line": (line.draw,),
    "path": (path.draw,),
    "bars": (bars.draw,),
    "draws": (draws.draw, draws.attenuation),
    "tasks": (tasks.draw,),
}


def drawings(record: CheckRecord, name: str, rows: int) -> list[Drawing]:
    """Return what a check measured as drawings; ``name`` begins their ids, a table has at most about ``rows``."""
    from lmccheck.report.plots import explained, matrix

    found: list[Drawing | None] = [
        each(record, f"{name}-{k}") for k, each in enumerate(DRAWN.get(record.curve.get("kind", ""), ()))
    ]
    if record.matrix:
        found.append(matrix.draw(record, f"{name}-matrix"))
    if record.explanation:
        found += [explained.groups(record, f"{name}-groups"), explained.classes(record, f"{name}-classes")]
    return [fewer(drawing, rows) for drawing in found if drawing is not None]
