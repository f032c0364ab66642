"""Pairs, witnesses that hold what they say, and all that may be wrong with one: shared by tests that forge them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.stability import StabilityWitness
from lmccheck.paths.path import Path
from lmccheck.paths.theorems import ten_segments
from lmccheck.symmetry.structure import Structure
from networks.paths import masked, mlp_pair, random_pair, structure_for
from networks.written import Written

State = dict[str, Tensor]


def normed() -> nn.Module:
    """5-8-6-3 with a BatchNorm behind each hidden layer."""
    first, second = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()], [nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Linear(6, 3))


def residual_normed() -> nn.Module:
    """A stem, one residual block with a BatchNorm, and a head: the stream's units and the block's drop together."""

    def run(s: Written, x: Tensor) -> Tensor:
        x = F.relu(s.stem_norm(s.stem(x)))
        return s.head(x + s.out(F.relu(s.norm(s.inner(x)))))

    parts = {"stem": nn.Linear(5, 8), "stem_norm": nn.BatchNorm1d(8), "inner": nn.Linear(8, 6)}
    return Written(run, **parts, norm=nn.BatchNorm1d(6), out=nn.Linear(6, 8), head=nn.Linear(8, 3))


def pair_of(module: nn.Module, samples: int = 40) -> lmccheck.ModelPair:
    """Return two random float64 networks of a module on random data."""
    inputs = torch.randn(samples, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return random_pair(module.double(), inputs, 3)


def honest(pair: lmccheck.ModelPair, keep: float = 0.5, epsilon: float | None = 100.0) -> StabilityWitness:
    """Return a witness of random halves: every network is a dropped version, whatever it costs."""
    structure = structure_for(pair)
    thetas = {"a": pair.theta_a, "b": pair.theta_b}
    levels = range(len(structure.levels))
    found = {s: {k: masked(structure, dict(t), k, keep=keep) for k in levels} for s, t in thetas.items()}
    return StabilityWitness(found, {s: structure.canonical(t) for s, t in thetas.items()}, keep, epsilon)


def with_level(witness: StabilityWitness, dropped: Dropped, side: str = "a", level: int = 0) -> StabilityWitness:
    """Return a witness with one of its networks replaced."""
    return replace(witness, found={**witness.found, side: {**witness.found[side], level: dropped}})


def edited(dropped: Dropped, name: str, change: Callable[[Tensor], Tensor]) -> Dropped:
    """Return a dropped network with one tensor changed."""
    return replace(dropped, weights={**dropped.weights, name: change(dropped.weights[name].clone())})


def ten(pair: lmccheck.ModelPair | None = None) -> tuple[lmccheck.ModelPair, Structure, Path]:
    """Return a pair of perceptrons, its structure, and a path of ten segments through random halves."""
    pair = pair or mlp_pair([6, 9, 7, 4])
    structure = structure_for(pair)
    ends = [structure.canonical(theta) for theta in (pair.theta_a, pair.theta_b)]
    a, b = (masked(structure, dict(theta), 0, seed) for seed, theta in ((3, pair.theta_a), (4, pair.theta_b)))
    path = ten_segments(structure, *ends, a, b)
    return pair, structure, replace(path, facts={"epsilon": 100.0})


def at(path: Path, number: int, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Return a path with one tensor of one breakpoint changed."""
    points = list(path.points)
    points[number] = {**points[number], name: change(points[number][name].clone())}
    return replace(path, points=tuple(points))
