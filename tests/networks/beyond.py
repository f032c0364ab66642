"""Networks that have symmetries beyond permutations, and pairs of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.beyond.freedoms import KINDS, Freedom, Trial, find_freedoms
from lmccheck.alignment.beyond.stream import Stream, find_streams
from lmccheck.modules.runner import outputs_of
from lmccheck.symmetry.discover import Traced, derive
from networks import NETWORKS, Attention, Written, registry, residual, small

Weights = dict[str, Tensor]


Case = tuple[nn.Module, tuple[Tensor, ...]]


def perceptron(activation: Callable[[], nn.Module], depth: int = 1, width: int = 12) -> Case:
    """Return 6-width-…-width-3."""
    return small.perceptron(6, *[width] * depth, 3, activation=activation), (torch.randn(4, 6),)


def plain() -> nn.Module:
    """Attention of two heads without any bias."""

    def attend(s: Written, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (s.q, s.k, s.v))
        y = (q @ k.mT / 8**0.5).softmax(-1) @ v
        return s.out(y.transpose(1, 2).flatten(2))

    return Written(attend, **{name: nn.Linear(16, 16, bias=False) for name in ("q", "k", "v", "out")})


def block(attention: Callable[[], nn.Module], inputs: int = 20, final: bool = True, after: bool = False) -> Case:
    """Return a pre-norm block of width 16 on 5 tokens, with or without a final norm (or a post-norm one)."""
    inner = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
    if after:
        parts = [residual(attention()), nn.LayerNorm(16), residual(inner), nn.LayerNorm(16)]
    else:
        parts = [
            residual(nn.Sequential(nn.LayerNorm(16), attention())),
            residual(nn.Sequential(nn.LayerNorm(16), inner)),
        ]
    last = [nn.LayerNorm(16)] if final else []
    net = nn.Sequential(nn.Linear(inputs, 16), *parts, *last, Written(lambda x: x.mean(1)), nn.Linear(16, 3))
    return net, (torch.randn(2, 5, inputs),)


BUILD: dict[str, Callable[[], Case]] = {
    **NETWORKS,
    "relu": lambda: perceptron(nn.ReLU),
    "relu deep": lambda: perceptron(nn.ReLU, 3),
    "leaky": lambda: perceptron(lambda: nn.LeakyReLU(0.1), 2),
    "tanh": lambda: perceptron(nn.Tanh),
    "tanh deep": lambda: perceptron(nn.Tanh, 3),
    "gelu": lambda: perceptron(nn.GELU, 2),
    "sigmoid": lambda: perceptron(nn.Sigmoid, 2),
    "linear": lambda: perceptron(nn.Identity, 1),
    "attention": lambda: block(lambda: Attention(16, 2, "separate")),
    "attention without biases": lambda: block(plain),
    "few inputs": lambda: block(lambda: Attention(16, 2, "separate"), inputs=5),
    "final norm": lambda: block(lambda: Attention(16, 2, "chunk")),
    "no final norm": lambda: block(lambda: Attention(16, 2, "chunk"), final=False),
    "post norm": lambda: block(lambda: Attention(16, 2, "chunk"), after=True, final=False),
}


@cache
def found_in(name: str) -> tuple[nn.Module, Traced, tuple[Freedom, ...], tuple[Stream, ...], dict[str, str]]:
    """Return a network, its trace, and every map that is found for it, each kind looked for alone."""
    torch.manual_seed(0)
    module, inputs = BUILD[name]()
    derived = registry.derived(name) if name in NETWORKS else derive(module, inputs)
    trial = Trial(module, inputs)
    freedoms = [f for kind in KINDS[:-1] for f in find_freedoms(derived, trial, (kind,))]
    streams, refused = find_streams(derived, trial)
    return module, derived, tuple(freedoms), tuple(streams), refused


def groups_with(name: str, kind: str) -> set[str]:
    return {f.group for f in found_in(name)[2] if f.kind == kind}


def turn(stream: Stream, seed: int = 5) -> Tensor:
    """Return a random rotation of a stream."""
    size = stream.free_basis().shape[1]
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return stream.embed(torch.linalg.qr(noise).Q)


def pair_of(name: str, theta: Weights, other: Weights, calibrated: bool = True) -> lmccheck.ModelPair:
    """Return the pair with random data of θ's own outputs."""
    module, _, _, _, _ = found_in(name)
    torch.manual_seed(2)
    inputs = BUILD[name]()[1][0]
    shape = (512, *inputs.shape[1:])
    x = torch.randn(shape) if inputs.is_floating_point() else torch.randint(0, 11, shape)
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    data = (x[:64], y[:64])
    return lmccheck.load_pair(
        theta, other, model=copy.deepcopy(module), data=data, calibration=(x, y) if calibrated else None, loss="mse",
        device="cpu",
    )  # fmt: skip
