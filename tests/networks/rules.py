"""One network for each rule that no other small network uses in a way that shows when the rule is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import Case, network
from networks.uncommon import IMAGES, ROWS, TOKENS
from networks.written import Written, param

Run = Callable[..., Tensor]


def rows(run: Run, reads: int = 6, **parts: Any) -> Callable[[], Case]:
    """Six hidden units of a row, an op, a linear layer that reads what comes out."""

    def build() -> Case:
        made = {name: part() for name, part in parts.items()}
        return Written(lambda s, x: s.o(run(s, s.a(x))), a=nn.Linear(5, 6), o=nn.Linear(reads, 2), **made), (ROWS,)

    return build


def tokens(run: Run) -> Callable[[], Case]:
    """Six hidden units of every token, an op over the tokens, a linear layer."""
    return lambda: (Written(lambda s, x: s.o(run(s, s.a(x))), a=nn.Linear(5, 6), o=nn.Linear(6, 2)), (TOKENS,))


def images(run: Run, **parts: Any) -> Callable[[], Case]:
    """Six channels, an op, a pointwise convolution."""

    def build() -> Case:
        made = {name: part() for name, part in parts.items()}
        module = Written(lambda s, x: s.o(run(s, s.a(x))), a=nn.Conv2d(3, 6, 1), o=nn.Conv2d(6, 2, 1), **made)
        return module, (IMAGES,)

    return build


def _unpooled(s: Any, h: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(pooled, places, 2)


ORDER = torch.tensor([2, 0, 1, 5, 3, 4])
aten = torch.ops.aten

for name, build in {
    "addmm": rows(lambda s, h: torch.addmm(s.c, h, s.w), c=lambda: param(6), w=lambda: param(6, 6)),
    "argmax": rows(lambda s, h: s.e(h.argmax(-1)), e=lambda: nn.Embedding(6, 6)),
    "argsort": rows(lambda s, h: h.argsort(-1).to(h.dtype)),
    "batch_norm_live": images(
        lambda s, h: aten._native_batch_norm_legit.no_stats(h, s.g, s.b, True, 0.1, 1e-5)[0],
        g=lambda: param(6),
        b=lambda: param(6),
    ),
    "bucketize": rows(lambda s, h: torch.bucketize(h, torch.linspace(-1, 1, 4)).to(h.dtype)),
    "convolution": images(
        lambda s, h: torch.convolution(h, s.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        w=lambda: param(6, 6, 1, 1),
    ),
    "count": rows(lambda s, h: torch.histc(h, 4, -1, 1), reads=4),
    "diagonal": rows(lambda s, h: (h[:, :, None] * s.w).diagonal(dim1=1, dim2=2), w=lambda: param(6, 6)),
    "fused_rms_norm": rows(lambda s, h: aten._fused_rms_norm(h, [6], s.g, 1e-5)[0], g=lambda: param(6)),
    "index_select": rows(lambda s, h: h.index_select(1, ORDER)),
    "join": rows(lambda s, h: torch.complex(h, s.b(h)).abs(), b=lambda: nn.Linear(6, 6)),
    "masked_scatter": rows(
        lambda s, h: h.masked_scatter(torch.tensor([True, False] * 3), s.b(h)), b=lambda: nn.Linear(6, 6)
    ),
    "median": tokens(lambda s, h: h.median(1).values),
    "movedim": tokens(lambda s, h: h.movedim(1, 2).mean(2)),
    "narrow": rows(lambda s, h: h.narrow(1, 1, 3), reads=3),
    "native_layer_norm": rows(lambda s, h: torch.native_layer_norm(h, [6], s.g, s.g, 1e-5)[0], g=lambda: param(6)),
    "nonzero": rows(lambda s, h: h[:, (s.g > 0).nonzero().squeeze(1)].sum(1, keepdim=True), 1, g=lambda: param(6)),
    "norm": tokens(lambda s, h: h.norm(dim=1)),
    "one_hot": rows(lambda s, h: F.one_hot((h > 0).long(), 2).to(h.dtype).flatten(1), reads=12),
    "part": rows(lambda s, h: torch.fft.fft(h, dim=0).real),
    "pool_with_indices": images(lambda s, h: F.adaptive_max_pool2d(h, 2, return_indices=True)[0]),
    "rms_norm": rows(lambda s, h: F.rms_norm(h, (6,), s.g), g=lambda: param(6)),
    "scatter": rows(lambda s, h: torch.zeros_like(h).scatter(1, ORDER.expand(2, 6), h)),
    "spread": tokens(lambda s, h: h.std(1)),
    "spread_and_mean": tokens(lambda s, h: torch.var_mean(h, 1)[0]),
    "triangle": rows(lambda s, h: h @ s.w.tril(), w=lambda: param(6, 6)),
    "unpool": images(_unpooled),
    "view_as_real": rows(lambda s, h: torch.view_as_real(torch.fft.fft(h, dim=0)).sum(-1)),
    "where": rows(lambda s, h: torch.where(h > 0, s.b(h), h), b=lambda: nn.Linear(6, 6)),
}.items():
    network(kind="rule", name=name)(build)
