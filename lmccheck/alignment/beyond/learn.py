"""Learning maps beyond permutations by gradients, the order of units held: its jumps cost maps more than they gain.

The matrices of Theus et al. 2025, moved by Adam in coordinates (``maps``) in which each keeps its kind: the function is
kept at every step. Differs in that training starts from what was fitted in closed form, that the loss is of
points near the middle of the segment, where it is highest, instead of anywhere on it, and that the step is chosen on
calibration data that is held out. Maps have many numbers, width²/2 for a stream alone: a little calibration data they
learn by heart, and more of it helps more than more steps. ``Training.apart`` says how far apart both kinds of data are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.methods.learned import BATCH, HELD_OUT, HELD_OUT_TARGETS, Training, targets_each
from lmccheck.data.load import Batch
from lmccheck.evaluate.gradient import Gradient
from lmccheck.evaluate.points import interpolate
from lmccheck.evaluate.split import split
from lmccheck.symmetry.spec import Permutation

STEPS = 800
WARMUP = 20  # steps over which the rate rises; from the second half on it falls to 0
RATE = 0.2  # over the width of a map, per step
BETAS = (0.9, 0.98)
TARGETS = 2**11  # numbers to predict at most, of one batch
SAMPLES = 2**15  # of calibration data, held-out ones included
MIDDLE = (0.4, 0.6)  # where on the segment the loss is taken
EVERY = 50


@dataclass(frozen=True)
class _Judge:
    """The loss half-way, and by how much it is above the mean of the ends, on some batches."""

    gradient: Gradient
    batches: Sequence[Batch]
    ends: float

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        return mean_loss(self.gradient, weights, self.batches)

    def excess(self, weights: Mapping[str, Tensor]) -> float:
        return self(weights) - self.ends


def mean_loss(gradient: Gradient, weights: Mapping[str, Tensor], batches: Sequence[Batch]) -> float:
    """Return the mean loss of ``weights`` over the samples of the batches."""
    with torch.no_grad():
        total = sum(float(gradient.loss(weights, batch)) * batch.samples for batch in batches)
    return total / sum(batch.samples for batch in batches)


def learn_maps(problem: Problem, start: Permutation, maps: Maps, *, steps: int | None = None) -> Training:
    """Train ``maps`` from what they are, and leave them as they were at the step of the lowest loss held out.

    θ_B is then maps·start·θ_B. ``losses`` of what is returned are half-way, on held-out samples. Raises SourceError for
    fewer than two calibration samples, or where the network or the loss cannot be differentiated.
    """
    steps = STEPS if steps is None else steps
    pair, network = problem.pair, problem.pair.network
    gradient = Gradient(network, pair.theta_a, pair.theta_b)
    a, b = (gradient.weights(w) for w in (pair.theta_a, problem.spec.apply(pair.theta_b, start)))
    each = targets_each(network.require_labelled("learning maps"))
    size = max(1, min(BATCH, TARGETS // each))
    parts = split(network, "maps", SAMPLES, problem.seed, most=size)
    count = max(1, min(HELD_OUT, HELD_OUT_TARGETS // each) // parts.held[0].samples)

    def judge(batches: Sequence[Batch]) -> _Judge:
        some = tuple(islice(batches, count))
        return _Judge(gradient, some, sum(mean_loss(gradient, end, some) for end in (a, b)) / 2)

    def half_way() -> dict[str, Tensor]:
        with torch.no_grad():
            return interpolate(a, maps.apply(b, a), 0.5)

    held = judge(parts.held)
    fitted = judge(parts.fit[: len(held.batches)])
    losses, best_step, learned = [held(half_way())], 0, maps.copy()
    rates = [RATE / p.shape[-1] for p in maps.parameters()]
    optimiser = torch.optim.Adam([{"params": [p]} for p in maps.parameters()], betas=BETAS)
    generator = torch.Generator().manual_seed(problem.seed)
    for step, batch in zip(range(1, steps + 1), cycle(parts.fit)):
        for settings, first in zip(optimiser.param_groups, rates, strict=True):
            settings["lr"] = first * min(1.0, step / WARMUP, 2 * (1 - (step - 1) / steps))
        low, high = MIDDLE
        t = low + (high - low) * float(torch.rand((), generator=generator))
        with torch.enable_grad():
            loss = gradient.loss(interpolate(a, maps.apply(b, a), t), batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimiser.step()
        if step % EVERY == 0 or step == steps:
            losses.append(held(half_way()))
            if losses[-1] == min(losses):
                best_step, learned = step, maps.copy()
    maps.restore(learned)
    middle = half_way()
    apart = {"held_out": held.excess(middle), "fitted_to": fitted.excess(middle), "ends": held.ends}
    judged = sum(batch.samples for batch in held.batches)
    return Training(problem.spec.identity(), tuple(losses), best_step, judged, apart)
