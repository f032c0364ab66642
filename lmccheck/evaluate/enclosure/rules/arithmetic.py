"""Sums, differences, products and quotients by constants, of two values or of a value and a constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure, lifted, product

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
    return (first + second.times(alpha)).rounded()


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
    if isinstance(other, Enclosed) or not isinstance(one, Enclosed) or rounding_mode is not None:
        raise NoEnclosure("a quotient by what changes")
    first, second = _operands(one, other)
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
