"""A drawing of what a check measured, with the same numbers as a table for whoever cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmccheck.explain import number
from lmccheck.report.plots.svg import XY, Canvas, Scale

TOP, BELOW = 30.0, 26.0  # pixels above what is plotted, where names of limits stand, and below, where ticks do

FAR = 100.0  # heights of the picture


@dataclass(frozen=True)
class Drawing:
    """``svg`` is markup that was made here, all else are texts: a title, what it shows in a sentence, what its lines
    are (style and name), and a table of the same numbers, ``columns`` over ``rows``; ``left_out`` says what it lacks.
    ``unit``: that of its axis; ``wide`` where nothing stands left of what is plotted.
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


class Axes(Canvas):
    """A canvas with a scale of losses upward, round numbers beside it, and room for what lies along it."""

    def __init__(self, name: str, title: str, says: str, upward: Scale, height: float = 220.0) -> None:
        super().__init__(name, title, says, TOP + height + BELOW)
        self.upward, self.plotted = upward, height
        for tick in upward.ticks(5):
            self.line((0, self.y(tick)), (1, self.y(tick)), "grid")
            self.text((0, self.y(tick) + 4), number(tick), "tick", "end", dx=-8)

    @property
    def floor(self) -> float:
        """Where the axis along lies, in pixels."""
        return TOP + self.plotted

    def y(self, value: float) -> float:
        """Return how far down a value lies, in pixels; what is far outside of the scale lies outside of the picture."""
        return TOP + self.plotted * (1 - min(max(self.upward.of(value), -FAR), FAR))

    def along(self, places: Sequence[tuple[float, str]]) -> None:
        """Mark places along, from 0 to 1, each with what is said there."""
        self.line((0, self.floor), (1, self.floor), "axis")
        for x, said in places:
            self.line((x, self.floor), (x, self.floor + 5), "axis")
            anchor = "start" if x < 0.02 else "end" if x > 0.98 else "middle"
            self.text((x, self.floor + 20), said, "tick", anchor)

    def mark(self, at: XY, said: str) -> None:
        """Label the worst point, given in shares and in the value's unit."""
        x, y = at[0], self.y(at[1])
        self.dot((x, y), 5, "worst")
        beside = 0 if 0.3 <= x <= 0.7 else (10 if x < 0.3 else -10)
        self.text((x, y - 12 if not beside else y - 8), said, "said worst", dx=beside)


def style(names: Sequence[str], name: str) -> str:
    """Return the style of one of several series: they are told apart by their strokes, not by colour alone."""
    return f"s{min(list(names).index(name), 3)}"


def thinned(count: int, most: int, kept: Sequence[int] = ()) -> list[int]:
    """Return which of ``count`` rows are shown where there is room for ``most``, evenly spaced, and those to be kept.

    >>> thinned(3, 10), thinned(101, 5, [33])
    ([0, 1, 2], [0, 25, 33, 50, 75, 100])
    """
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)} | set(kept))
