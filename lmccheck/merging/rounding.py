"""How far rounding takes a merge from what it is by its laws: entry by entry, and along whole tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STRAY = 1.5  # times what all entries explain, were their roundings independent: six times its root mean square
STATED = 2.0  # ε by which a program's weights, kept in the dtype of its tensors, may be off
FEW = 256  # values, as norms of ones have: whether one rounds up hangs on the very differences of the parents


@dataclass(frozen=True)
class Rounding:
    """How a recipe rounds. ``once``: it sums in float64 and rounds to nearest once; else, after each step, as foreign
    programs may. ``products``: it adds products of factors, whose terms cancel. ``size``: Σ |w|.
    """

    once: bool = False
    products: bool = False
    size: float = 1.0

    def between(self, got: Tensor, expected: Tensor, sources: list[Tensor]) -> Tensor:
        """Return how far two merges of the same may be apart in each entry, or one from its only parent."""
        import torch

        size = expected.double().abs()
        for one in sources:
            if one.shape == size.shape:
                size = torch.maximum(size, one.double().abs())
        count = len(sources) + 3
        if self.once:
            return self._once(got, expected, count * 2.0**-52 * self.size * size)
        return count * (self._eps(got, sources) * self.size * self._least(size, sources) + _least_of(got))

    def again(self, got: Tensor, expected: Tensor, sources: list[Tensor]) -> Tensor:
        """Return the same where both are rounded: near the middle of two numbers one rounds up, the other down."""
        import torch

        explained = self.between(got, expected, sources)
        unit = torch.finfo(got.dtype).eps * expected.double().abs() + _least_of(got)
        return torch.maximum(explained, unit) if self.once else explained

    def of_sum(self, got: Tensor, expected: Tensor, terms: list[tuple[float, Tensor]]) -> Tensor:
        """Return how far each entry may be from the sum of terms, weights times tensors."""
        size = sum((abs(weight) * one.double().abs() for weight, one in terms), start=expected.double() * 0)
        count, sources = len(terms) + 3, [one for _, one in terms]
        if self.once:
            return self._once(got, expected, count * 2.0**-52 * size)
        return count * (self._eps(got, sources) / 2 * self._least(size, sources) + _least_of(got))

    def _once(self, got: Tensor, expected: Tensor, slack: Tensor) -> Tensor:
        import torch

        from lmccheck.merging.average import rounded

        value, dtype = expected.double(), str(got.dtype).removeprefix("torch.")
        low, high = (rounded(end, dtype).double() for end in (value - slack, value + slack))
        return torch.maximum(high - value, value - low)

    def _eps(self, got: Tensor, sources: list[Tensor]) -> float:
        import torch

        return max(torch.finfo(one.dtype).eps for one in (got, *sources) if one.is_floating_point())

    def _least(self, size: Tensor, sources: list[Tensor]) -> Tensor:
        """Products round by their terms, which cancel in some entries: at least the largest change of the tensor."""
        alike = [one.double() for one in sources if one.shape == size.shape] if self.products else []
        spread = max((float((one - alike[0]).abs().max()) for one in alike[1:]), default=0.0)
        return size.clamp(min=self.size * spread) if math.isfinite(spread) else size


def strays(got: Tensor, expected: Tensor, terms: list[tuple[float, Tensor]], allowed: Tensor) -> Tensor | None:
    """Return the direction along which a sum in 16 bits strays further than roundings do, or None.

    In every entry many roundings may hide a wrong weight; over a tensor they cancel and the weight's error does not.
    Directions are that of the sum itself and those of each term from it. Roundings of entries of one value are taken to
    be the same. What lies between the sum and its rounding is no error, nor is the rounding of weights.
    """
    import torch

    from lmccheck.merging.average import rounded

    kind = max((got, *(one for _, one in terms)), key=lambda one: torch.finfo(one.dtype).eps).dtype
    eps = torch.finfo(kind).eps
    value = expected.double().reshape(-1)
    if kind.itemsize != 2 or len(terms) * eps > 1 or not bool(value.isfinite().all()):
        return None  # more than a sum in steps can add up at all
    near = rounded(value, str(kind).removeprefix("torch."))
    group = near.abs().view(torch.int16).long()
    ends = torch.minimum(value, near.double()), torch.maximum(value, near.double())
    flat = got.double().reshape(-1)
    off = flat - flat.clamp(*ends)
    few = int((torch.bincount(group) > 0).sum()) < FEW
    if not bool((off != 0).any()):
        return None
    parts = [(weight, one.double().reshape(-1)) for weight, one in terms]
    for along in (value, *(one - value for _, one in parts)):
        each = allowed.reshape(-1) * along * value.sign()
        each = each.abs() if few else each
        explained = STRAY * torch.hypot(torch.bincount(group, each).norm(), each.norm())
        stated = sum(abs(weight) * abs(float(one @ along)) for weight, one in parts)
        if abs(float(off @ along)) > float(explained) + STATED * eps * stated:
            return along.reshape(got.shape)
    return None


def _least_of(got: Tensor) -> float:
    """Return the smallest number above zero of a tensor's dtype."""
    import torch

    kind = torch.finfo(got.dtype)
    return kind.smallest_normal * kind.eps
