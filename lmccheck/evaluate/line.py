"""The straight segment between two weight vectors: its loss curve on a grid, and the barrier over the chord."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

BARRIER = (
    "max over t of L((1-t)·θ_A + t·π(θ_B)) − [(1-t)·L(θ_A) + t·L(θ_B)], "
    "L of the original endpoints (Entezari et al. 2022)"
)


@dataclass(frozen=True)
class Point:
    """The network at ``t`` on the segment: mean loss, and mean 0-1 error where the loss has one.

    ``parts``: the mean loss over each part of the samples, where they are told apart. ``losses``: those of samples,
    (n,) float64, where they are kept. ``chosen``: whether t was chosen by losses at other points.
    """

    t: float
    loss: float
    error: float | None
    parts: tuple[float, ...] = ()
    losses: Any = field(default=None, repr=False, compare=False)
    chosen: bool = False


def chord(t: float, at_a: float, at_b: float) -> float:
    """Return (1−t)·at_a + t·at_b, exact at both ends and where both are equal."""
    return at_a + t * (at_b - at_a) if t <= 0.5 else at_b - (1 - t) * (at_b - at_a)


def barrier(points: Sequence[tuple[float, float]], at_a: float, at_b: float) -> tuple[float, float]:
    """Return (max height over the chord, t where it is) of (t, value) points; NaN counts as infinitely high.

    >>> barrier([(0.0, 1.0), (0.5, 3.0), (1.0, 2.0)], 1.0, 2.0)
    (1.5, 0.5)
    """
    heights = [(float("inf") if value != value else value - chord(t, at_a, at_b), t) for t, value in points]
    return max(heights, key=lambda item: item[0])


def grid(points: int) -> list[float]:
    """Return ``points`` equispaced values from 0 to 1, both included."""
    return [k / (points - 1) for k in range(points)]


def sample(
    measure: Callable[[float], Point],
    points: int,
    rounds: int,
    at_a: float,
    at_b: float,
    worst: Callable[[Sequence[Point]], float] | None = None,
) -> list[Point]:
    """Measure a grid, then ``rounds`` times the two midpoints beside the worst t; return all points in order of t.

    A sampled maximum is a lower bound of the true one; every round halves the cell around the worst point, which is
    that of the barrier unless ``worst`` says another.
    """
    found = {t: measure(t) for t in grid(points)}
    step = 1 / (points - 1)
    for _ in range(rounds):
        step /= 2
        known = list(found.values())
        at = barrier([(p.t, p.loss) for p in known], at_a, at_b)[1] if worst is None else worst(known)
        for t in (at - step, at + step):
            if 0 < t < 1 and t not in found:
                found[t] = replace(measure(t), chosen=True)
    return [found[t] for t in sorted(found)]
