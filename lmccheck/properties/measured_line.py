"""A straight line that was measured: its points, both original endpoints, and how high it is over their chord."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmccheck.evaluate.line import Point, barrier, chord, sample
from lmccheck.finding import Curve, End, Failure, Seen
from lmccheck.properties.remarks import measured_on

if TYPE_CHECKING:
    from lmccheck.evaluate.segment import Segment
    from lmccheck.store.data import Data

LOG = logging.getLogger("lmccheck")
REFINEMENTS = {"dev": 0, "ci": 2, "thorough": 5}  # rounds of two extra points beside the worst t


@dataclass(frozen=True)
class Line:
    """Points in order of t, over the chord between the losses of the original endpoints."""

    points: list[Point]
    a: End
    b: End

    @property
    def highest(self) -> tuple[float, float]:
        """The barrier, and the t at which it is."""
        return barrier(self._losses, self.a.loss, self.b.loss)

    @property
    def worst(self) -> Point:
        """The point at which the barrier is."""
        return next(point for point in self.points if point.t == self.highest[1])

    @property
    def middle(self) -> End:
        """What a merge of equal shares would be, or the point that is nearest to it."""
        found = min(self.points, key=lambda point: abs(point.t - 0.5))
        return End(f"at t = {found.t:.4g}", found.loss, found.error)

    @property
    def over_ends(self) -> float:
        """The barrier over the chord between the line's own ends: what interpolation alone costs."""
        return barrier(self._losses, self.points[0].loss, self.points[-1].loss)[0]

    @property
    def excess(self) -> float:
        """The largest loss above that of the worse endpoint, infinite where one is not finite."""
        losses = [loss for _, loss in self._losses]
        return max(losses) - max(self.a.loss, self.b.loss) if all(map(math.isfinite, losses)) else math.inf

    @property
    def errors(self) -> list[float] | None:
        """The 0-1 errors, where every point has one."""
        found = [point.error for point in self.points if point.error is not None]
        return found if len(found) == len(self.points) else None

    @property
    def error_barrier(self) -> float | None:
        """The barrier of 0-1 errors, where there are any."""
        errors, at_a, at_b = self.errors, self.a.error, self.b.error
        if errors is None or at_a is None or at_b is None:
            return None
        return barrier([(point.t, error) for point, error in zip(self.points, errors, strict=True)], at_a, at_b)[0]

    @property
    def _losses(self) -> list[tuple[float, float]]:
        return [(point.t, point.loss) for point in self.points]

    def curve(self, naive: Line | None = None) -> Curve:
        """Return the line as a report shows it, beside the one with nothing aligned."""
        t, losses = (list(column) for column in zip(*self._losses, strict=True))
        if naive is None:
            return Curve(t, losses, self.errors)
        return Curve(t, losses, self.errors, [point.loss for point in naive.points], naive.errors)

    def failure(self, subject: str, what: str, formula: str, data: Data, remarks: list[str], **more: Any) -> Failure:
        """Return why the line is too high; ``formula`` is what lies at t, ``remarks`` belong beside the barrier."""
        worst = self.worst
        error = f", 0-1 error {worst.error:.4g}" if self.errors is not None else ""
        return Failure(
            subject,
            what,
            "barrier",
            f"t = {worst.t:.4g} of θ_t = {formula}, loss {worst.loss:.4g}{error}",
            measured_on(data),
            [Seen(loss - chord(t, self.a.loss, self.b.loss), f"at t = {t:.4g}") for t, loss in self._losses],
            "points",
            remarks,
            **more,
        )


def measure_line(between: Segment, points: int, profile: str, a: End, b: End) -> Line:
    """Measure a segment on a grid of ``points``, refined around the worst t as ``profile`` says."""
    return Line(sample(lambda t: measure_point(between, t), points, REFINEMENTS[profile], a.loss, b.loss), a, b)


def measure_point(between: Segment, t: float) -> Point:
    """Measure a segment at t."""
    found = between.measure(t)
    LOG.info("%s: t = %.4g, loss %.4g", between.evaluator.network.name, t, found.loss)
    return Point(t, found.loss, found.error)
