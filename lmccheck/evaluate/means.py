"""Weighted means of many weights, summed in float64 as each is read, and the losses of the mean and of leaving one out.

Peak memory does not grow with the number of models: one sum or two, the model that is added, the network that runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lmccheck.evaluate.evaluator import Evaluator

Theta = Mapping[str, Tensor]


class RunningMean:
    """Σ w_k·θ_k / Σ w_k, kept as a float64 sum; tensors of integers are those of the first model added.

    What is ±inf in one model (a mask, which all share) stays as it is. Names that share a tensor are summed once.

    >>> mean = RunningMean()
    >>> mean.add({"w": torch.tensor([1.0])}, 3)
    >>> mean.add({"w": torch.tensor([5.0])}, 1)
    >>> mean.at()["w"]
    tensor([2.])
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._same: dict[str, str] = {}  # the first name of each name's tensor

    def add(self, theta: Theta, weight: float = 1.0) -> None:
        """Add a model; one of weight 0 changes nothing but what the first model says of integers."""
        self._begin(theta)
        self.weight += weight
        for name, total in self._sums.items():
            if weight and total.is_floating_point():
                _plus(total, theta[name], weight)

    def at(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the mean, floating tensors in ``dtype``, by default that of the first model's."""
        return self._divided(self._sums.__getitem__, self.weight, dtype)

    def _divided(
        self, total: Callable[[str], Tensor], weight: float, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        found = {}
        for name, own in self._sums.items():
            if own.is_floating_point():
                value = total(name)
                value = torch.where(value.isinf(), value, value / weight) if _infinite(value) else value / weight
                found[name] = value.to(dtype or self._dtypes[name])
            else:
                found[name] = own
        return {name: found[first] for name, first in self._same.items()}

    def _begin(self, theta: Theta) -> None:
        if self._same:
            return
        first: dict[int, str] = {}
        for name, tensor in theta.items():
            self._same[name] = first.setdefault(id(tensor), name)
            if self._same[name] != name:
                continue
            self._dtypes[name] = tensor.dtype
            self._sums[name] = torch.zeros(tensor.shape, dtype=torch.float64) if tensor.is_floating_point() else tensor


class MeanWithout(RunningMean):
    """A running mean, and that of all models but one: also where the one is larger than all others by any factor.

    Of each number the largest term and the sum of the others are kept apart: nothing is taken out of a sum that is
    smaller than the rounding of what is taken out.

    >>> mean = MeanWithout()
    >>> for value in (1.0, 1e30, 3.0):
    ...     mean.add({"w": torch.tensor([value])})
    >>> mean.without({"w": torch.tensor([1e30])}, 1.0, others=2.0)["w"]
    tensor([2.])
    """

    def __init__(self) -> None:
        super().__init__()
        self._tops: dict[str, Tensor] = {}  # the terms that are largest; the sums are those of all others

    def add(self, theta: Theta, weight: float = 1.0) -> None:
        """Add a model; one of weight 0 changes nothing but what the first model says of integers."""
        self._begin(theta)
        self.weight += weight
        for name, rest in self._sums.items():
            if weight and rest.is_floating_point():
                term = weight * theta[name].to(rest.dtype)
                top = self._tops.setdefault(name, torch.zeros_like(rest))
                larger = term.abs() > top.abs()
                rest.add_(torch.where(larger, top, term))
                top.copy_(torch.where(larger, term, top))

    def at(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the mean, floating tensors in ``dtype``, by default that of the first model's."""
        return self._divided(self._total, self.weight, dtype)

    def without(
        self, theta: Theta, weight: float, others: float, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Return the mean of all but a model that was added with this weight; ``others`` is the sum of theirs."""
        if not weight:
            return self._divided(self._total, others, dtype)
        return self._divided(lambda name: self._total(name, weight * theta[name].double()), others, dtype)

    def _total(self, name: str, less: Tensor | None = None) -> Tensor:
        top, rest = self._tops[name], self._sums[name]
        if less is None:
            return torch.where(top.isinf(), top, top + rest)
        return torch.where(less == top, rest, torch.where(top.isinf(), top, top + (rest - less)))


def _plus(total: Tensor, tensor: Tensor, weight: float) -> Tensor:
    """Add weight·tensor to a sum, in place."""
    if _infinite(total) or _infinite(tensor):
        there = torch.where(total.isinf(), total, total + weight * tensor.double())
        return total.copy_(torch.where(tensor.isinf(), tensor.double(), there))
    return total.add_(tensor.to(total.dtype), alpha=weight)


def _infinite(tensor: Tensor) -> bool:
    return not bool(tensor.sum().isfinite()) and bool(tensor.isinf().any())


@dataclass(frozen=True)
class MeanLosses:
    """Losses of n models, of their weighted mean, and of the n means that leave one model out each.

    ``weights`` sum to 1. ``without`` is None for the model that has all the weight. ``own`` and ``each``: losses of
    samples, (m,) float64, of every model and of the mean of all.
    """

    weights: list[float]
    losses: list[float]
    errors: list[float] | None
    loss: float
    error: float | None
    without: list[float | None]
    own: Sequence[Tensor] = field(default=(), repr=False)
    each: Tensor | None = field(default=None, repr=False)

    @property
    def chord(self) -> float:
        """Σ w_k·L(θ_k): the loss that the mean would have where the loss is linear between the models."""
        return sum(weight * loss for weight, loss in zip(self.weights, self.losses, strict=True))

    @property
    def height(self) -> float:
        """By how much the mean lies above the chord."""
        return self.loss - self.chord

    def height_without(self, k: int) -> float | None:
        """By how much the mean of the others lies above theirs; None where the others have no weight."""
        others = [(w, own) for i, (w, own) in enumerate(zip(self.weights, self.losses, strict=True)) if i != k]
        loss, rest = self.without[k], math.fsum(w for w, _ in others)
        return None if loss is None or not rest else loss - math.fsum(w * own for w, own in others) / rest


def mean_losses(
    evaluator: Evaluator,
    models: Callable[[], Iterable[tuple[str, Theta]]],
    weights: Sequence[float],
    *,
    reestimate: bool,
    each: bool = True,
    known: MeanLosses | None = None,
) -> MeanLosses:
    """Measure n models, their mean and the n means without one: 2n + 1 passes over the data, each model read twice.

    ``models()`` yields names and weights one after the other, and may read each as it is asked for. ``known``: the same
    models as they were given, of which their own losses are taken. ``each``: whether the means without one are asked
    for. ``reestimate``: BatchNorm statistics of every mean are taken afresh. Raises SourceError where a model's loss is
    not finite.
    """
    mean: RunningMean = MeanWithout() if each else RunningMean()
    ends = []
    for (name, theta), weight in zip(models(), weights, strict=True):
        if known is None:
            ends.append(evaluator.endpoint(theta, name, name))
        mean.add(theta, weight)
        del theta
    measure, dtype = partial(evaluator.measure, reestimate=reestimate), evaluator.dtype
    found = measure(evaluator.weights(mean.at(dtype)), label="the mean of all")
    without: list[float | None] = []
    for k, (name, theta) in enumerate(models() if each else ()):
        assert isinstance(mean, MeanWithout)
        rest = math.fsum(weight for i, weight in enumerate(weights) if i != k)
        if rest > 0:
            others = evaluator.weights(mean.without(theta, weights[k], rest, dtype))
            without.append(measure(others, label=f"the mean without {name}").loss)
        else:
            without.append(None)
        del theta
    errors = [end.error for end in ends if end.error is not None]
    return MeanLosses(
        [weight / mean.weight for weight in weights],
        [end.loss for end in ends] if known is None else known.losses,
        (errors if len(errors) == len(ends) else None) if known is None else known.errors,
        found.loss,
        found.error,
        without,
        [end.losses for end in ends] if known is None else known.own,
        found.losses,
    )
