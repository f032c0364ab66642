"""Perceptrons of any widths, two tiny networks, and seeded weights for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def perceptron(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths, from the inputs to the outputs, with an activation between them."""
    layers: list[nn.Module] = []
    for read, made in pairwise(widths):
        layers += [nn.Linear(read, made, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def small_mlp() -> nn.Module:
    """4-6-5-3 with biases."""
    return perceptron(4, 6, 5, 3)


def small_batchnorm() -> nn.Module:
    """A conv net with BatchNorm whose statistics are not the fresh ones."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def seeded(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Return the state dict of a network built with a seed, running statistics perturbed."""
    torch.manual_seed(seed)
    state = build().state_dict()
    return {k: v + 0.3 * torch.rand(v.shape) if "running" in k else v.clone() for k, v in state.items()}
