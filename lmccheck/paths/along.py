"""Losses along a path: looked for in the dtype that checkpoints are evaluated in, stated in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.line import Point, sample
from lmccheck.evaluate.points import interpolate, working_dtype
from lmccheck.network.pair import ModelPair
from lmccheck.paths.path import Path

ROUNDING = 1e-5  # of a mean loss in float32, generously

Seen = tuple[Point, ...]
Watch = Callable[[int, float, Any], None]  # segment counted from 0, where on it, the network's output


def height(loss: float) -> float:
    """A loss to compare by: what is no number is above all."""
    return math.inf if loss != loss else loss


class Along:
    """The losses of a pair's network at points of a path, on its evaluation data.

    ``reestimate``: BatchNorm statistics are taken afresh at every point; else they are weights of the path. ``watch``
    is given the network's output at every point.
    """

    def __init__(self, pair: ModelPair, path: Path, *, reestimate: bool = False, watch: Watch | None = None) -> None:
        self._pair, self._path, self._reestimate, self._watch = pair, path, reestimate, watch
        self.exact = Evaluator(pair.network, pair.theta_a, dtype=torch.float64)
        self._evaluators = [self.exact]

    @cached_property
    def working(self) -> Evaluator:
        """What points are looked for with: the exact one where checkpoints are float64 themselves."""
        thetas = self._pair.theta_a, self._pair.theta_b
        if working_dtype(*thetas) == self.exact.dtype:
            return self.exact
        self._evaluators.append(Evaluator(self._pair.network, *thetas))
        return self._evaluators[-1]

    @property
    def evaluations(self) -> int:
        """Passes over the evaluation data so far."""
        return sum(evaluator.evaluations for evaluator in self._evaluators)

    def at(self, number: int, s: float) -> Measured:
        """Return the losses at ``s`` of segment ``number``, counted from 0, in float64."""
        return self._measure(self.exact, number, s, self.exact.weights(self._path.between(number, s)))

    def _measure(self, evaluator: Evaluator, number: int, s: float, weights: Any) -> Measured:
        watch = self._watch
        return evaluator.measure(
            weights,
            reestimate=self._reestimate,
            label=f"segment {number + 1} of a path at {s:.4g}",
            watch=None if watch is None else lambda output: watch(number, s, output),
        )

    def largest(self, number: int, ends: tuple[float, float], points: int, rounds: int) -> tuple[float, float, Seen]:
        """Return the largest loss seen on one segment, where, and all points of it between the ends.

        ``ends`` are the losses at both, in float64; ``points`` and ``rounds`` as of ``evaluate.line.sample``.
        """
        working = self.working
        first, second = (working.weights(self._path.between(number, s)) for s in (0.0, 1.0))

        def measure(s: float) -> Point:
            if s in (0.0, 1.0):
                return Point(s, ends[int(s)], None)
            found = self._measure(working, number, s, interpolate(first, second, s))
            return Point(s, found.loss, found.error, losses=found.losses)

        found = sample(measure, points, rounds, 0.0, 0.0)
        inside = max((point for point in found if 0 < point.t < 1), key=lambda point: height(point.loss))
        seen = [(ends[0], 0.0), (ends[1], 1.0)]
        if working is self.exact:
            seen.append((inside.loss, inside.t))
        elif height(inside.loss) > max(map(height, ends)) * (1 - ROUNDING):
            exact = self.at(number, inside.t)
            again = Point(inside.t, exact.loss, exact.error, losses=exact.losses, chosen=inside.chosen)
            found[found.index(inside)] = again
            seen.append((exact.loss, inside.t))
        top, where = max(seen, key=lambda item: height(item[0]))
        return top, where, tuple(found[1:-1])
