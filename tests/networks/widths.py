"""Five families of networks in any width, with the axes of their tensors written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from networks import Attention
from networks import residual as plus

Weights = dict[str, Tensor]


def mlp(scale: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5 * scale), nn.ReLU(), nn.Linear(5 * scale, 7 * scale), nn.Tanh(), nn.Linear(7 * scale, 4)
    )


def convolutions(scale: int = 1) -> nn.Module:
    """Flattened channels, read by a hidden linear layer."""
    first = [nn.Conv2d(3, 4 * scale, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(4 * scale, 3 * scale, 2), nn.GELU(), nn.Flatten(), nn.Linear(12 * scale, 5 * scale)]
    return nn.Sequential(*first, *second, nn.ReLU(), nn.Linear(5 * scale, 2))


def batchnorm(scale: int = 1) -> nn.Module:
    first = [nn.Conv2d(3, 4 * scale, 3, bias=False), nn.BatchNorm2d(4 * scale), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(4 * scale, 3 * scale, 3), nn.BatchNorm2d(3 * scale), nn.Flatten(),
                         nn.Linear(12 * scale, 2))  # fmt: skip


def residual(scale: int = 1) -> nn.Module:
    """A stream that two blocks read, through a norm, and write."""

    def block() -> nn.Module:
        return plus(
            nn.Sequential(
                nn.LayerNorm(4 * scale), nn.Linear(4 * scale, 5 * scale), nn.GELU(), nn.Linear(5 * scale, 4 * scale)
            )
        )

    return nn.Sequential(nn.Linear(6, 4 * scale), block(), block(), nn.Linear(4 * scale, 3))


def transformer(scale: int = 1) -> nn.Module:
    """Two heads of four, whatever the width of the stream."""

    class Heads(Attention):
        def __init__(self, width: int) -> None:
            super().__init__(8, 2, "separate")
            self.q, self.k, self.v = nn.Linear(width, 8), nn.Linear(width, 8, bias=False), nn.Linear(width, 8)
            self.out = nn.Linear(8, width)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q, k, v = (part(x).view(n, t, 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(n, t, 8))

    width = 4 * scale
    return nn.Sequential(
        nn.Linear(6, width), plus(nn.Sequential(nn.LayerNorm(width), Heads(width))), nn.Linear(width, 3)
    )


IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


VECTORS = torch.randn(64, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


SEQUENCES = torch.randn(48, 5, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


BUILD: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
    "mlp": (mlp, VECTORS),
    "convolutions": (convolutions, IMAGES),
    "batchnorm": (batchnorm, IMAGES),
    "residual": (residual, VECTORS),
    "transformer": (transformer, SEQUENCES),
}


# which units a dimension of a tensor holds, written by hand; − where it holds their outgoing weights
AXES: dict[str, dict[str, str]] = {
    "mlp": {"0.weight": "0:p", "0.bias": "0:p", "2.weight": "0:q 1:-p", "2.bias": "0:q", "4.weight": "1:-q"},
    "convolutions": {
        "0.weight": "0:p", "0.bias": "0:p", "3.weight": "0:q 1:-p", "3.bias": "0:q",
        "6.weight": "0:r 1:-q", "6.bias": "0:r", "8.weight": "1:-r",
    },
    "batchnorm": {
        "0.weight": "0:p", **{f"1.{name}": "0:p" for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": "0:q 1:-p", "3.bias": "0:q",
        **{f"4.{name}": "0:q" for name in ("weight", "bias", "running_mean", "running_var")}, "6.weight": "1:-q",
    },
    "residual": {
        "0.weight": "0:s", "0.bias": "0:s", "3.weight": "1:-s",
        **{f"{k}.body.0.{name}": "0:s" for k in (1, 2) for name in ("weight", "bias")},
        **{f"{k}.body.1.weight": f"0:h{k} 1:-s" for k in (1, 2)}, **{f"{k}.body.1.bias": f"0:h{k}" for k in (1, 2)},
        **{f"{k}.body.3.weight": f"0:s 1:-h{k}" for k in (1, 2)}, **{f"{k}.body.3.bias": "0:s" for k in (1, 2)},
    },
    "transformer": {
        "0.weight": "0:s", "0.bias": "0:s", "2.weight": "1:-s", "1.body.0.weight": "0:s", "1.body.0.bias": "0:s",
        **{f"1.body.1.{name}.weight": "1:-s" for name in "qkv"}, "1.body.1.out.weight": "0:s",
        "1.body.1.out.bias": "0:s",
    },
}  # fmt: skip


SIZES = {
    "mlp": {"p": 5, "q": 7},
    "convolutions": {"p": 4, "q": 3, "r": 5},
    "batchnorm": {"p": 4, "q": 3},
    "residual": {"s": 4, "h1": 5, "h2": 5},
    "transformer": {"s": 4},
}


def narrow(name: str, seed: int = 1) -> Weights:
    """Random float64 weights of the network as it is."""
    torch.manual_seed(seed)
    return randomised(BUILD[name][0](1), seed)


NORMS = ("activations", "weights")


def copied(name: str, weights: Weights, times: int, seed: int = 3) -> Weights:
    """Return the network in which every hidden unit occurs ``times``, its outgoing weights shared, in random order."""
    generator = torch.Generator().manual_seed(seed)
    maps = {
        group: (torch.randperm(times * size, generator=generator) % size) for group, size in sorted(SIZES[name].items())
    }
    result = dict(weights)
    for tensor, axes in AXES[name].items():
        for dim, group in (axis.split(":") for axis in axes.split()):
            of = maps[group.removeprefix("-")]
            value, dim = result[tensor], int(dim)
            block = value.shape[dim] // SIZES[name][group.removeprefix("-")]
            value = value.index_select(dim, (of[:, None] * block + torch.arange(block)).flatten())
            result[tensor] = value / times if group.startswith("-") else value
    return result


def fused(name: str, a: Weights, b: Weights, scale_a: int, scale_b: int, **options: Any) -> lmccheck.Fusion:
    build, x = BUILD[name]
    y = outputs_of(build(scale_b), b, (x,), torch.float64)[0]
    given = {"data": (x[:32], y[:32]), "calibration": (x, y), "loss": "mse", "device": "cpu", **options}
    return lmccheck.fuse(a, b, model_a=lambda: build(scale_a), model_b=lambda: build(scale_b), **given)


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
