"""Networks whose units may be dropped, and pairs of them with targets that the first mostly finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.symmetry.structure import Structure
from networks.paths import stream, swiglu
from networks.small import perceptron

WIDTHS = [5, 9, 7, 8, 3]


def mlp(activation: type[nn.Module] = nn.ReLU, widths: list[int] | None = None) -> nn.Module:
    """Linear layers with biases and an activation between them."""
    return perceptron(*(widths or WIDTHS), activation=activation).double()


def cnn() -> nn.Module:
    """Convolutions without bias before BatchNorm, one with, stride, pooling, flatten, linear."""
    layers = [nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()]
    layers += [nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


Build = Callable[[], nn.Module]


CASES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "relu": (mlp, (5,)),
    "tanh": (lambda: mlp(nn.Tanh), (5,)),
    "gelu": (lambda: mlp(nn.GELU), (5,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (5,)),
    "width_one": (lambda: mlp(widths=[5, 7, 1, 5, 3]), (5,)),
    "cnn": (cnn, (2, 8, 8)),
    "swiglu": (lambda: swiglu().double(), (5,)),
    "stream": (lambda: stream().double(), (3, 6, 6)),
}


def state(build: Build, seed: int, scale: float = 1.7) -> dict[str, Tensor]:
    """Return seeded weights, larger than fresh ones, with statistics of BatchNorm perturbed."""
    torch.manual_seed(seed)
    found = {}
    for name, tensor in build().state_dict().items():
        moved = tensor + 0.3 * torch.rand_like(tensor) if "running" in name else tensor * scale
        found[name] = moved if tensor.is_floating_point() else tensor
    return found


def pair_of(build: Build, shape: tuple[int, ...], a: Mapping[str, Tensor] | None = None) -> lmccheck.ModelPair:
    """Return a pair of two seeds; targets are what θ_A finds most likely, mostly."""
    theta_a = dict(a) if a is not None else state(build, 0)
    module = build()
    module.load_state_dict(theta_a)
    module.eval()
    torch.manual_seed(3)
    data = {}
    for name, samples in (("data", 60), ("calibration", 240)):
        inputs = torch.randn(samples, *shape, dtype=torch.float64)
        noise = torch.randn(samples, 3, dtype=torch.float64)
        data[name] = (inputs, (module(inputs).detach() + 0.3 * noise).argmax(1))
    return lmccheck.load_pair(theta_a, state(build, 1), model=module, **data)


_PAIRS: dict[str, lmccheck.ModelPair] = {}


def case(name: str) -> tuple[lmccheck.ModelPair, Structure]:
    """Return a pair of CASES, made once, and its structure."""
    if name not in _PAIRS:
        _PAIRS[name] = pair_of(*CASES[name])
    return _PAIRS[name], _PAIRS[name].network.structure("tests")


def loss_of(pair: lmccheck.ModelPair, structure: Structure, weights: Mapping[str, Tensor]) -> float:
    """Return the loss on the evaluation data by the module itself."""
    pair.module.load_state_dict(structure.stored(weights))
    pair.module.eval()
    (batch,) = pair.data.batches
    return float(F.cross_entropy(pair.module(batch.inputs).detach(), batch.targets))
