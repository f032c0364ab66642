"""A chain of ten straight segments from θ_A to π(θ_B) whose nine bends are trained until the loss along it is low.

The curve of Garipov et al. 2018 and Draxler et al. 2018: bends minimise a mean over the chain φ, t uniform on it, by a
batch of calibration data at one random t a step. It differs from Garipov's polygonal chain in that there are nine bends
instead of one, that it begins as the straight line to an aligned θ_B, that outputs at t are taught to be those of the
ends, in shares of 1 − t and t (``Imitation``: labels, of which bends learn much by heart, are only for losses that it
does not know), and that of the chains met on the way, the straight line among them, the one is returned whose largest
loss on held-out calibration data is lowest. Nothing is proved of such a chain: ``paths.chain`` samples it on data that
had no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path as Folder
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch, Data
from lmccheck.evaluate.batchnorm import fresh_statistics, tracked
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.gradient import Gradient, differentiated
from lmccheck.evaluate.imitation import Imitation
from lmccheck.evaluate.outputs import FirstOutputs
from lmccheck.evaluate.points import interpolate
from lmccheck.evaluate.split import Split, split
from lmccheck.modules.stored import tied_names
from lmccheck.network.pair import ModelPair
from lmccheck.paths.along import height
from lmccheck.paths.chain import canonical
from lmccheck.paths.path import Path, Segment
from lmccheck.store import files

SEGMENTS = 10
COARSE = 5  # segments, while the first half of the budget lasts: fewer bends are trained sooner, and fit less by heart
STEPS = {"dev": 200, "ci": 800, "thorough": 4000}  # the budget
RATE = 0.003  # of a tensor's root mean square, per step
BATCH = 128  # samples at most
VALUES = 2**24  # numbers of output at most, of one batch
SAMPLES = 2**14  # of calibration data, held-out ones included
HELD_OUT = 512  # samples on which chains are compared
EVERY = 100  # steps
PLACES = 2 * SEGMENTS  # at which chains are compared

State = dict[str, Tensor]


@dataclass(frozen=True)
class Learned:
    """The chain that was chosen, and how it was found; JSON-able."""

    path: Path
    facts: dict[str, Any]


def learn(pair: ModelPair, theta_b: Mapping[str, Tensor], *, seed: int = 0, profile: str = "ci") -> Learned:
    """Return the best chain met while its bends are trained; the ends are θ_A and ``theta_b``, never moved.

    ``theta_b``: a copy of θ_B that computes the same. Trained is every parameter that differs at the ends or takes a
    gradient; buffers lie on the straight line, whole numbers are those of the nearer end, BatchNorm's statistics are
    those of calibration data. Bends are float32, or float64 where a checkpoint is. Needs about 14 copies of the network
    in that dtype. The same seed gives the same bends on a CPU. Raises SourceError without calibration data, or where
    the loss cannot be differentiated.
    """
    network = pair.network
    parts = split(network, "a path", SAMPLES, seed, most=_batch_size(pair))
    chain = _Chain(pair, theta_b)
    heights, steps, stopped = _train(chain, _Judge(pair, theta_b, parts), parts, STEPS[profile], seed)
    best = min(range(len(heights)), key=lambda k: heights[k])
    facts = {
        "method": "Adafactor over nine bends, from the aligned line",
        "profile": profile,
        "seed": seed,
        "budget": STEPS[profile],
        "steps": steps,
        "stopped": stopped,
        "batch": parts.fit[0].samples,
        "rate": RATE,
        "fitted_samples": sum(batch.samples for batch in parts.fit),
        "held_out_samples": sum(batch.samples for batch in parts.held),
        "trained_tensors": len(chain.trained),
        "every": EVERY,
        "excess_held_out": [each if math.isfinite(each) else None for each in heights],
        "best_step": min(best * EVERY, steps),
    }
    return Learned(chain.path(), facts)


class _Chain:
    """θ_A, the bends, θ_B: on the device, in the working dtype, by canonical names; only ``trained`` tensors move."""

    def __init__(self, pair: ModelPair, theta_b: Mapping[str, Tensor]) -> None:
        network, self.tied = pair.network, tied_names(pair.module)
        self.network, self.gradient = network, Gradient(network, pair.theta_a, pair.theta_b)
        self.given = [canonical(theta, self.tied) for theta in (pair.theta_a, theta_b)]
        first, last = (self.gradient.weights(theta) for theta in self.given)
        ends = ({name: state[own] for name, own in self.tied.items()} for state in (first, last))
        self.taught = Imitation(self.gradient, *ends)
        learnt = dict(pair.module.named_parameters(remove_duplicate=False))
        self.still = {n for n, t in first.items() if torch.equal(t, last[n]) and not _learns(learnt.get(n))}
        self.trained = [n for n, t in first.items() if n in learnt and t.is_floating_point() and n not in self.still]
        self.points = [first, *(self._bend(first, last, k / COARSE) for k in range(1, COARSE)), last]

    def _bend(self, first: State, last: State, s: float) -> State:
        """Return a new bend between two breakpoints."""
        with torch.no_grad():
            bend = {n: first[n] if n in self.still else t for n, t in interpolate(first, last, s).items()}
        for name in self.trained:
            bend[name].requires_grad_()
        return bend

    def halve(self) -> None:
        """Put a bend into the middle of every segment."""
        middles = [self._bend(first, last, 0.5) for first, last in pairwise(self.points)]
        self.points = [self.points[0], *(p for two in zip(middles, self.points[1:], strict=True) for p in two)]

    def parameters(self) -> list[Tensor]:
        """Return what is trained."""
        return [bend[name] for bend in self.points[1:-1] for name in self.trained]

    def at(self, t: float) -> State:
        """Return the weights at ``t`` in [0, 1], by every name of the state dict; autograd follows them to bends."""
        number = min(int(t * (len(self.points) - 1)), len(self.points) - 2)
        s = t * (len(self.points) - 1) - number
        state = interpolate(self.points[number], self.points[number + 1], s)
        return {name: state[own] for name, own in self.tied.items()}

    def descend(self, t: float, batch: Batch) -> bool:
        """Take the gradient at a point, of what is taught there; False where that is no number, and there is none."""
        with torch.enable_grad():
            loss = self.taught(self.at(t), t, batch)
        if not bool(loss.isfinite()):
            return False
        with differentiated(self.network, "form = 'learned'", "linear_connectivity"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        return True

    def held(self) -> State:
        """Return what is trained, by names of its own."""
        return {f"{k}/{n}": bend[n].detach() for k, bend in enumerate(self.points[1:-1], 1) for n in self.trained}

    def hold(self, held: Mapping[str, Tensor]) -> None:
        """Become the chain that ``held`` was of, with ten segments."""
        first, last, count = self.points[0], self.points[-1], 1 + max(int(key.split("/")[0]) for key in held)
        self.points = [first, *(self._bend(first, last, k / count) for k in range(1, count)), last]
        with torch.no_grad():
            for key, tensor in held.items():
                number, name = key.split("/", 1)
                self.points[int(number)][name].copy_(tensor)
        if count < SEGMENTS:
            self.halve()

    def path(self) -> Path:
        """Return the chain on the CPU: its ends as they were given, what stays as it is shared."""
        first, last = self.given
        bends = [self._fresh({n: t.detach() for n, t in bend.items()}) for bend in self.points[1:-1]]
        moved = [{n: first[n] if n in self.still else t.cpu() for n, t in bend.items()} for bend in bends]
        says = [f"straight to bend {k}" for k in range(1, SEGMENTS)] + ["straight to b"]
        return Path((first, *moved, last), tuple(Segment("l", does) for does in says), self.tied)

    def _fresh(self, bend: State) -> State:
        """Return a bend with the statistics that BatchNorm has there on the calibration data."""
        runner, data = self.gradient.runner, self.network.calibration
        if not tracked(runner.module) or data is None:
            return bend
        weights = {name: bend[own] for name, own in self.tied.items()}
        fresh = fresh_statistics(runner, weights, rebatched(data), data.origin)
        return {**bend, **{name: tensor for name, tensor in fresh.items() if name in bend}}


def _learns(parameter: Tensor | None) -> bool:
    """Whether it is a parameter that takes a gradient."""
    return parameter is not None and parameter.requires_grad


class _Judge:
    """By how much a chain is above the worse of its ends on held-out calibration data, at most."""

    def __init__(self, pair: ModelPair, theta_b: Mapping[str, Tensor], parts: Split) -> None:
        held, fit = (Data(_first(each), parts.origin, False) for each in (parts.held, parts.fit))
        self._evaluator = Evaluator(replace(pair.network, data=held, calibration=fit), pair.theta_a, pair.theta_b)
        ends = (self._evaluator.weights(theta) for theta in (pair.theta_a, theta_b))
        self._worse = max(self._evaluator.measure(end, reestimate=False, label="an endpoint").loss for end in ends)

    def __call__(self, chain: _Chain) -> float:
        """Return max L on the chain − max(L(θ_A), L(θ_B)), at ``PLACES``; infinite where a loss is no number."""
        worst = -math.inf
        with torch.no_grad():
            for k in range(PLACES):
                label = f"a path at t = {k / PLACES:.4g}"
                loss = self._evaluator.measure(chain.at(k / PLACES), reestimate=True, label=label).loss
                worst = max(worst, height(loss))
        return worst - self._worse


def _first(batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """Return the first batches, of about ``HELD_OUT`` samples together."""
    taken: list[Batch] = []
    seen = 0
    for batch in batches:
        if not taken or seen + batch.samples <= HELD_OUT:
            taken.append(batch)
            seen += batch.samples
    return tuple(taken)


def _train(chain: _Chain, judge: _Judge, parts: Split, budget: int, seed: int) -> tuple[list[float], int, str]:
    """Train a chain and leave it at its best; return its height every few steps, the steps, and why it stopped."""
    heights, step, stopped = [judge(chain)], 0, "at the end of its budget"
    if not chain.trained or heights[0] <= 0:
        chain.halve()
        return heights, step, "no higher than its ends" if chain.trained else "of one network: nothing may move"
    generator = torch.Generator().manual_seed(seed)
    batches = _endless(parts.fit, generator)
    optimiser = torch.optim.Adafactor(chain.parameters(), lr=RATE)
    with TemporaryDirectory(prefix="lmccheck-") as folder:  # the best bends, of which memory holds no second copy
        best = files.save(chain.held(), Folder(folder) / "bends.safetensors")
        for step in range(1, budget + 1):
            if step == budget // 2 + 1:
                chain.halve()
                optimiser = torch.optim.Adafactor(chain.parameters(), lr=RATE)
            optimiser.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - (step - 1) / budget))
            optimiser.zero_grad()
            t = float(torch.rand((), generator=generator)) or 0.5  # at 0 there is nothing to learn
            if not chain.descend(t, next(batches)):
                stopped = "a loss was no number"
                break
            optimiser.step()  # type: ignore[no-untyped-call]  # torch leaves it without types
            if step % EVERY and step < budget:
                continue
            heights.append(judge(chain))
            if heights[-1] == min(heights):
                files.save(chain.held(), best)
            if heights[-1] <= 0:
                stopped = "no higher than its ends"
                break
        chain.hold(files.load(best))
    return heights, step, stopped


def _endless(batches: tuple[Batch, ...], generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches in a random order, over and over."""
    while True:
        for k in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[k]


def _batch_size(pair: ModelPair) -> int:
    """Return how many samples a step takes: fewer where a network gives many numbers for each, as for every token."""
    data = pair.network.data
    one = FirstOutputs(pair.network, data.origin, samples=1)(pair.theta_a)
    return max(1, min(BATCH, data.most or BATCH, VALUES // max(1, sum(tensor.numel() for tensor in one))))
