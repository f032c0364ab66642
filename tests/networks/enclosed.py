"""Small networks of every op that has an enclosure, with weights far wilder than any that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "steep": lambda: nn.LeakyReLU(1.7),
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "sharp": lambda: nn.Softplus(3.0, 2.0),
    "elu": nn.ELU,
    "low-elu": lambda: nn.ELU(0.5),
    "selu": nn.SELU,
}
RARER: dict[str, Callable[[], nn.Module]] = {  # in perceptrons alone
    "celu": lambda: nn.CELU(0.6),
    "mish": nn.Mish,
    "softsign": nn.Softsign,
    "log-sigmoid": nn.LogSigmoid,
    "softshrink": lambda: nn.Softshrink(0.3),
}
POOLS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "mean": lambda: nn.AvgPool2d(2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
}


class Each(nn.Conv1d):
    """A linear layer for each of several networks side by side, (n, copies, read) to (n, copies, made)."""

    def __init__(self, read: int, made: int, bias: bool = True, *, copies: int) -> None:
        super().__init__(copies * read, copies * made, 1, groups=copies, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1).unsqueeze(2)).reshape(len(x), self.groups, -1)


def _linear(copies: int) -> Callable[..., nn.Module]:
    return partial(Each, copies=copies) if copies else nn.Linear


class Gated(nn.Module):
    """A product of two halves of a layer, one through an activation; a difference, a square, an absolute."""

    def __init__(self, activation: Callable[[], nn.Module], copies: int = 0) -> None:
        super().__init__()
        linear = _linear(copies)
        self.both, self.down = linear(5, 12), linear(12, 3)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        first, up = self.both(x).chunk(2, -1)
        gate = self.activation(first)
        other = (2 - gate).abs() / 3 - 0.1 * up.square()
        return self.down(torch.cat([gate * up, other], -1))


class Residual(nn.Module):
    """Convolutions (grouped, strided, dilated), BatchNorm, a skip, padding, a maximum and a mean over places."""

    def __init__(self, activation: Callable[[], nn.Module], pool: Callable[[], nn.Module], copies: int = 0) -> None:
        super().__init__()
        k = copies or 1
        self.stem = nn.Conv2d(k, 4 * k, 3, padding=1, groups=k)
        self.pool = pool()
        self.inner = nn.Conv2d(4 * k, 4 * k, 3, padding=2, dilation=2, groups=2 * k)
        self.norm = nn.BatchNorm2d(4 * k)
        self.last = nn.Conv2d(4 * k, 3 * k, 2, stride=2, groups=k, bias=False)
        self.activation = activation()
        self.head = _linear(copies)(6, 3)
        self.per = (copies, 3) if copies else (3,)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.stem(x.flatten(1, -3))))
        x = x + self.activation(self.norm(self.inner(x)))
        x = self.last(F.pad(x, (1, 0, 0, 1), value=0.5))
        both = x.flatten(2).amax(2), x.mean((2, 3))
        return self.head(torch.cat([part.unflatten(1, self.per) for part in both], -1))


def layers(widths: Sequence[int], activation: Callable[[], nn.Module], bias: bool, copies: int = 0) -> nn.Module:
    """A perceptron that begins with a reshape."""
    parts: list[nn.Module] = [nn.Flatten(2 if copies else 1)]
    for read, made in pairwise(widths):
        parts += [_linear(copies)(read, made, bias=bias), activation()]
    return nn.Sequential(*parts[:-1])


class Norm(nn.Module):
    """LayerNorm, or RMSNorm, over a few numbers; of several networks side by side each with its own gains."""

    def __init__(self, size: int, centred: bool, copies: int = 0) -> None:
        super().__init__()
        self.size, self.centred, self.copies = size, centred, copies
        self.weight, self.bias = (nn.Parameter(torch.zeros(size * (copies or 1))) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.copies:
            plain = F.layer_norm(x, (self.size,)) if self.centred else F.rms_norm(x, (self.size,), eps=1e-3)
            return plain * self.weight.view(self.copies, -1) + self.bias.view(self.copies, -1)
        if self.centred:
            return F.layer_norm(x, (self.size,), self.weight, self.bias)
        return F.rms_norm(x, (self.size,), self.weight, eps=1e-3) + self.bias


def normed(centred: bool, copies: int = 0) -> nn.Module:
    """A perceptron with a norm behind each hidden layer, and a gate of torch's own."""
    linear = _linear(copies)
    first, second = [linear(5, 6), Norm(6, centred, copies), nn.GELU()], [linear(6, 6), Norm(6, centred, copies)]
    return nn.Sequential(*first, *second, nn.GLU(), linear(3, 3))


class Bank(nn.Module):
    """As many networks of a kind as there are copies, (n, copies, …) inputs to (n·copies, 3) outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flatten(0, 1)


def wild(module: nn.Module, seed: int, scale: float) -> dict[str, Tensor]:
    """Return float64 weights of a size, variances above 0, of which some are all but 0."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
        elif name.endswith("running_var"):
            found[name] = torch.rand(tensor.shape, generator=draw, dtype=torch.float64) * 2 + 0.01
        else:
            found[name] = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * scale
    return found


@dataclass(frozen=True)
class Kind:
    """A network by name, with the shape of a sample; ``build(copies=k)`` makes k of them side by side, as ``Bank``."""

    name: str
    build: Callable[..., nn.Module]
    shape: tuple[int, ...]


def kinds() -> list[Kind]:
    """Return a network for every activation in a perceptron, and for as many convolutions and gates."""
    found = []
    for k, (name, activation) in enumerate(ACTIVATIONS.items()):
        widths = [5, *([6] * (k % 6 + 1)), 3]  # depths 2 to 7
        pool_name, pool = list(POOLS.items())[k % len(POOLS)]
        found += [
            Kind(f"{name}-{len(widths) - 1}", partial(layers, widths, activation, k % 3 > 0), (5,)),
            Kind(f"{name}-{pool_name}", partial(Residual, activation, pool), (1, 8, 8)),
            Kind(f"{name}-gate", partial(Gated, activation), (5,)),
        ]
    found += [Kind(f"{name}-3", partial(layers, [5, 6, 6, 3], rare, True), (5,)) for name, rare in RARER.items()]
    found += [Kind(name, partial(normed, name == "layer-norm"), (5,)) for name in ("layer-norm", "rms-norm")]
    return found
