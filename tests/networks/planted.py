"""Networks that a permutation is planted in: a pair, and what must come back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.contract import Problem
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from networks import Attention, residual

Weights = dict[str, Tensor]


def mlp() -> tuple[nn.Module, Tensor]:
    """6-16-16-4."""
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)]
    return nn.Sequential(*layers), torch.randn(256, 6)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Two convolutions, one with BatchNorm, flatten, a hidden linear layer."""
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 3)), torch.randn(256, 3, 6, 6)


def resnet() -> tuple[nn.Module, Tensor]:
    """A stem and two residual blocks with BatchNorm, the second with a projection."""

    def body(width: int, out: int, stride: int) -> nn.Module:
        first = [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))

    stem = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    skip = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
    blocks = [residual(body(8, 8, 1), None, nn.ReLU()), residual(body(8, 12, 2), skip, nn.ReLU())]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*stem, *blocks, *tail), torch.randn(256, 3, 4, 4)


def transformer() -> tuple[nn.Module, Tensor]:
    """A pre-norm block: stream of 16, two heads of 8, a feed-forward layer of 20."""
    attention = residual(nn.Sequential(nn.LayerNorm(16), Attention(16, 2, "chunk")))
    feed_forward = residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)))
    return nn.Sequential(nn.Linear(12, 16), attention, feed_forward, nn.Linear(16, 3)), torch.randn(256, 5, 12)


BUILD = {build.__name__: build for build in (mlp, convolutions, resnet, transformer)}


def with_noise(weights: Weights, share: float, seed: int = 0) -> Weights:
    """Return weights with so much of each tensor's spread in noise; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: value + share * value.std() * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point() and value.numel() > 1
        else value
        for name, value in weights.items()
    }
    return {name: value.abs() + 1e-3 if name.endswith("running_var") else value for name, value in noisy.items()}


def with_own_statistics(module: nn.Module, weights: Weights, x: Tensor) -> Weights:
    """Return weights with the BatchNorm statistics they have on ``x``, as any trained network has its own."""
    twin = copy.deepcopy(module).double().train()
    twin.load_state_dict(weights)
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    twin(x.double())
    return {name: value.detach().clone() for name, value in twin.state_dict().items()}


def planted(
    name: str, seed: int = 0, noise: float = 0.1
) -> tuple[lmccheck.ModelPair, Weights, lmccheck.PermutationSpec]:
    """Return a pair (θ, π·(θ + noise)) with random data, the noisy θ before it was permuted, and the spec."""
    torch.manual_seed(seed)
    module, x = BUILD[name]()
    theta = with_own_statistics(module, randomised(module, seed + 1), x)
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    noisy = with_noise(theta, noise, seed)
    spec = lmccheck.discover_symmetry(module, (x[:2],))
    hidden = spec.apply(noisy, spec.moving(seed + 2))
    pair = lmccheck.load_pair(
        theta, hidden, model=module, data=(x[:16], y[:16]), calibration=(x, y), loss="mse", device="cpu"
    )
    return pair, noisy, spec


@cache
def shared(name: str) -> tuple[lmccheck.ModelPair, Weights]:
    """Return one planted pair for all methods, which keeps what each has found for those that build on it."""
    return planted(name)[:2]


# transport


def independent_pair(build: Callable[[], nn.Module], seed: int = 0, samples: int = 200) -> lmccheck.ModelPair:
    """Return a pair of independent random weights of a network on 6 inputs, in float64."""
    torch.manual_seed(seed)
    module = build()
    a, b = randomised(module, 10 + seed), randomised(module, 20 + seed)
    x = torch.randn(samples, 6, dtype=torch.float64)
    y = outputs_of(module, a, (x,), torch.float64)[0]
    return lmccheck.load_pair(a, b, model=module, data=(x[:8], y[:8]), calibration=(x, y), loss="mse", device="cpu")


def problem_of(pair: lmccheck.ModelPair) -> Problem:
    return Problem(pair)


def deep(bias: bool = True) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers = [nn.Linear(6, 9, bias), nn.ReLU(), nn.Linear(9, 7, bias), nn.Tanh(), nn.Linear(7, 8, bias), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(8, 3, bias))

    return build
