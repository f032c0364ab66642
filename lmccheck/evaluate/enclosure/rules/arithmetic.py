"""Sums, differences, products and quotients, of two values or of a value and a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure, lifted, product
from lmccheck.evaluate.enclosure.rules.smooth import power as power_of

Value = Enclosed | Tensor | float


def _operands(one: Value, other: Value) -> tuple[Enclosed, Enclosed]:
    """Return both as values of the shape to which they broadcast."""
    like = next(each.first for each in (one, other) if isinstance(each, Enclosed))
    both = [lifted(like.new_tensor(each) if isinstance(each, (int, float)) else each) for each in (one, other)]
    shape = (both[0].first + both[1].first).shape
    first, second = (each.map(lambda part: part.expand(shape)) for each in both)
    return first, second


@encloses("add")
def add(cell: Cell, one: Value, other: Value, *, alpha: float = 1) -> Enclosed:
    first, second = _operands(one, other)
    low, more = _floor(one), _floor(other)
    floor = None if low is None or more is None or alpha < 0 else low + alpha * more
    return replace((first + second.times(alpha)).rounded(), floor=floor)


def _floor(value: Value) -> float | None:
    """Return what no number of a value or of a constant is below, where that is known."""
    if isinstance(value, Enclosed):
        return value.floor
    return float(value.min()) if isinstance(value, Tensor) else value


@encloses("sub")
def sub(cell: Cell, one: Value, other: Value, *, alpha: float = 1) -> Enclosed:
    first, second = _operands(one, other)
    return (first - second.times(alpha)).rounded()


@encloses("rsub")
def rsub(cell: Cell, one: Value, other: Value, *, alpha: float = 1) -> Enclosed:
    first, second = _operands(other, one)
    return (first - second.times(alpha)).rounded()


@encloses("mul")
def mul(cell: Cell, one: Value, other: Value) -> Enclosed:
    first, second = _operands(one, other)
    return product(first, second)


@encloses("square")
def square(cell: Cell, x: Enclosed) -> Enclosed:
    return product(x, x)


@encloses("pow")
def power(cell: Cell, x: Value, exponent: Value) -> Enclosed:
    if not isinstance(x, Enclosed) or exponent != 2:
        raise NoEnclosure("a power other than 2")
    return product(x, x)


@encloses("div")
def div(cell: Cell, one: Value, other: Value, *, rounding_mode: str | None = None) -> Enclosed:
    if rounding_mode is not None:
        raise NoEnclosure("a quotient that is rounded")
    first, second = _operands(one, other)
    if isinstance(other, Enclosed):
        return product(first, power_of(second, -1.0, other.floor))
    return first.times(1 / second.first).rounded(2)


@encloses("neg")
def neg(cell: Cell, x: Enclosed) -> Enclosed:
    return -x


@encloses("sum")
def total(cell: Cell, x: Enclosed, dim: Sequence[int] | int | None = None, keepdim: bool = False) -> Enclosed:
    over = _over(x, dim)
    return _summed(x, over, x.map(lambda part: part.sum(over, keepdim=keepdim)), keepdim, 1.0)


@encloses("mean")
def mean(cell: Cell, x: Enclosed, dim: Sequence[int] | int | None = None, keepdim: bool = False) -> Enclosed:
    over = _over(x, dim)
    count = 1
    for d in over:
        count *= x.shape[d]
    return _summed(x, over, x.map(lambda part: part.mean(over, keepdim=keepdim)), keepdim, 1.0 / count)


def _over(x: Enclosed, dim: Sequence[int] | int | None) -> tuple[int, ...]:
    """Return the dimensions that are summed over; what is summed over samples is no value of each."""
    over = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if not over or any(d % x.ndim == 0 for d in over):
        raise NoEnclosure("a sum over samples")
    return over


def _summed(x: Enclosed, over: tuple[int, ...], found: Enclosed, keepdim: bool, share: float) -> Enclosed:
    """Return a sum with room for its rounding, which grows with the sizes of what is summed."""
    sizes = Enclosed(x.size, x.size).map(lambda part: part.sum(over, keepdim=keepdim)).first * share
    terms = x.first.numel() // max(1, found.first.numel())
    more = Enclosed(sizes, sizes).rounded(terms).slack
    return found + Enclosed(torch.zeros_like(sizes), torch.zeros_like(sizes), None, more)
