"""Learned matching: the permutation that lowers the loss between the networks, by gradients through a projection.

Git Re-Basin, Algorithm 2 (Ainsworth et al. 2023): weights Θ̃ are moved freely by Adam; in the forward pass each step
uses π·θ_B, the permuted θ_B nearest to Θ̃ (weight matching against Θ̃, begun where the last step ended), and the
gradient passes straight through to Θ̃. Differs in that the loss is taken at a random point of the segment (Peña et al.
2023; Theus et al. 2025) instead of its middle, that it starts from the best of the other methods, and that the
permutation returned is the one of the lowest calibration loss met on the way: the start itself, if none is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmccheck.align.method import Found, Problem
from lmccheck.align.reassign import reassign
from lmccheck.align.similarity import WeightSimilarity
from lmccheck.align.weights import counted
from lmccheck.evaluate.gradient import Gradient, endless_batches
from lmccheck.symmetry.spec import Permutation, PermutationSpec

STEPS = 200
BATCH = 256
RATE = 0.05  # of a tensor's root mean square, per step
HELD_OUT = 2048  # calibration samples on which steps are compared
EVERY = 10
TOWARDS_A = 0.8  # Θ̃ begins this far from the start towards θ_A, where a permutation is easily given up for another


@dataclass
class Best:
    """The permutation of the lowest loss so far."""

    permutation: Permutation
    loss: float
    step: int


def match_learned(problem: Problem, start: Permutation, steps: int = STEPS, rate: float = RATE) -> Found:
    """Return the best permutation met while Θ̃ is trained for ``steps`` steps from ``start``."""
    pair, spec = problem.pair, problem.spec
    data = problem.calibration("learned")
    gradient = Gradient(pair)
    generator = torch.Generator().manual_seed(problem.seed)
    theta_a, theta_b = gradient.weights(pair.theta_a), gradient.weights(pair.theta_b)
    batches = endless_batches(data, BATCH, problem.seed)
    judge = [next(batches) for _ in range(max(1, min(HELD_OUT, data.samples) // BATCH))]

    def middle(weights: Mapping[str, Tensor]) -> float:
        """Mean loss half-way, over the judging batches."""
        with torch.no_grad():
            merged = _between(theta_a, weights, 0.5)
            return float(sum(gradient.loss(merged, batch) for batch in judge)) / len(judge)

    projection = Projection(spec, counted(spec, theta_b), start)
    target = {
        name: torch.lerp(projection.state.current(name), theta_a[name], TOWARDS_A).requires_grad_()
        for name in projection.names
    }
    optimiser = torch.optim.Adam({"params": [value], "lr": _spread(theta_b[name])} for name, value in target.items())
    scales = [settings["lr"] for settings in optimiser.param_groups]
    losses = [middle(spec.apply(theta_b, start))]
    best = Best(start, losses[0], 0)
    for step in range(1, steps + 1):
        for settings, scale in zip(optimiser.param_groups, scales, strict=True):
            settings["lr"] = rate * scale * min(1.0, 2 * (1 - (step - 1) / steps))
        permutation = projection.towards({name: value.detach() for name, value in target.items()}, generator)
        moved = spec.apply(theta_b, permutation)
        straight = {
            name: target[name] + (value - target[name]).detach() if name in target else value
            for name, value in moved.items()
        }
        t = float(torch.rand((), generator=generator))
        loss = gradient.loss(_between(theta_a, straight, t), next(batches))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimiser.step()
        if step % EVERY == 0 or step == steps:
            losses.append(middle(moved))
            if losses[-1] < best.loss:
                best = Best(permutation, losses[-1], step)
    facts = {"steps": steps, "rate": rate, "losses_half_way": losses, "best_step": best.step}
    return Found(best.permutation, -best.loss, facts)


def _spread(tensor: Tensor) -> float:
    """Return a tensor's root mean square, 1e-3 at least."""
    return max(1e-3, float(tensor.double().square().mean().sqrt()))


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return (1−t)·a + t·b; integer tensors are a's."""
    return {name: torch.lerp(x, b[name], t) if x.is_floating_point() else x for name, x in a.items()}


class Projection:
    """The permuted θ_B nearest to given weights, by one sweep of weight matching from where it last was."""

    def __init__(self, spec: PermutationSpec, b: Mapping[str, Tensor], start: Permutation) -> None:
        self.spec = spec
        self.state = WeightSimilarity(spec, b, b, start)
        self.names = list(b)

    def towards(self, target: Mapping[str, Tensor], generator: torch.Generator) -> Permutation:
        """Return the permutation after one sweep over all groups towards ``target``."""
        self.state.aim(target)
        for k in torch.randperm(len(self.spec.groups), generator=generator).tolist():
            group = self.spec.groups[k]
            step = reassign(self.spec, group, self.state.permutation, self.state.units(group), self.state.blocks(group))
            if self.state.gain(group, step.permutation, step.gain) > 1e-6 * (1 + abs(step.gain)):
                self.state.move(group, step.permutation, step.relative)
        return self.state.permutation
