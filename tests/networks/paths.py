"""Random networks, pairs of them, and dropped versions made by plain masks: what the theory of paths is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import keep_factors, multiplied
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.discover import derive, structure_of
from lmccheck.symmetry.structure import Structure
from networks.small import perceptron
from networks.written import Written, residual

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
}


def mlp(widths: Sequence[int], activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """Return a multilayer perceptron; ``widths`` from the inputs to the outputs."""
    return perceptron(*widths, activation=ACTIVATIONS[activation], bias=bias)


def swiglu() -> nn.Module:
    """silu(gate) * up, then down, then a GELU layer: a unit is a row of both gate and up."""

    def run(s: Written, x: Tensor) -> Tensor:
        x = s.down(F.silu(s.gate(x)) * s.up(x))
        return s.head(F.gelu(s.middle(F.relu(x))))

    parts = {"gate": nn.Linear(5, 8), "up": nn.Linear(5, 8, bias=False), "down": nn.Linear(8, 6)}
    return Written(run, **parts, middle=nn.Linear(6, 7), head=nn.Linear(7, 3))


def stream() -> nn.Module:
    """A residual stream of channels that the head reads too: its units go to several layers and to sums."""

    def body() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 5, 3, 1, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, 1, 1))

    tail = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), residual(body(), None, nn.ReLU()), residual(body()), *tail)


def random_state(module: nn.Module, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Return random float64 weights for a module, positive where a running variance is."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.full_like(tensor, seed)
            continue
        value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        reads = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
        value = value * scale * (2 / reads) ** 0.5
        state[name] = value.abs() + 0.3 if name.endswith("running_var") else value
    return state


def random_pair(module: nn.Module, inputs: Tensor, classes: int, seed: int = 0) -> ModelPair:
    """Return two random networks of one architecture with random labels."""
    targets = torch.randint(classes, (len(inputs),), generator=torch.Generator().manual_seed(seed + 100))
    data = (inputs, targets)
    return lmccheck.load_pair(
        random_state(module, seed), random_state(module, seed + 1), model=module.eval(), data=data, calibration=data,
        device="cpu",
    )  # fmt: skip


def mlp_pair(widths: Sequence[int], activation: str = "relu", bias: bool = True, seed: int = 0) -> ModelPair:
    """Return two random perceptrons on random inputs."""
    inputs = torch.randn(32, widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random_pair(mlp(widths, activation, bias).double(), inputs, widths[-1], seed)


def structure_for(pair: ModelPair) -> Structure:
    """Return the structure of a pair's traced network."""
    return structure_of(pair.network.traced)


def bare_structure(module: nn.Module, *shape: int) -> Structure:
    """Return the structure of a float64 module on inputs of a shape, without a pair around it."""
    return structure_of(derive(module.double().eval(), (torch.zeros(2, *shape, dtype=torch.float64),)))


def masked(
    structure: Structure, weights: dict[str, Tensor], level: int, seed: int = 0, keep: float = 0.5, scale: float = 2.0
) -> Dropped:
    """Return a network with random halves dropped from a level on, scaled, nothing else changed."""
    generator = torch.Generator().manual_seed(seed * 31 + level)
    kept = {}
    for names in structure.levels[level:]:
        for group in names:
            size = structure.sizes[group]
            kept[group] = torch.randperm(size, generator=generator)[: int(keep * size)].sort().values
    state = multiplied(structure, structure.canonical(weights), keep_factors(structure, kept, scale))
    return Dropped(level, kept, state, 0.0, "random", False)


def all_levels(structure: Structure, weights: dict[str, Tensor], seed: int = 0) -> dict[int, Dropped]:
    """Return a dropped version for every level, each with units of its own."""
    return {level: masked(structure, weights, level, seed + level) for level in range(len(structure.levels))}
