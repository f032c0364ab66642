"""Networks measured on samples drawn in a seeded order, until it is settled that one of them is too high."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmccheck.data.load import Batch, Data
from lmccheck.errors import SourceError
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.stats import at_least, settled_after

FIRST = 128  # samples of each network in the first round; each later round draws of the better half of them
GROWTH = 4  # times as many as the round before
SHARE = 0.1  # of what measuring everything costs: more is not drawn, so that what stays open costs little more
CONFIDENCE = 0.95
UNLIKELY = 3.0  # standard errors below what is allowed: such a network is not drawn of any more

Values = NDArray[np.float64]


def require_none_negative(loss: str, data: Data, values: Values, where: str) -> None:
    """Raise SourceError where a loss is not what it says: no bet on a mean is exact that may be paid for twice."""
    if (values < 0).any():
        raise SourceError(
            f"loss {loss!r} on {data.origin}: {values.min():.4g} at {where}, expected none below 0, as its attribute "
            "lower = 0 says; mend: correct either, or leave early_fail out"
        )


class Order:
    """Evaluation samples in an order that a seed decides, and nothing in what is measured.

    Units of it are samples, or batches where the data came in batches: ``index``, (n,), are the samples in order,
    ``edges``, (units + 1,), where in it each unit begins.
    """

    def __init__(self, evaluator: Evaluator, seed: int) -> None:
        self.data = evaluator.network.data
        self._most = max(batch.samples for batch in evaluator.batches)
        generator = torch.Generator().manual_seed(seed)
        if self.data.rebatch:
            self.index = torch.randperm(self.data.samples, generator=generator)
            self.edges = np.arange(self.data.samples + 1)
            return
        self._order = torch.randperm(len(self.data.batches), generator=generator).tolist()
        sizes = [batch.samples for batch in self.data.batches]
        begins = np.cumsum([0, *sizes])
        self.index = torch.cat([torch.arange(begins[k], begins[k + 1]) for k in self._order])
        self.edges = np.cumsum([0, *(sizes[k] for k in self._order)])

    def until(self, samples: int) -> int:
        """Return how many units, from the first, hold at least so many samples, or all there are."""
        return min(int(np.searchsorted(self.edges, samples)), len(self.edges) - 1)

    def within(self, samples: int) -> int:
        """Return how many units, from the first, hold at most so many samples."""
        return max(int(np.searchsorted(self.edges, samples, side="right")) - 1, 0)

    def batches(self, start: int, stop: int) -> list[Batch]:
        """Return some units, from the one numbered ``start`` in order, in batches no larger than usual."""
        if not self.data.rebatch:
            return [self.data.batches[k] for k in self._order[start:stop]]
        parts = (self.index[k : min(k + self._most, stop)] for k in range(start, stop, self._most))
        return [self.data.batches[0].take(part) for part in parts]


@dataclass(frozen=True)
class Gate:
    """A mean that is limited: Σ w_i·x_i / Σ w_i with ``weights`` w, (n,) float64 ≥ 0, over samples in their own order.

    A part of the samples has weights of 1 and 0. ``name``: what it is called.
    """

    weights: Tensor = field(repr=False)
    name: str = ""

    def sums(self, order: Order) -> Values:
        """Return what each unit weighs, (units,), in order."""
        return np.add.reduceat(self.weights.numpy()[order.index.numpy()], order.edges[:-1])


@dataclass(frozen=True)
class Place:
    """A network that is tried: what it is called, its weights ready to be measured, the most that each gate allows."""

    label: str
    weights: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    allowed: Sequence[float]


@dataclass(frozen=True)
class Asked:
    """What is tested of every network: the ``values``, (n,) float64 ≥ 0, of what was measured, through ``gates``.

    ``error``: how likely it may be at most that one is called too high that is not. ``largest``: what no value exceeds,
    infinite where nothing is known. ``reestimate`` BatchNorm statistics, at each network that is looked at; ``setup``:
    what preparing one costs beside, in samples.
    """

    values: Callable[[Measured], Tensor]
    gates: Sequence[Gate]
    error: float
    largest: float = math.inf
    reestimate: bool = False
    setup: int = 0


@dataclass(frozen=True)
class Settled:
    """That the network at ``place`` is too high for one of the ``gates``, by its number.

    ``after`` so many ``of`` all samples of the gate; ``mean`` is an estimate from ``drawn`` of them, with an
    ``interval`` of 95 %, whose upper end is infinite where values have no bound.
    """

    place: Place
    gate: int
    after: int
    drawn: int
    of: int
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Tried:
    """What came of trying: ``settled``, None where nothing was; what that took in ``samples``, of how many places."""

    settled: Settled | None
    samples: int
    places: int


def settle(evaluator: Evaluator, places: Sequence[Place], asked: Asked, seed: int, passes: float) -> Tried:
    """Draw samples for networks, the likely worst first, until one of them is too high, as ``betting`` says.

    All are looked at on the same few samples first, then the worse half of them on more (successive halving, Karnin et
    al. 2013), at the cost of at most SHARE of what measuring everything takes, ``passes`` over the data. How many are
    tried at all is fixed before anything is drawn, and the error is shared equally by them and their gates (union
    bound). Raises SourceError for a negative value.
    """
    order = Order(evaluator, seed)
    samples = order.data.samples
    budget = SHARE * passes * (samples + asked.setup)
    most = int(budget / 2 // (asked.setup + min(FIRST, samples)))
    tried = [Trial(evaluator, order, place, asked) for place in places[: max(1, most)]]
    share = asked.error / (len(tried) * len(asked.gates))
    live, size, spent = tried, FIRST, 0
    while live:
        for trial in live:
            affordable = trial.samples + int(budget) - spent - asked.setup
            stop = min(order.until(trial.samples + size), order.within(affordable))
            if order.edges[stop] <= trial.samples:
                return Tried(None, spent, len(tried))
            spent += asked.setup + int(order.edges[stop]) - trial.samples
            trial.draw(stop)
            if (found := trial.settled(share)) is not None:
                return Tried(found, spent, len(tried))
        live = [trial for trial in sorted(live, key=lambda trial: -trial.excess) if trial.open]
        live, size = live[: max(1, len(live) // 2)], GROWTH * size
    return Tried(None, spent, len(tried))


class Trial:
    """What was drawn of one network so far."""

    def __init__(self, evaluator: Evaluator, order: Order, place: Place, asked: Asked) -> None:
        self._evaluator, self._order, self.place, self._asked = evaluator, order, place, asked
        self._weighs = [gate.sums(order) for gate in asked.gates]  # (units,) each
        self._values = np.empty(0)
        self._units = 0

    @property
    def samples(self) -> int:
        """How many samples were drawn."""
        return len(self._values)

    def draw(self, stop: int) -> None:
        """Measure the units up to the one numbered ``stop``."""
        found = self._evaluator.measure(
            self.place.weights(),
            reestimate=self._asked.reestimate,
            label=self.place.label,
            drawn=self._order.batches(self._units, stop),
        )
        values = self._asked.values(found).numpy()
        network = self._evaluator.network
        require_none_negative(network.loss.name, network.data, values, self.place.label)
        self._values, self._units = np.concatenate([self._values, values]), stop

    def drawn(self, gate: int) -> tuple[Values, Values]:
        """Return what units of a gate have, and at most can have, as shares of its mean; both (units drawn of it,).

        The mean of the first over all units that weigh anything, drawn or not, is the gate's.
        """
        weighs = self._weighs[gate]
        scale = np.count_nonzero(weighs) / weighs.sum()
        weights = self._asked.gates[gate].weights.numpy()[self._order.index[: self.samples].numpy()]
        with np.errstate(invalid="ignore"):  # what is infinite and weighs nothing
            products = np.where(weights > 0, weights * self._values, 0.0)
        sums = np.add.reduceat(products, self._order.edges[: self._units])
        own = weighs[: self._units]
        return scale * sums[own > 0], scale * own[own > 0]

    def settled(self, error: float) -> Settled | None:
        """Return what is settled at such an error of each gate; None where nothing is."""
        for k, gate in enumerate(self._asked.gates):
            weighs = self._weighs[k]
            count, (drawn, most) = int(np.count_nonzero(weighs)), self.drawn(k)
            after = settled_after(drawn, count, self.place.allowed[k], error) if len(drawn) else None
            if after is None:
                continue
            bounded = math.isfinite(self._asked.largest)
            unsure = (1 - CONFIDENCE) / (1 + bounded) * error / self._asked.error  # shared as the error is
            low, high = at_least(drawn, count, unsure), math.inf
            if bounded:
                high = self._asked.largest - at_least(self._asked.largest * most - drawn, count, unsure)
            unit = np.flatnonzero(weighs[: self._units] > 0)[after - 1]
            in_order = (gate.weights > 0)[self._order.index]
            until, seen, total = (int(in_order[:n].sum()) for n in (self._order.edges[unit + 1], self.samples, None))
            return Settled(self.place, k, until, seen, total, float(drawn.mean()), (low, high))
        return None

    @property
    def excess(self) -> float:
        """By how much it seems too high, as a share of what is allowed, through the gate where that is most."""
        shares = []
        for k, allowed in enumerate(self.place.allowed):
            drawn, _ = self.drawn(k)
            shares.append(float(drawn.mean()) / allowed - 1 if len(drawn) and allowed > 0 else math.inf)
        return max(shares)

    @property
    def open(self) -> bool:
        """Whether there is more to draw, and it is not clearly low enough."""
        if self.samples == self._order.data.samples:
            return False
        for k, allowed in enumerate(self.place.allowed):
            drawn, _ = self.drawn(k)
            if len(drawn) < 2 or drawn.mean() + UNLIKELY * drawn.std() / math.sqrt(len(drawn)) >= allowed:
                return True
        return False
