"""Networks for noise stability and its diagnostics, and pairs of them on random data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import lmccheck
from networks.dropping import state
from networks.small import perceptron


def mlp(bias: bool = True) -> nn.Module:
    """5-8-7-6-3 ReLU."""
    return perceptron(5, 8, 7, 6, 3, bias=bias).double()


def cnn() -> nn.Module:
    """Convolutions with padding and stride, BatchNorm, pooling, flatten, two linear layers."""
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def pair_of(
    build: Callable[[], nn.Module], shape: tuple[int, ...], samples: int = 40, scale: float = 1.5
) -> lmccheck.ModelPair:
    """Return a pair of two seeds of a network, on random data."""
    torch.manual_seed(7)
    data = torch.randn(samples, *shape).double(), torch.randint(0, 3, (samples,))
    return lmccheck.load_pair(state(build, 0, scale), state(build, 1, scale), model=build, data=data)
