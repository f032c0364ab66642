"""Networks for noise stability and its diagnostics, and pairs of them on random data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import lmccheck


def mlp(bias: bool = True) -> nn.Module:
    """5-8-7-6-3 ReLU."""
    widths = [5, 8, 7, 6, 3]
    layers: list[nn.Module] = []
    for read, made in pairwise(widths):
        layers += [nn.Linear(read, made, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def cnn() -> nn.Module:
    """Convolutions with padding and stride, BatchNorm, pooling, flatten, two linear layers."""
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def state(build: Callable[[], nn.Module], seed: int, scale: float = 1.5) -> dict[str, Tensor]:
    """Return seeded weights, statistics of BatchNorm perturbed."""
    torch.manual_seed(seed)
    found = {}
    for name, tensor in build().state_dict().items():
        statistic = "running" in name
        moved = tensor + 0.3 * torch.rand_like(tensor) if statistic else tensor * scale
        found[name] = moved if tensor.is_floating_point() else tensor
    return found


def pair_of(
    build: Callable[[], nn.Module], shape: tuple[int, ...], samples: int = 40, scale: float = 1.5
) -> lmccheck.ModelPair:
    """Return a pair of two seeds of a network, on random data."""
    torch.manual_seed(7)
    data = torch.randn(samples, *shape).double(), torch.randint(0, 3, (samples,))
    return lmccheck.load_pair(state(build, 0, scale), state(build, 1, scale), model=build, data=data)
