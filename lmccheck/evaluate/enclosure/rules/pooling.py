"""Pooling: means are linear; of a maximum, a tent between what is largest at one end and at the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import ROUNDING, Enclosed, NoEnclosure, tent

AVERAGES = {
    **{f"avg_pool{k}d": getattr(F, f"avg_pool{k}d") for k in (1, 2, 3)},
    **{f"adaptive_avg_pool{k}d": getattr(F, f"adaptive_avg_pool{k}d") for k in (1, 2, 3)},
    **{f"_adaptive_avg_pool{k}d": getattr(F, f"adaptive_avg_pool{k}d") for k in (2, 3)},
}


def _averages(name: str) -> None:
    def average(cell: Cell, x: Enclosed, *settings: Any) -> Enclosed:
        found = x.map(lambda part: AVERAGES[name](part, *settings))
        sizes = Enclosed(x.size, x.size).map(lambda part: AVERAGES[name](part, *settings)).first
        more = ROUNDING * (x.first.numel() // max(1, found.first.numel()) + 8) * sizes
        return Enclosed(found.first, found.second, found.bend, more if found.slack is None else found.slack + more)

    encloses(name)(average)


for _name in AVERAGES:
    _averages(_name)


def largest(x: Enclosed, dim: int) -> Enclosed:
    """Return the maximum over a dimension.

    Let j be largest at the first end and k at the second. The maximum of chords lies between the larger of those of j
    and k, a tent below the chord of the maxima, and that chord; where no third comes into question, it is the former.
    Off chords, all that may be the largest are within ρ of s(1−s)·(half of both bends). Where j is nowhere exceeded,
    the maximum is j itself.
    """
    first, j = x.first.max(dim, keepdim=True)
    second, k = x.second.max(dim, keepdim=True)
    zero = torch.zeros_like(x.first)
    bend, slack = (zero if part is None else part for part in (x.bend, x.slack))
    off = bend.abs() / 4 + slack
    mu, rho = tent(second - x.second.gather(dim, j), first - x.first.gather(dim, k))

    def beaten(by: Tensor) -> Tensor:
        ahead = torch.minimum(x.first.gather(dim, by) - x.first, x.second.gather(dim, by) - x.second)
        return ahead > off + off.gather(dim, by)

    own = torch.zeros_like(x.first, dtype=torch.bool).scatter(dim, j, True)
    alone = (beaten(j) | own).all(dim, keepdim=True)
    out = beaten(j) | beaten(k)
    third = (~out & ~own.scatter(dim, k, True)).any(dim, keepdim=True)
    shared = (bend.gather(dim, j) + bend.gather(dim, k)) / 2
    apart = torch.where(out, zero, (bend - shared).abs() / 4 + slack).amax(dim, keepdim=True)
    rounding = 8 * ROUNDING * (mu + shared.abs() + first.abs() + second.abs())
    apart = apart + rho + torch.where(third, mu / 8, 0.0) + rounding
    bend = torch.where(alone, bend.gather(dim, j), shared - torch.where(third, mu / 2, mu))
    slack = torch.where(alone, slack.gather(dim, j), apart)
    return Enclosed(*(part.squeeze(dim) for part in (first, second, bend, slack)))


def _windows(part: Tensor, sizes: Sequence[int], steps: Sequence[int], padding: Sequence[int], value: float) -> Tensor:
    """Return what each window of (n, c, …) holds, as a last dimension."""
    part = F.pad(part, [side for k in reversed(padding) for side in (k, k)], value=value)
    for d, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        part = part.unfold(2 + d, size, step)
    return part.flatten(-len(sizes))


def _max_pool(dims: int) -> None:
    def max_pool(
        cell: Cell,
        x: Enclosed,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Enclosed:
        sizes, pads, gaps = (_each(value, dims) for value in (kernel, padding, dilation))
        steps = _each(stride, dims) if stride not in ((), []) else sizes
        if ceil_mode or set(gaps) != {1} or x.ndim != dims + 2:
            raise NoEnclosure("max pooling with ceil_mode, with dilation or of a single sample")
        first, second = (_windows(end, sizes, steps, pads, -torch.inf) for end in (x.first, x.second))
        parts = (None if p is None else _windows(p, sizes, steps, pads, 0.0) for p in (x.bend, x.slack))
        least = torch.minimum(x.first.min(), x.second.min()) - x.off_chord.max() - 1  # below all, and finite
        first, second = (end.clamp(min=float(least)) for end in (first, second))
        return largest(Enclosed(first, second, *parts), -1)

    encloses(f"max_pool{dims}d")(max_pool)


for _dims in (1, 2, 3):
    _max_pool(_dims)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * dims if len(found) == 1 else found


@encloses("amax")
def amax(cell: Cell, x: Enclosed, dim: Sequence[int] = (), keepdim: bool = False) -> Enclosed:
    """The maximum over dimensions that are not the samples'."""
    over = sorted(d % x.ndim for d in dim)
    if not over or over[0] == 0:
        raise NoEnclosure("a maximum over samples")
    for d in reversed(over):
        x = largest(x, d)
    return x if not keepdim else x.map(lambda part: _kept(part, over))


def _kept(part: Tensor, over: Sequence[int]) -> Tensor:
    for d in over:
        part = part.unsqueeze(d)
    return part


@encloses("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(cell: Cell, x: Enclosed, size: Sequence[int]) -> Any:
    """The maximum over all places; of other sizes windows differ."""
    if set(size) != {1}:
        raise NoEnclosure("adaptive max pooling to more than one place")
    found = largest(x.map(lambda part: part.flatten(2)), 2)
    return found.map(lambda part: part.reshape(*part.shape, *([1] * len(size)))), None
