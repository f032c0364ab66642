"""ReLU and its kin: exact where no unit changes sign over the cell, a tent where one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import ROUNDING, Enclosed, chosen, lifted, product, tent

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def rectified(z: Enclosed) -> Enclosed:
    """Return max(z, 0), elementwise.

    With chord c, z = c + d and |d| ≤ |v|/4 + r. No sign may change: z as it is, or 0. Both ends ≥ 0: z + max(−z, 0),
    the latter at most −(what z is nowhere below). Both ends ≤ 0: between 0 and what z is nowhere above. Else: c's own
    rectification lies under its chord by a tent; d counts for a share of it between 0 and 1, so half of it ± half.
    """
    first = z.first.clamp(min=0)
    second = first if z.constant else z.second.clamp(min=0)
    if z.constant and z.bend is None and z.slack is None:
        return Enclosed(first, second)
    if z.slack is None or z.bend is None:
        zeros = torch.zeros_like(z.first)
        z = Enclosed(z.first, z.second, zeros if z.bend is None else z.bend, zeros if z.slack is None else z.slack)
    assert z.bend is not None
    assert z.slack is not None
    on = z.low >= 0
    bend, slack = (z.bend * on).contiguous(), (z.slack * on).contiguous()
    turning = (~on & (z.high > 0)).flatten().nonzero().flatten()
    bent = _turning(*(part.flatten()[turning] for part in (z.first, z.second, z.bend, z.slack)))
    for part, values in zip((bend, slack), bent, strict=True):
        part.view(-1).index_copy_(0, turning, values)
    return Enclosed(first, second, bend, slack)


def _turning(first: Tensor, second: Tensor, bend: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bend and the slack of max(z, 0) where z may change sign, (n,) each."""
    zero = torch.zeros((), dtype=first.dtype, device=first.device)
    below, above = (first <= 0) & (second <= 0), (first >= 0) & (second >= 0)
    mu, rho = tent(second.abs(), first.abs())
    half = slack + bend.abs() / 8
    dip = -(torch.minimum(first, second) + bend.clamp(max=0) / 4)  # as far below 0 as z is without its slack
    peak = torch.maximum(first, second) + bend.clamp(min=0) / 4 + slack
    most = torch.where(below, peak.clamp(min=0), torch.where(above, torch.maximum(slack, dip), half + rho))
    turned = torch.where(below, zero, torch.where(above, bend, bend / 2 - mu))
    return turned, most + 8 * ROUNDING * (mu + bend.abs() + half + first.abs() + second.abs())


def leaky(z: Enclosed, slope: float) -> Enclosed:
    """Return z where it is positive and slope·z elsewhere: slope·z + (1−slope)·max(z, 0)."""
    return z.times(slope) + rectified(z).times(1 - slope)


def clamped(z: Enclosed, least: float | None, most: float | None) -> Enclosed:
    """Return min(max(z, least), most): where only one of both can be met, by that alone."""
    if least is None and most is None:
        return z
    from_below = None if least is None else rectified(z.plus(-least)).plus(least)
    if most is None:
        assert from_below is not None
        return from_below.rounded()
    from_above = (-rectified((-z).plus(most))).plus(most)
    if from_below is None or least is None:
        return from_above.rounded()
    both = (from_below - rectified(z.plus(-most))).rounded(2)
    return chosen(z.low >= least, from_above.rounded(), chosen(z.high <= most, from_below.rounded(), both))


@encloses("relu")
def relu(cell: Cell, z: Enclosed) -> Enclosed:
    return rectified(z)


@encloses("leaky_relu")
def leaky_relu(cell: Cell, z: Enclosed, slope: float = 0.01) -> Enclosed:
    return leaky(z, slope).rounded(2)


@encloses("hardtanh")
def hardtanh(cell: Cell, z: Enclosed, least: float = -1.0, most: float = 1.0) -> Enclosed:
    return clamped(z, least, most)


@encloses("relu6")
def relu6(cell: Cell, z: Enclosed) -> Enclosed:
    return clamped(z, 0.0, 6.0)


@encloses("clamp")
def clamp(cell: Cell, z: Enclosed, least: float | None = None, most: float | None = None) -> Enclosed:
    return clamped(z, least, most)


@encloses("clamp_min")
def clamp_min(cell: Cell, z: Enclosed, least: float) -> Enclosed:
    return clamped(z, least, None)


@encloses("abs")
def absolute(cell: Cell, z: Enclosed) -> Enclosed:
    return replace((rectified(z) + rectified(-z)).rounded(), floor=0.0)


@encloses("softshrink")
def softshrink(cell: Cell, z: Enclosed, width: float = 0.5) -> Enclosed:
    return (rectified(z.plus(-width)) - rectified((-z).plus(-width))).rounded(2)


@encloses("hardsigmoid")
def hardsigmoid(cell: Cell, z: Enclosed) -> Enclosed:
    return clamped(z.plus(3.0), 0.0, 6.0).times(1 / 6).rounded()


@encloses("hardswish")
def hardswish(cell: Cell, z: Enclosed) -> Enclosed:
    return product(z, hardsigmoid(cell, z))


@encloses("prelu", "_prelu_kernel")
def prelu(cell: Cell, z: Any, slope: Enclosed | Tensor) -> Enclosed:
    """max(z, 0) − slope·max(−z, 0), with one slope, or one per channel."""
    z, slope = lifted(z), lifted(slope)
    if slope.ndim == 1 and slope.shape[0] > 1:
        slope = slope.map(lambda part: part.reshape(-1, *([1] * (z.ndim - 2))))
    shared = slope.map(lambda part: part.expand(z.shape))
    return (rectified(z) - product(shared, rectified(-z))).rounded()
