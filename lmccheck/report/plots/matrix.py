"""The barriers between all models of a set: below the diagonal as aligned, above it as given."""

from __future__ import annotations

from lmccheck.explain import number
from lmccheck.finding import Matrix
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.plots.svg import Canvas, finite, shortened
from lmccheck.report.record import CheckRecord

LEFT, CHARACTERS = 0.3, 13  # of the width, and of a name: what stands before the cells
HEAD, CELL, LEAST, HIGHEST = 22.0, 30.0, 6.0, 420.0  # pixels
WRITTEN, NUMBERED = 7, 24  # models of which each cell has room for its number, and each row for its name
PAIRS = 400  # that a table lists


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
    for i, row in enumerate(found.names):
        y = HEAD + i * cell
        if count <= NUMBERED:
            canvas.text((0, y + cell / 2 + 4), f"{i + 1} {shortened(row, CHARACTERS)}", "name", "start")
            canvas.text((LEFT + (i + 0.5) * width, 14), str(i + 1), "tick", "middle")
        for j in range(count):
            if i != j:
                _cell(canvas, found, (i, j), (LEFT + j * width, y, LEFT + (j + 1) * width, y + cell))
    legend = [("fill over", "above the limit")] if found.above else []
    columns, rows, left = _table(found, same)
    return Drawing(title, says, str(canvas), columns, rows, legend, left, record.unit, True)


def _cell(canvas: Canvas, found: Matrix, at: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    """Draw one barrier, the darker the higher it is; what is no number is darkest."""
    (i, j), (left, top, right, bottom) = at, box
    value = (found.aligned if j < i else found.naive)[i][j]
    most = max(finite(x for matrix in (found.aligned, found.naive) for row in matrix for x in row), default=0.0)
    share = min(max(value, 0.0) / most, 1.0) if most > 0 and value == value else float(value != value)
    over = j < i and sorted((found.names[i], found.names[j])) in [sorted(pair) for pair in found.above]
    opacity = {"fill-opacity": f"{0.06 + 0.5 * share:.2f}"}
    canvas.box(left, top, right, bottom, "cell over" if over else "cell", **opacity)
    if len(found.names) <= WRITTEN:
        middle = (left + right) / 2, (top + bottom) / 2 + 4
        canvas.text(middle, f"{value:.2g}", "value over" if over else "value", "middle")


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
