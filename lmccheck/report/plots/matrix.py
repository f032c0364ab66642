"""The barriers between all models of a set: below the diagonal as aligned, above it as given."""

from __future__ import annotations

import math
from itertools import product

from lmccheck.explain import number
from lmccheck.finding import Matrix
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.plots.svg import Canvas, finite, shortened
from lmccheck.report.record import CheckRecord

LEFT, CHARACTERS = 0.3, 13  # of the width, and of a name: what stands before the cells
HEAD, CELL, LEAST, HIGHEST = 22.0, 30.0, 6.0, 420.0  # pixels
WRITTEN, NUMBERED = 7, 24  # models of which each cell has room for its number, and each row for its name
SHADES = 12
PAIRS = 120  # that a table lists


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of a matrix of barriers."""
    found = Matrix(**record.matrix)
    count = len(found.names)
    same = found.aligned == found.naive
    title = "Barriers between all models" + ("" if same else ": aligned below the diagonal, as given above it")
    worst = f" between {' and '.join(record.place['pair'])}" if record.place.get("pair") else ""
    says = (
        f"{count} models, {count * (count - 1) // 2} pairs, {len(found.above)} of them above the limit of "
        f"{number(record.limit)} {record.unit}; the worst is {number(record.value)}{worst}."
    )
    cell = max(min(CELL, HIGHEST / count), LEAST)
    canvas = Canvas(name, title, says, HEAD + cell * count)
    width = (1 - LEFT) / count
    _cells(canvas, found, width, cell)
    if count <= NUMBERED:
        for k, model in enumerate(found.names):
            canvas.text((0, HEAD + (k + 0.5) * cell + 4), f"{k + 1} {shortened(model, CHARACTERS)}", "name", "start")
            canvas.text((LEFT + (k + 0.5) * width, 14), str(k + 1), "mid")
    legend = [("fill over", "above the limit")] if found.above else []
    columns, rows, left = _table(found, same)
    return Drawing(title, says, str(canvas), columns, rows, legend, left, record.unit, True)


def _cells(canvas: Canvas, found: Matrix, width: float, cell: float) -> None:
    """Draw all barriers, the darker the higher they are; what is no number is darkest."""
    count, above = len(found.names), {frozenset(pair) for pair in found.above}
    most = max(finite(x for matrix in (found.aligned, found.naive) for row in matrix for x in row), default=0.0)
    shades: dict[tuple[bool, int], list[tuple[float, float, float, float]]] = {}
    for i, j in product(range(count), repeat=2):
        if i == j:
            continue
        value = (found.aligned if j < i else found.naive)[i][j]
        share = (
            min(max(value, 0.0) / most, 1.0) if most > 0 and math.isfinite(value) else float(not math.isfinite(value))
        )
        over = j < i and frozenset((found.names[i], found.names[j])) in above
        left, top = LEFT + j * width, HEAD + i * cell
        shades.setdefault((over, round(SHADES * share)), []).append((left, top, left + width, top + cell))
        if count <= WRITTEN:
            at = left + width / 2, top + cell / 2 + 4
            canvas.text(at, f"{value:.2g}", "cellvalue over" if over else "cellvalue", "middle")
    for (over, shade), boxes in shades.items():
        canvas.boxes(boxes, "cell over" if over else "cell", 0.06 + 0.5 * shade / SHADES)


def _table(found: Matrix, same: bool) -> tuple[list[str], list[list[str]], str]:
    """Return all pairs, of very many the worst."""
    above = {frozenset(pair) for pair in found.above}
    pairs = [(i, j) for i in range(len(found.names)) for j in range(i)]
    shown = pairs
    if len(pairs) > PAIRS:
        shown = sorted(pairs, key=lambda pair: -found.aligned[pair[0]][pair[1]])[:PAIRS]
    rows = [
        [
            found.names[j],
            found.names[i],
            number(found.aligned[i][j]),
            *([] if same else [number(found.naive[i][j])]),
            "above" if frozenset((found.names[i], found.names[j])) in above else "",
        ]
        for i, j in shown
    ]
    left = f"the {PAIRS} worst of {len(pairs)} pairs are listed; the JSON report has all" if shown is not pairs else ""
    return ["model", "with", "barrier", *([] if same else ["unaligned"]), "limit"], rows, left
