"""A straight line that was measured: its points, both original endpoints, and how high it is over their chord."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmccheck.evaluate.line import Point, barrier, chord, sample
from lmccheck.finding import Compared, Curve, End, Failure, Seen
from lmccheck.properties.remarks import measured_on

if TYPE_CHECKING:
    from lmccheck.data.load import Data
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.evaluate.segment import Segment
    from lmccheck.evaluate.slices import Slices

LOG = logging.getLogger("lmccheck")
REFINEMENTS = {"dev": 0, "ci": 2, "thorough": 5}  # rounds of two extra points beside the worst t


@dataclass(frozen=True)
class Line:
    """Points in order of t, over the chord between the losses of the original endpoints.

    ``parts``: both endpoints on each part of the samples by its name, where they are told apart.
    """

    points: list[Point]
    a: End
    b: End
    parts: Mapping[str, tuple[End, End]] = field(default_factory=dict)

    def part(self, name: str) -> Line:
        """Return the line of one part of the samples."""
        k = list(self.parts).index(name)
        return Line([Point(point.t, point.parts[k], None) for point in self.points], *self.parts[name])

    @property
    def worst_part(self) -> str | None:
        """The part of the highest barrier, None where the samples are not told apart."""
        return max(self.parts, key=lambda name: self.part(name).highest[0], default=None)

    @property
    def known(self) -> str:
        """How the barrier is known, in a clause."""
        return f"sampled at {len(self.points)} points"

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
        ends = [self.a.loss, self.b.loss]
        if naive is None:
            return Curve(t, losses, self.errors, ends=ends)
        return Curve(t, losses, self.errors, [point.loss for point in naive.points], naive.errors, ends)

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


def measure_line(between: Segment, points: int, profile: str, a: End, b: End, apart: Apart | None = None) -> Line:
    """Measure a segment on a grid of ``points``, refined around the worst t as ``profile`` says.

    ``apart``: the parts of the samples, of which the worst is looked for.
    """
    ends = apart.ends if apart is not None else {}

    def worst(known: Sequence[Point]) -> float:
        line = Line(list(known), a, b, ends)
        part = line.worst_part
        return (line if part is None else line.part(part)).highest[1]

    def measure(t: float) -> Point:
        return measure_point(between, t, apart)

    return Line(sample(measure, points, REFINEMENTS[profile], a.loss, b.loss, worst), a, b, ends)


def measure_point(between: Segment, t: float, apart: Apart | None = None) -> Point:
    """Measure a segment at t."""
    found = between.measure(t)
    LOG.info("%s: t = %.4g, loss %.4g", between.evaluator.network.name, t, found.loss)
    parts = () if apart is None else tuple(apart.slices.means(found.losses).tolist())
    return Point(t, found.loss, found.error, parts, found.losses)


def compared(
    points: Sequence[Point], own: tuple[Any, Any], place: str = "", apart: Apart | None = None
) -> list[Compared]:
    """Return points of a line beside the chord, sample by sample; ``own``: what both endpoints lose, (n,) each.

    A point at which every sample has an endpoint's own loss is that endpoint, whatever the samples. ``place``: what
    belongs behind its t.
    """
    found = []
    for point in points:
        end = {0.0: 0, 1.0: 1}.get(point.t)
        if point.losses is None or (end is not None and bool((point.losses == own[end]).all())):
            continue
        columns, where = (point.losses, chord(point.t, *own), *own), f"at t = {point.t:.4g}{place}"
        for part, (losses, level, a, b) in _told_apart(columns, apart).items():
            found.append(Compared(where + part, losses, (level,), (a, b), fixed=not point.chosen))
    return found


def _told_apart(columns: Sequence[Any], apart: Apart | None) -> Mapping[str, Sequence[Any]]:
    """Return (n,) columns as those of every part of the samples, by how it is called."""
    if apart is None:
        return {"": columns}
    parts = apart.slices.each(lambda which: [column[which] for column in columns])
    return {f" on {apart.slices.by} {name}": of_part for name, of_part in parts.items()}


@dataclass(frozen=True)
class Apart:
    """The samples in parts, and both endpoints on each of them."""

    slices: Slices
    ends: Mapping[str, tuple[End, End]]

    @classmethod
    def of(cls, slices: Slices, first: Measured, second: Measured) -> Apart:
        """Return the parts with what endpoints were measured to lose on them."""
        means = [slices.means(found.losses).tolist() for found in (first, second)]
        return cls(slices, {name: (End("a", a), End("b", b)) for name, a, b in zip(slices.names, *means, strict=True)})

    def facts(self, line: Line) -> dict[str, Any]:
        """Return what a report says of the parts; JSON-able."""
        counts = dict(zip(self.slices.names, self.slices.counts, strict=True))
        parts = {name: line.part(name) for name in counts}
        return {
            "by": self.slices.by,
            "barrier_of_all": line.highest[0],
            "parts": {
                name: {
                    "samples": counts[name],
                    "barrier": part.highest[0],
                    "worst_t": part.highest[1],
                    "loss_a": part.a.loss,
                    "loss_b": part.b.loss,
                }
                for name, part in parts.items()
            },
        }

    def note(self, line: Line) -> str:
        """Say which part is judged, of how many, and what the mean over all says."""
        worst = str(line.worst_part)
        count = self.slices.counts[self.slices.names.index(worst)]
        total = len(self.slices.names)
        return (
            f"judged by the worst of {total} parts by {self.slices.by}: {worst}, {count} samples; over all samples the "
            f"barrier is {line.highest[0]:.4g}; the worst of {total} is more often high by chance than one by itself"
        )


SHOWN = 3  # layers that are named


def carried_by(costs: Mapping[str, float], end: str, unit: str) -> list[str]:
    """Say which layers carry a barrier, by what each costs when it alone is moved from an end to the worst t.

    >>> carried_by({"hidden": 0.75, "head": 0.001}, "a", "nats")
    ['moved there from a alone, hidden costs 0.75 and head 0.001 nats']
    """
    ranked = sorted(costs, key=lambda layer: -costs[layer])[:SHOWN]
    if not ranked:
        return []
    first, *others = [f"{layer} {'' if k else 'costs '}{costs[layer]:.4g}" for k, layer in enumerate(ranked)]
    named = f"{', '.join([first, *others[:-1]])} and {others[-1]}" if others else first
    more = f" ({len(costs) - SHOWN} more cost less)" if len(costs) > SHOWN else ""
    return [f"moved there from {end} alone, {named} {unit}{more}"]
