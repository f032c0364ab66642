"""Losses on calibration data: by which alignments are chosen, so that no verdict's data is looked at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.data.batches import count_first, first_samples, rebatched, targets_each
from lmccheck.data.load import Data
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.gradient import Gradient
from lmccheck.evaluate.points import interpolate
from lmccheck.network.pair import ModelPair

SAMPLES = 2048
TARGETS = 2**15  # numbers to predict, of which so many samples are enough: a text has as many as tokens
FEWEST = 256  # samples, however many numbers each has
BATCH = 512  # samples at most, of those on which networks half-way are compared
POINTS = (0.25, 0.5, 0.75)


def most_samples(data: Data) -> int:
    """Return how many samples are looked at, at most: fewer where each has many numbers to be predicted."""
    return min(SAMPLES, max(FEWEST, TARGETS // targets_each(data)))


def barrier_samples(data: Data) -> dict[str, int]:
    """Return how many samples CalibrationBarrier takes of how many; JSON-able."""
    return {"of": data.samples, "barriers": count_first(data, most_samples(data))}


class CalibrationBarrier:
    """max_t L(θ_t) − [(1−t)L(θ_A) + tL(θ_B)] over a few t, on the first samples of a pair's calibration data."""

    def __init__(self, pair: ModelPair) -> None:
        data = pair.network.require_labelled("comparing alignments")
        first = first_samples(
            data, most_samples(data)
        )  # BatchNorm's statistics too: those of the samples the loss is taken on
        self._evaluator = Evaluator(pair.measured_on(first, first).network, pair.theta_a, pair.theta_b)
        self._a = self._evaluator.weights(pair.theta_a)
        ends = (self._a, self._evaluator.weights(pair.theta_b))
        self._ends = [self._evaluator.measure(end, reestimate=False, label="an endpoint").loss for end in ends]

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """Return the barrier between θ_A and ``weights``, in the loss's unit; never below 0."""
        line = self._evaluator.line(self._a, self._evaluator.weights(weights))
        worst = 0.0
        for t in POINTS:
            loss = self._evaluator.measure(line.at(t), reestimate=True, label=f"the network at t = {t}").loss
            excess = loss - (1 - t) * self._ends[0] - t * self._ends[1]
            worst = max(worst, excess) if excess == excess else float("inf")
        return worst

    def rest(self) -> None:
        """Let go of memory until the next barrier."""
        self._evaluator.rest()


class HalfWayLoss:
    """The loss half-way to θ_A on the first calibration ``samples``, in batches whose statistics BatchNorm takes."""

    def __init__(self, pair: ModelPair, samples: int) -> None:
        data = pair.network.require_labelled("comparing networks half-way")
        self._gradient = Gradient(pair.network, pair.theta_a, pair.theta_b)
        self._a = self._gradient.weights(pair.theta_a)
        self._batches = rebatched(first_samples(data, samples), BATCH)

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """Return the mean loss of ½(θ_A + ``weights``), in the loss's unit; infinite where it is not a number."""
        with torch.no_grad():
            merged = interpolate(self._a, self._gradient.weights(weights), 0.5)
            losses = [float(self._gradient.loss(merged, batch)) * batch.samples for batch in self._batches]
        loss = sum(losses) / sum(batch.samples for batch in self._batches)
        return loss if loss == loss else float("inf")
