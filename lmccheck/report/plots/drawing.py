"""A drawing of what a check measured, with the same numbers as a table for whoever cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmccheck.explain import number
from lmccheck.report.plots.svg import XY, Canvas, Scale

TOP, BELOW = 30.0, 26.0  # pixels above what is plotted, where names of limits stand, and below, where ticks do

FAR = 100.0  # heights of the picture


@dataclass(frozen=True)
class Drawing:
    """``svg`` is markup that was made here, all else are texts: a title, what it shows in a sentence, what its lines
    are (style and name), and a table of the same numbers, ``columns`` over ``rows``; ``left_out`` says what it lacks.
    ``unit``: that of its axis; ``wide`` where nothing stands left of what is plotted; ``kept``: the row that stays
    where only some have room.
    """

    title: str
    says: str
    svg: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[tuple[str, str]] = ()
    left_out: str = ""
    unit: str = ""
    wide: bool = False
    kept: int | None = None


class Axes(Canvas):
    """A canvas with a scale of losses upward, round numbers beside it, and room for what lies along it."""

    def __init__(self, name: str, title: str, says: str, upward: Scale, height: float = 220.0) -> None:
        super().__init__(name, title, says, TOP + height + BELOW)
        self.upward, self.plotted = upward, height
        ticks = upward.ticks(5)
        self.strokes((((0, self.y(tick)), (1, self.y(tick))) for tick in ticks), "grid")
        for tick in ticks:
            self.text((0, self.y(tick) + 4), number(tick), "up")

    @property
    def floor(self) -> float:
        """Where the axis along lies, in pixels."""
        return TOP + self.plotted

    def y(self, value: float) -> float:
        """Return how far down a value lies, in pixels; what is far outside of the scale lies outside of the picture."""
        return TOP + self.plotted * (1 - min(max(self.upward.of(value), -FAR), FAR))

    def along(self, places: Sequence[tuple[float, str]]) -> None:
        """Mark places along, from 0 to 1, each with what is said there."""
        ticks: list[tuple[XY, XY]] = [((x, self.floor), (x, self.floor + 5)) for x, _ in places]
        self.strokes([((0, self.floor), (1, self.floor)), *ticks], "axis")
        for x, said in places:
            at = x, self.floor + 20
            if 0.02 <= x <= 0.98:
                self.text(at, said, "mid")
            else:
                self.text(at, said, "tick", "start" if x < 0.5 else "end")

    def mark(self, at: XY, said: str) -> None:
        """Label the worst point, given in shares and in the value's unit."""
        x, y = at[0], self.y(at[1])
        self.dot((x, y), 5, "worst")
        beside = 0 if 0.3 <= x <= 0.7 else (10 if x < 0.3 else -10)
        self.text((x, y - 12 if not beside else y - 8), said, "said worst", dx=beside)


def style(names: Sequence[str], name: str) -> str:
    """Return the style of one of several series: they are told apart by their strokes, not by colour alone."""
    return f"s{min(list(names).index(name), 3)}"


def fewer(drawing: Drawing, most: int) -> Drawing:
    """Return a drawing whose table has about ``most`` rows, evenly spaced, with the one that is to stay.

    >>> drawing = Drawing("", "", "", ["t"], [[str(k)] for k in range(101)], kept=33)
    >>> [row[0] for row in fewer(drawing, 5).rows], fewer(drawing, 5).left_out
    (['0', '25', '33', '50', '75', '100'], '6 of 101 rows are shown; the JSON report has all')
    """
    count = len(drawing.rows)
    if count <= most:
        return drawing
    kept = set() if drawing.kept is None else {drawing.kept}
    shown = kept | {round(k * (count - 1) / (most - 1)) for k in range(most)}
    said = f"{len(shown)} of {count} rows are shown; the JSON report has all"
    return replace(drawing, rows=[drawing.rows[k] for k in sorted(shown)], left_out=said)
