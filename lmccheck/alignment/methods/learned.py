"""Learned matching: the permutation that lowers the loss between the networks, by gradients through a projection.

Git Re-Basin, Algorithm 2 (Ainsworth et al. 2023): weights Θ̃ are moved freely by Adam; in the forward pass each step
uses π·θ_B, the permuted θ_B nearest to Θ̃ (weight matching against Θ̃, begun where the last step ended), and the
gradient passes straight through to Θ̃. Differs in that the loss is taken at a random point of the segment (Peña et al.
2023; Theus et al. 2025) instead of its middle, that it starts from the best of the other methods, and that the
permutation returned is the one of the lowest calibration loss met on the way: the start itself, if none is better.
Maps that keep units apart (rescaling) are learned along with it where they are asked for, by their own gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.norms import counted
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods import method
from lmccheck.alignment.methods.best import best_start
from lmccheck.data.batches import targets_each
from lmccheck.evaluate.calibration import barrier_samples
from lmccheck.evaluate.gradient import Gradient, differentiated, endless_batches
from lmccheck.evaluate.points import interpolate
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.spec import Permutation, PermutationSpec

STEPS = 200
BATCH = 256  # samples at most
TARGETS = 2**12  # numbers to predict at most, of one batch: a text has as many as tokens
RATE = 0.05  # of a tensor's root mean square, per step
MAP_RATE = 0.2  # over the width of a map, per step
HELD_OUT, HELD_OUT_TARGETS = 2048, 2**14  # calibration samples on which steps are compared, numbers to predict
EVERY = 10
TOWARDS_A = 0.8  # Θ̃ begins this far from the start towards θ_A, where a permutation is easily given up for another


@dataclass(frozen=True)
class Training:
    """What training found: the best permutation, the loss half-way before and every few steps, and the best step.

    ``judged``: on how many samples the losses are. ``apart``: by how much the loss half-way is above the mean of the
    ends at the best step, on samples held out and on samples fitted to, where some were held out; and that mean.
    """

    permutation: Permutation
    losses: tuple[float, ...]
    best_step: int
    judged: int
    apart: dict[str, float] = field(default_factory=dict)


@method("learned", needs=("calibration", "traced"), source="Ainsworth et al. 2023, Algorithm 2; Peña et al. 2023")
def learn(problem: Problem) -> Found:
    """Return the best permutation met while Θ̃ is trained from what the best of the other methods found."""
    start = best_start(problem)
    trained = train(problem, start.found.permutation)
    facts: dict[str, Any] = {"start": start.method, "steps": STEPS, "rate": RATE}
    facts |= {"losses_half_way": list(trained.losses), "best_step": trained.best_step}
    data = problem.calibration("learned")
    facts["calibration_samples"] = {**barrier_samples(data), "steps compared": trained.judged}
    return Found(trained.permutation, -min(trained.losses), facts)


class _Segment:
    """The segment from θ_A to θ_B under a start and maps: losses on it, over the batches of the calibration data."""

    def __init__(self, problem: Problem, start: Permutation, maps: Maps | None) -> None:
        pair, data = problem.pair, problem.pair.network.require_labelled("align = 'learned'")
        self.maps, self.gradient = maps, Gradient(pair.network, pair.theta_a, pair.theta_b)
        self.theta_a = self.gradient.weights(pair.theta_a)
        self._begun = self.gradient.weights(problem.spec.apply(pair.theta_b, start))
        each = targets_each(data)
        size = max(1, min(BATCH, TARGETS // each))
        self._batches = endless_batches(data, size, problem.seed)
        held_out = min(HELD_OUT, HELD_OUT_TARGETS // each, data.samples)
        self._judges = [next(self._batches) for _ in range(max(1, held_out // size))]
        self.judged = min(data.samples, sum(batch.samples for batch in self._judges))

    def theta_b(self) -> dict[str, Tensor]:
        """Return θ_B under the start and the maps, in the working dtype, in which maps are learned well enough."""
        return self._begun if self.maps is None else self.maps.apply(self._begun, self.theta_a)

    def loss(self, theta_b: Mapping[str, Tensor], t: float) -> Tensor:
        """Return the loss at ``t``, on the next batch."""
        return self.gradient.loss(interpolate(self.theta_a, theta_b, t), next(self._batches))

    def middle(self, theta_b: Mapping[str, Tensor]) -> float:
        """Return the mean loss half-way, over the samples of the judging batches."""
        with torch.no_grad():
            return self.gradient.mean_loss(interpolate(self.theta_a, theta_b, 0.5), self._judges)


def train(problem: Problem, start: Permutation, maps: Maps | None = None, *, steps: int | None = None) -> Training:
    """Train Θ̃, and ``maps`` if there are any, from ``start``; maps are left as they were at the best step.

    The function of θ_B is kept at every step. With maps, none of which mixes units, the weights are
    relative·maps·start·θ_B.
    """
    steps = STEPS if steps is None else steps
    spec, segment = problem.spec, _Segment(problem, start, maps)
    generator = torch.Generator().manual_seed(problem.seed)
    with torch.no_grad():
        base = segment.theta_b()
    projection = Projection(spec, counted(spec, base), spec.identity())
    target = {name: torch.lerp(x, segment.theta_a[name], TOWARDS_A) for name, x in projection.state.b.items()}
    if not target and maps is None:
        return Training(start, (segment.middle(base),), 0, segment.judged)  # no unit of the network may move
    optimiser = _optimiser(target, base, maps)
    rates = [settings["lr"] for settings in optimiser.param_groups]
    losses = [segment.middle(base)]
    best, best_step, learned = spec.identity(), 0, maps.copy() if maps else None
    for step in range(1, steps + 1):
        for settings, first in zip(optimiser.param_groups, rates, strict=True):
            settings["lr"] = first * min(1.0, 2 * (1 - (step - 1) / steps))
        with torch.enable_grad():
            base = segment.theta_b()
        if maps is not None:
            projection.state.rebase(counted(spec, base))
        relative = projection.towards({name: value.detach() for name, value in target.items()}, generator)
        with torch.enable_grad():
            moved = spec.apply(base, relative)
            straight = {
                name: x + (target[name] - target[name].detach()) if name in target else x for name, x in moved.items()
            }
            t = float(torch.rand((), generator=generator))
            loss = segment.loss(straight, t or 0.5)  # at 0 there would be nothing to learn from
        optimiser.zero_grad()
        with differentiated(problem.pair.network, "align = 'learned'", "another method"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        if not all(bool(x.grad.isfinite().all()) for x in _moved(optimiser) if x.grad is not None):
            break  # such a step leads nowhere, and Θ̃ keeps what it has met
        if step % EVERY == 0 or step == steps:
            losses.append(segment.middle(moved))
            if losses[-1] == min(losses):
                best, best_step, learned = relative, step, maps.copy() if maps else None
        optimiser.step()
    if maps is not None and learned is not None:
        maps.restore(learned)
    found = compose(spec, start, best) if maps is None else best
    return Training(found, tuple(losses), best_step, segment.judged)


def _optimiser(target: Mapping[str, Tensor], base: Mapping[str, Tensor], maps: Maps | None) -> torch.optim.Optimizer:
    """Return Adam over Θ̃, at rates in proportion to the tensors of θ_B, and over the maps."""
    moved: list[dict[str, Any]] = [
        {"params": [value.requires_grad_()], "lr": RATE * _spread(base[name])} for name, value in target.items()
    ]
    learned = [{"params": [p], "lr": MAP_RATE / p.shape[-1]} for p in (maps.parameters() if maps else ())]
    return torch.optim.Adam([*moved, *learned])


def _moved(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return what an optimiser moves."""
    return [tensor for settings in optimiser.param_groups for tensor in settings["params"]]


def _spread(tensor: Tensor) -> float:
    """Return a tensor's root mean square, 1e-3 at least."""
    return max(1e-3, float(tensor.detach().double().square().mean().sqrt()))


class Projection:
    """The permuted θ_B nearest to given weights, by one sweep of weight matching from where it last was."""

    def __init__(self, spec: PermutationSpec, b: Mapping[str, Tensor], start: Permutation) -> None:
        self.state = WeightSimilarity(spec, b, b, start)
        self._groups = spec.groups

    def towards(self, target: Mapping[str, Tensor], generator: torch.Generator) -> Permutation:
        """Return the permutation after one sweep over all groups towards ``target``."""
        self.state.aim(target)
        for k in torch.randperm(len(self._groups), generator=generator).tolist():
            self.state.improve(self._groups[k], 1e-6, share=1e-6)
        return self.state.permutation
