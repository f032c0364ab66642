"""The barriers between all models of a set, one matrix as aligned and one as given, below the table of checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from lmccheck.explain import number
from lmccheck.finding import Matrix
from lmccheck.report.escape import escaped
from lmccheck.report.record import CheckRecord, names_of, ordered

ABOVE = "*"


def matrices(records: list[CheckRecord], fmt: str = "simple", width: int | None = None) -> list[tuple[str, str]]:
    """Return the matrices of every check that measured some, each after a line that says what it is."""
    named = names_of(records)
    return [found for record in ordered(records) for found in _matrices(record, named(record), fmt, width)]


def _matrices(record: CheckRecord, name: str, fmt: str, width: int | None) -> Iterator[tuple[str, str]]:
    if not record.matrix:
        return
    found = Matrix(**record.matrix)
    above = {frozenset(pair) for pair in found.above}
    mark = f"; {ABOVE} above the limit" if above else ""
    title = f"{name}::{record.check}, barriers in {record.unit}"
    how = f"aligned ({found.method})" if found.method else "aligned"
    same = found.aligned == found.naive
    still = ", which moved nothing" if same else ""
    yield f"{title}, {how}{still}{mark}", draw(found.names, found.aligned, fmt, width, above)
    if not same:
        yield f"{title}, unaligned", draw(found.names, found.naive, fmt, width)


def draw(
    names: Sequence[str],
    matrix: Sequence[Sequence[float]],
    fmt: str = "simple",
    width: int | None = None,
    above: set[frozenset[str]] | None = None,
) -> str:
    """Return a symmetric matrix: a row and a column a model.

    Where it is wider than ``width``, columns are numbered; where it still is, a part of them stands below the other.

    >>> print(draw(["a", "b"], [[0.0, 0.25], [0.25, 0.0]]))
           a     b
    --  ----  ----
    a         0.25
    b   0.25
    """

    def cell(i: int, j: int) -> str:
        mark = ABOVE if above and frozenset((names[i], names[j])) in above else ""
        return "" if i == j else number(matrix[i][j]) + mark

    cells = [[cell(i, j) for j in range(len(names))] for i in range(len(names))]
    named = _drawn(names, names, cells, fmt)
    if width is None or max(map(len, named.splitlines())) <= width:
        return named
    count = len(names)
    rows, columns = [f"{k + 1} {name}" for k, name in enumerate(names)], [str(k + 1) for k in range(count)]
    for most in range(count, 0, -1):
        parts = [
            _drawn(rows, columns[start : start + most], [row[start : start + most] for row in cells], fmt)
            for start in range(0, count, most)
        ]
        if max(len(line) for part in parts for line in part.splitlines()) <= width:
            break
    return "\n\n".join(parts)


def _drawn(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]], fmt: str) -> str:
    return tabulate(
        [[escaped(name, fmt), *row] for name, row in zip(rows, cells, strict=True)],
        headers=["", *(escaped(column, fmt) for column in columns)],
        tablefmt=fmt,
        disable_numparse=True,
        colalign=["left", *["right"] * len(columns)],
    )
