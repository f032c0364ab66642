"""A value on a cell of a line: its ends exactly, a bend between them, and how far it may be from both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

TWIST = 1 / (12 * sqrt(3))  # max of |s(1−s)(s−½)| on [0,1]
ROUNDING = 2.0**-50  # eight units in the last place of float64: of both ends, of the bend, and of what is compared


class NoEnclosure(Exception):
    """Raised where a network does something of which no useful bound is known; it says what."""


@dataclass(frozen=True)
class Enclosed:
    """h(s) = (1−s)·first + s·second + s(1−s)·bend + e(s) with |e(s)| ≤ slack for all s in [0, 1].

    Tensors of one shape, float64; ``bend`` and ``slack`` are None where they are 0. ``first is second`` where the
    value is the same all along the cell. The bend keeps what is known of curvature with its signs, so that it may
    cancel in what comes after; only what is left goes into the slack. ``floor``: what no number of it is below, where
    that is known beside.
    """

    first: Tensor
    second: Tensor
    bend: Tensor | None = None
    slack: Tensor | None = None
    floor: float | None = field(default=None, kw_only=True)

    @property
    def constant(self) -> bool:
        """Whether it is known to be the same all along."""
        return self.first is self.second

    @property
    def shape(self) -> torch.Size:
        """The shape of its tensors."""
        return self.first.shape

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return self.first.ndim

    @cached_property
    def step(self) -> Tensor:
        """By how much the second end differs from the first."""
        return self.second - self.first

    @cached_property
    def middle(self) -> Tensor:
        """Half-way between the ends."""
        return self.first if self.constant else (self.first + self.second) / 2

    @cached_property
    def largest_end(self) -> Tensor:
        """The larger of the ends' magnitudes."""
        return self.first.abs() if self.constant else torch.maximum(self.first.abs(), self.second.abs())

    @property
    def off_chord(self) -> Tensor:
        """How far it may be from the chord of its ends."""
        off = _sum(None if self.bend is None else self.bend.abs() / 4, self.slack, self.first)
        return torch.zeros_like(self.first) if off is None else off

    @property
    def low(self) -> Tensor:
        """What it is nowhere below."""
        found = torch.minimum(self.first, self.second)
        found = found if self.bend is None else found + self.bend.clamp(max=0) / 4
        return found if self.slack is None else found - self.slack

    @property
    def high(self) -> Tensor:
        """What it is nowhere above."""
        found = torch.maximum(self.first, self.second)
        found = found if self.bend is None else found + self.bend.clamp(min=0) / 4
        return found if self.slack is None else found + self.slack

    @property
    def size(self) -> Tensor:
        """What its magnitude is nowhere above."""
        return self.largest_end + self.off_chord

    def map(self, move: Callable[[Tensor], Tensor]) -> Enclosed:
        """Return what a linear function makes of it that has no negative weight (a reshape, a mean)."""
        first = move(self.first)
        second = first if self.constant else move(self.second)
        parts = (None if part is None else move(part) for part in (self.bend, self.slack))
        return Enclosed(first, second, *parts)

    def rounded(self, units: float = 1.0) -> Enclosed:
        """Return it with room for the rounding of so many operations in each of its numbers."""
        more = units * ROUNDING * self.size
        return Enclosed(self.first, self.second, self.bend, more if self.slack is None else self.slack + more)

    def __neg__(self) -> Enclosed:
        first = -self.first
        second = first if self.constant else -self.second
        return Enclosed(first, second, None if self.bend is None else -self.bend, self.slack)

    def __add__(self, other: Enclosed) -> Enclosed:
        first = self.first + other.first
        second = first if self.constant and other.constant else self.second + other.second
        return Enclosed(first, second, _sum(self.bend, other.bend, first), _sum(self.slack, other.slack, first))

    def __sub__(self, other: Enclosed) -> Enclosed:
        return self + -other

    def times(self, factor: float | Tensor) -> Enclosed:
        """Return it times a constant, elementwise."""
        first = self.first * factor
        second = first if self.constant else self.second * factor
        size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        bend = None if self.bend is None else self.bend * factor
        return Enclosed(first, second, bend, None if self.slack is None else self.slack * size)

    def plus(self, shift: float | Tensor) -> Enclosed:
        """Return it plus a constant, elementwise."""
        first = self.first + shift
        second = first if self.constant else self.second + shift
        return Enclosed(first, second, _like(self.bend, first), _like(self.slack, first))


def lifted(value: Enclosed | Tensor) -> Enclosed:
    """Return a constant as a value that is the same all along."""
    return value if isinstance(value, Enclosed) else Enclosed(value, value)


def chosen(where: Tensor, one: Enclosed, other: Enclosed) -> Enclosed:
    """Return one value where ``where`` holds and another elsewhere; their ends are those of the same function."""
    first, second = (torch.where(where, *ends) for ends in ((one.first, other.first), (one.second, other.second)))
    bend, slack = (_where(where, *parts) for parts in ((one.bend, other.bend), (one.slack, other.slack)))
    return Enclosed(first, second, bend, slack)


def joined(parts: Sequence[Enclosed], join: Callable[[list[Tensor]], Tensor]) -> Enclosed:
    """Return several values as one; ``join`` puts tensors together."""

    def whole(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        if all(each is None for each in found):
            return None
        return join([torch.zeros_like(p.first) if f is None else f for f, p in zip(found, parts, strict=True)])

    first = join([part.first for part in parts])
    second = first if all(part.constant for part in parts) else join([part.second for part in parts])
    return Enclosed(first, second, whole("bend"), whole("slack"))


def product(x: Enclosed, y: Enclosed) -> Enclosed:
    """Return the product of two values, elementwise.

    Of chords: chord − s(1−s)·Δx·Δy exactly. A bend v of x: y's chord times s(1−s)·v is s(1−s)·(middle of y)·v and
    what is left, at most max|s(1−s)(s−½)|·|Δy·v|; two bends: s²(1−s)² is within 1/80 of s(1−s)/5.
    """
    bend = None if x.constant or y.constant else -(x.step * y.step)
    slack = None
    for one, other in ((x, y), (y, x)):
        if one.bend is not None:
            bend = _plus(bend, one.bend * other.middle)
            slack = slack if other.constant else _plus(slack, TWIST * (one.bend * other.step).abs())
    if x.bend is not None and y.bend is not None:
        both = x.bend * y.bend
        bend, slack = _plus(bend, both / 5), _plus(slack, both.abs() / 80)
    if x.slack is not None:
        slack = _plus(slack, x.slack * y.size)
    if y.slack is not None:
        slack = _plus(slack, y.slack * (x.size if x.slack is None else x.size - x.slack))
    first = x.first * y.first
    second = first if x.constant and y.constant else x.second * y.second
    return Enclosed(first, second, _like(bend, first), _like(slack, first)).rounded(4)


def tent(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return (μ, ρ) with |min(s·left, (1−s)·right) − s(1−s)·μ| ≤ ρ for all s in [0, 1]; both slopes are ≥ 0.

    At the tent's top, s = right/(left+right), it is above by top·(1 − μ/(left+right)); beside it, it is below by at
    most (μ − the smaller slope)²/(4μ). The μ for which both are equal solves a quadratic; any μ is sound.
    """
    whole, small = (left + right).clamp(min=torch.finfo(left.dtype).tiny), torch.minimum(left, right)
    top = left * (right / whole)
    share = 4 * top / whole
    half = small + share * whole / 2
    mu = (half + (half.square() - (1 + share) * small.square()).clamp(min=0).sqrt()) / (1 + share)
    below = (mu - small).clamp(min=0).square() / (4 * mu).clamp(min=torch.finfo(left.dtype).tiny)
    return mu, torch.maximum((top * (1 - mu / whole)).abs(), below)


def _sum(one: Tensor | None, other: Tensor | None, like: Tensor) -> Tensor | None:
    return _like(one if other is None else other if one is None else one + other, like)


def _plus(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


def _like(part: Tensor | None, like: Tensor) -> Tensor | None:
    return None if part is None else part.expand(like.shape)


def _where(where: Tensor, one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None and other is None:
        return None
    zero = torch.zeros((), dtype=torch.float64, device=where.device)
    return torch.where(where, zero if one is None else one, zero if other is None else other)
