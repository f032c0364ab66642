"""Learning maps beyond permutations by gradients, the order of units held: its jumps cost maps more than they gain.

The matrices of Theus et al. 2025, each multiplied by exp(X) at every step with an X of its kind: the function is kept.
Differs in that training starts from what was fitted in closed form; that outputs are taught to go straight from A's to
B's (``Imitation``), near the middle of the segment, where the loss is highest, instead of anywhere on it; that X is the
orthogonal factor of the gradient's running mean (Muon, Jordan et al. 2024), which halves the steps that Adam needs; and
that the step is chosen by the loss on calibration data that is held out. Maps have many numbers, width²/2 for a stream
alone: a little calibration data they learn by heart, and more of it helps more than more steps. ``Training.apart`` says
how far apart both kinds of data are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from lmccheck.alignment.beyond.fit import polar
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.methods.learned import BATCH, HELD_OUT, HELD_OUT_TARGETS, Training
from lmccheck.data.batches import targets_each
from lmccheck.data.load import Batch
from lmccheck.evaluate.gradient import Gradient, differentiated
from lmccheck.evaluate.imitation import Imitation
from lmccheck.evaluate.points import interpolate
from lmccheck.evaluate.split import split
from lmccheck.symmetry.spec import Permutation

STEPS = 300
ROUNDS, LONGER = 8, 4  # over the data, where that takes more steps, up to so many times as many
WARMUP = 20  # steps over which the rate rises; from the second half on it falls to 0
RATE = 0.02  # radians that a stream turns at most, per step; the spectral norm of X
SCALE_RATE = 0.002  # of the logarithm of a scale, per step
MOMENTUM = 0.95
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
        return self.gradient.mean_loss(weights, self.batches)

    def excess(self, weights: Mapping[str, Tensor]) -> float:
        return self(weights) - self.ends


def learn_maps(problem: Problem, start: Permutation, maps: Maps, *, steps: int | None = None) -> Training:
    """Train ``maps`` from what they are, and leave them as they were at the step of the lowest loss held out.

    θ_B is then maps·start·θ_B. ``losses`` of what is returned are half-way, on held-out samples. Of a single sample
    nothing is learned. Raises SourceError where the network or the loss cannot be differentiated.
    """
    pair, network = problem.pair, problem.pair.network
    data = network.require_labelled("learning maps")
    if data.samples < 2:
        return Training(problem.spec.identity(), (), 0, 0)
    gradient = Gradient(network, pair.theta_a, pair.theta_b)
    a, b = (gradient.weights(w) for w in (pair.theta_a, problem.spec.apply(pair.theta_b, start)))
    each = targets_each(data)
    size = max(1, min(BATCH, TARGETS // each))
    parts = split(network, "maps", SAMPLES, problem.seed, most=size)
    steps = max(STEPS, min(LONGER * STEPS, ROUNDS * len(parts.fit))) if steps is None else steps
    count = max(1, min(HELD_OUT, HELD_OUT_TARGETS // each) // parts.held[0].samples)

    def judge(batches: Sequence[Batch]) -> _Judge:
        some = tuple(islice(batches, count))
        return _Judge(gradient, some, sum(gradient.mean_loss(end, some) for end in (a, b)) / 2)

    def half_way() -> dict[str, Tensor]:
        with torch.no_grad():
            return interpolate(a, maps.apply(b, a), 0.5)

    held = judge(parts.held)
    fitted = judge(parts.fit[: len(held.batches)])
    losses, best_step, learned = [held(half_way())], 0, maps.alone()
    taught = Imitation(gradient, a, b)
    descent = _Descent(maps)
    generator = torch.Generator().manual_seed(problem.seed)
    for step, batch in zip(range(1, steps + 1), cycle(parts.fit)):
        low, high = MIDDLE
        t = low + (high - low) * float(torch.rand((), generator=generator))
        with torch.enable_grad():
            loss = taught(interpolate(a, maps.apply(b, a), t), t, batch)
        if not bool(loss.isfinite()):
            break
        with differentiated(pair.network, "learning maps", "another method"):
            taken = descent.step(loss, min(1.0, step / WARMUP, 2 * (1 - (step - 1) / steps)))
        if not taken:
            break
        if step % EVERY == 0 or step == steps:
            losses.append(held(half_way()))
            if losses[-1] == min(losses):
                best_step, learned = step, maps.alone()
    maps.become(learned)
    middle = half_way()
    apart = {"held_out": held.excess(middle), "fitted_to": fitted.excess(middle), "ends": held.ends}
    judged = sum(batch.samples for batch in held.batches)
    return Training(problem.spec.identity(), tuple(losses), best_step, judged, apart)


class _Descent:
    """Moves maps down a loss, every matrix by a step of one size whatever its gradient's."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._momenta = [torch.zeros_like(p) for p in maps.parameters()]

    def step(self, loss: Tensor, share: float) -> bool:
        """Take a step of a ``share`` of the rates, and start the next from there; False where it leads nowhere."""
        parameters = list(self._maps.parameters())
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return False
        rotations = len(self._maps.turns)
        with torch.no_grad():
            for k, (parameter, momentum) in enumerate(zip(parameters, self._momenta, strict=True)):
                momentum.lerp_(gradients[k], 1 - MOMENTUM)
                ahead = torch.lerp(gradients[k], momentum, MOMENTUM)
                if k < rotations:
                    move = RATE / 2 * polar(ahead)  # a stream turns by exp(X - Xᵀ), and the gradient is antisymmetric
                elif parameter.ndim == 3:
                    move = RATE * polar(ahead)
                else:  # a complex number of a plane is a matrix of two by two, and its polar factor the number's sign
                    move = (RATE if parameter.is_complex() else SCALE_RATE) * ahead.sgn()
                parameter.sub_(share * move * bool(ahead.any()))
        self._maps.become(self._maps.alone())
        return True
