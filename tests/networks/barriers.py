"""Networks whose barriers lie in layers that are known: squares of weights, which forget the weights' signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

import lmccheck

WIDTH = 6


class Even(nn.Module):
    """x ↦ tanh x + scale·|W|x: with −W the same, with 0 in place of W not."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() + self.scale * (x @ self.weight.abs().T)


def even(depth: int, planted: set[int]) -> nn.Sequential:
    """``depth`` such layers and a head; what does not belong to the ``planted`` ones does next to nothing."""
    return nn.Sequential(*(Even(1.0 if k in planted else 1e-3) for k in range(depth)), nn.Linear(WIDTH, 3))


@dataclass(frozen=True)
class Planted:
    """A pair that differs in the sign of every layer, of which the two ``planted`` matter; ``limit`` needs both."""

    pair: lmccheck.ModelPair
    planted: list[str]
    limit: float


def loss_of(build: Callable[[], nn.Module], weights: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """The mean cross entropy, by a pass of its own."""
    module = build()
    module.load_state_dict(weights)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(x), y))


def plant(depth: int, seed: int) -> Planted:
    """Return a pair of ``depth`` layers in which two together, and neither alone, break the limit at t = 1/2."""
    return next(found for k in count() if (found := _planted(depth, seed + 1000 * k)) is not None)


def _planted(depth: int, seed: int) -> Planted | None:
    """Return such a pair, None where one layer alone costs about as much as both."""
    draw = torch.Generator().manual_seed(seed)
    two = set(torch.randperm(depth, generator=draw)[:2].tolist())
    torch.manual_seed(seed)
    module = even(depth, two)
    a = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    a[f"{depth}.weight"] *= 10
    b = {name: -tensor if int(name.split(".")[0]) < depth else tensor for name, tensor in a.items()}
    x = torch.randn(120, WIDTH, generator=draw)
    module.load_state_dict(a)
    y = module(x).argmax(1)

    def height(layers: set[int]) -> float:
        half = {name: 0 * tensor if int(name.split(".")[0]) in layers else tensor for name, tensor in a.items()}
        return loss_of(lambda: module, half, x, y) - loss_of(lambda: module, a, x, y)

    alone, every = max(height({k}) for k in two), min(height(set(range(depth))), height(two))
    if not 0 < 1.2 * alone < every:
        return None
    pair = lmccheck.load_pair(a, b, model=lambda: even(depth, two), data=(x, y), device="cpu")
    return Planted(pair, [str(k) for k in sorted(two)], (alone + every) / 2)
