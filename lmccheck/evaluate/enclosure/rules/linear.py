"""Linear layers and convolutions: W(s)h(s) + b(s), exactly but for what the weights' own change does to slack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import ROUNDING, TWIST, Enclosed, NoEnclosure, joined, lifted

Apply = Callable[[Tensor, Tensor], Tensor]
Value = Enclosed | Tensor


def layer(cell: Cell, x: Enclosed, weight: Enclosed, bias: Value | None, apply: Apply, dims: Sequence[int]) -> Enclosed:
    """Return W(s)h(s) + b(s), ``apply(h, W)`` being linear in both; ``dims`` are those of h that it sums over.

    With ΔW, Δh the changes over the cell: the chord of the ends − s(1−s)·ΔW·Δh. A bend v becomes (W0+W1)/2·v, and
    (s−½)s(1−s)·ΔW·v is left; slack r becomes at most max(|W0|, |W1|)·r. Rounding is bounded by Cauchy and Schwarz.
    """
    shift = None if bias is None else lifted(bias).map(lambda part: part.reshape(-1, *([1] * (len(dims) - 1))))
    if any(each is not None and not (each.bend is each.slack is None) for each in (weight, shift)):
        raise NoEnclosure("weights that are computed from others")
    first = apply(x.first, weight.first)
    still = x.constant and weight.constant
    second = first if still else apply(x.second, weight.second)
    bend, slack, applications = None, None, 1 if still else 2
    if not x.constant and not weight.constant:
        bend = apply(x.step, weight.step).neg_()
        applications += 1
    if x.bend is not None:
        turned = apply(x.bend, weight.middle)
        bend = turned if bend is None else bend.add_(turned)
        slack = None if weight.constant else apply(x.bend, weight.step).abs_().mul_(TWIST)
        applications += 1 if weight.constant else 2
    if x.slack is not None:
        spread = apply(x.slack, weight.largest_end)
        slack = spread if slack is None else slack.add_(spread)
        applications += 1
    reads = weight.first[0].numel()
    cell.count(applications, first.numel() * reads)
    norms = weight.largest_end.flatten(1).norm(dim=1).reshape(-1, *([1] * (len(dims) - 1)))
    rounding = (reads + 8) * ROUNDING * (_norm(x, dims) * norms + (0 if shift is None else shift.largest_end))
    slack = rounding.expand(first.shape) if slack is None else slack.add_(rounding)
    if shift is None:
        return Enclosed(first, second, bend, slack)
    moved = not shift.constant and still
    second = first + shift.second if moved else second if still else second.add_(shift.second)
    first = first + shift.first if moved else first.add_(shift.first)
    return Enclosed(first, second, bend, slack)


def _norm(x: Enclosed, dims: Sequence[int]) -> Tensor:
    """Return what the Euclidean norm of what a layer reads is nowhere above, for each place it is read at or above."""
    parts = [(x.first, 1.0), *([] if x.constant else [(x.second, 1.0)]), (x.bend, 0.25), (x.slack, 1.0)]
    found = [k * torch.linalg.vector_norm(p, dim=tuple(dims), keepdim=True) for p, k in parts if p is not None]
    return torch.stack(found).sum(0)


@encloses("linear")
def linear(cell: Cell, x: Value, weight: Value, bias: Value | None = None) -> Enclosed:
    return layer(cell, lifted(x), lifted(weight), bias, F.linear, (-1,))


@encloses("addmm")
def addmm(cell: Cell, bias: Value, x: Value, weight: Value, *, beta: float = 1, alpha: float = 1) -> Enclosed:
    if (beta, alpha) != (1, 1):
        raise NoEnclosure("scales of addmm")
    return linear(cell, x, lifted(weight).map(torch.t), bias)


@encloses("mm", "matmul")
def matmul(cell: Cell, x: Value, weight: Value) -> Enclosed:
    if weight.ndim != 2 or (isinstance(weight, Enclosed) and weight.bend is not None):
        raise NoEnclosure("a matrix product of two values")
    return linear(cell, x, lifted(weight).map(torch.t))


@encloses("conv1d", "conv2d", "conv3d")
def convolution(cell: Cell, x: Value, weight: Value, bias: Value | None = None, *window: Any) -> Enclosed:
    """``window``: stride, padding, dilation and groups, as many as are said."""
    if x.ndim != weight.ndim:
        raise NoEnclosure("a convolution of a single sample")
    run = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]

    def apply(values: Tensor, kernel: Tensor) -> Tensor:
        return run(values, kernel, None, *window)

    return layer(cell, lifted(x), lifted(weight), bias, apply, range(1, weight.ndim))


@encloses("embedding")
def embedding(cell: Cell, weight: Value, indices: Tensor, *_: Any) -> Enclosed:
    if isinstance(indices, Enclosed):
        raise NoEnclosure("indices that are computed from weights")
    return lifted(weight).map(lambda table: F.embedding(indices, table))


def margins_of(cell: Cell, targets: Tensor, x: Value, weight: Value, bias: Value | None = None) -> Enclosed:
    """Return the logits of a last layer, (n, classes), over that of each sample's target.

    The rows of two classes are subtracted before anything is bounded: |W_k − W_y|·r is far below |W_k|·r + |W_y|·r.
    """
    read, rows, shift = lifted(x), lifted(weight), None if bias is None else lifted(bias)
    order = targets.argsort(stable=True)
    parts = []
    ends = torch.bincount(targets).cumsum(0).tolist()
    for label, (begin, end) in enumerate(pairwise([0, *ends])):
        if len(of := order[begin:end]):
            level = None if shift is None else _above(shift, label)
            parts.append(
                linear(cell, read.map(partial(torch.index_select, dim=0, index=of)), _above(rows, label), level)
            )
    back = order.argsort()
    return joined(parts, torch.cat).map(lambda part: part[back])


def _above(rows: Enclosed, label: int) -> Enclosed:
    """Return rows minus that of a label."""
    return rows.map(lambda part: part - part[label])
