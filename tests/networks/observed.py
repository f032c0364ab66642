"""A problem of activation matching on random samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.contract import Problem
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from networks import Attention, residual


def samples_for(inputs: tuple[Tensor, ...], count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *inputs[0].shape[1:])
    if not inputs[0].is_floating_point():
        return torch.randint(0, 11, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem_of(module: nn.Module, inputs: tuple[Tensor, ...], count: int = 48, seed: int = 1) -> Problem:
    """Return the problem of two independent random weights of a network, in float64, with random calibration data."""
    a, b = randomised(module, seed), randomised(module, seed + 1)
    x = samples_for(inputs, count)
    y = outputs_of(module, a, (x,), torch.float64)[0]
    pair = lmccheck.load_pair(a, b, model=module, data=(x[:4], y[:4]), calibration=(x, y), loss="mse", device="cpu")
    return Problem(pair)


def transformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One pre-norm block: width 8, two heads of 4, a feed-forward layer of 10."""
    attention = residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2, "separate")))
    feed_forward = residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)))
    return nn.Sequential(nn.Linear(5, 8), attention, feed_forward, nn.Linear(8, 3)), (torch.randn(2, 6, 5),)


def captured(module: nn.Module, weights: dict[str, Tensor], inputs: Tensor, layer: nn.Module, read: bool) -> Tensor:
    """Return what a layer gives, or reads, in a plain forward pass of the module with ``weights``."""
    module.double().eval().load_state_dict(weights)
    kept: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        kept.append((given[0] if read else made).detach().clone())

    handle = layer.register_forward_hook(hook)
    with torch.no_grad():
        module(inputs)
    handle.remove()
    (value,) = kept
    return value
