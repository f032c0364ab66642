"""Views: reshapes refine factors, permutes reorder axes, broadcasts add free ones, picks fix a position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.axes import (
    Axis,
    Factor,
    as_factor,
    axis_size,
    concatenate,
    expand,
    fresh,
    refine_product,
    segments,
    split_at,
)
from lmccheck.symmetry.op import Op, Symbol
from lmccheck.symmetry.rules._table import rule, without


def regroup(op: Op, x: Symbol, shape: Sequence[int]) -> Symbol:
    """Deal the factors of ``x``, outermost first, into dimensions of the given sizes, splitting leaves where needed.

    A block of dimensions that no refinement of the factors fits is frozen, and so is what comes out of it.
    """
    if 0 in shape:  # there is nothing to tell apart
        return Symbol(tuple(fresh(n) for n in shape))
    queue = [factor for axis in x.axes for factor in expand(axis)]
    axes: list[Axis] = []
    for size in shape:
        taken: list[Factor] = []
        while axis_size(taken) < size:
            queue = expand(queue)
            if not queue:
                return _torn(op, x, shape)
            head, room = queue[0], size // axis_size(taken)
            if room * axis_size(taken) != size:
                return _torn(op, x, shape)
            if head.size <= room:
                taken.append(queue.pop(0))
            elif head.kind == "leaf" and head.size % room == 0:
                queue[0:1] = refine_product(head, room)
            else:
                rows = _rows(op, head, room) if head.kind == "sum" and head.size % room == 0 else None
                if rows is None:
                    return _torn(op, x, shape)
                queue[0:1] = rows
        axes.append(tuple(taken))
    return Symbol(tuple(axes), x.param)


def _rows(op: Op, total: Factor, count: int) -> list[Factor] | None:
    """View a sum of segments as ``count`` rows of equal length; None where no cut allows it.

    Segments that are whole rows each stay movable within their segment, all with one order inside the row. Otherwise
    every row is something of its own, and the rows keep their places.
    """
    width = total.size // count
    parts = segments(total)
    if all(part.size % width == 0 for part in parts) and len(parts) < count:
        inner = Factor(width)
        outer = []
        for part in parts:
            several: Axis = () if part.size == width else (Factor(part.size // width),)
            op.unify((part,), (*several, inner))
            outer.append(several)
        return [as_factor(concatenate(outer)), inner]
    rows: list[Axis] = []
    rest = total
    for _ in range(count - 1):
        cut = split_at(rest, width, op.reason("cut in the middle of a unit"))
        if cut is None:
            return None
        rows.append((cut[0],))
        rest = cut[1]
    place, row = op.stacked([*rows, (rest,)])
    return [place, *expand(row)]


def _torn(op: Op, x: Symbol, shape: Sequence[int]) -> Symbol:
    """Freeze the dimensions between the nearest boundaries that both shapes share; pass the others through."""
    why = f"reshaped from {x.shape} to {tuple(shape)} across units"
    axes: list[Axis] = []
    i = j = 0
    while j < len(shape):
        first, begin = i, j
        old, new, j = 1, shape[j], j + 1
        while old != new:
            if old < new:
                old, i = old * x.shape[i], i + 1
            else:
                new, j = new * shape[j], j + 1
        source = [axis for axis in x.axes[first:i] if axis]
        target = [n for n in shape[begin:j] if n > 1]
        if len(source) == len(target) == 1:
            axes.extend(source[0] if n > 1 else () for n in shape[begin:j])
            continue
        for axis in source:
            op.freeze(axis, why)
        axes.extend(op.frozen(n, why) for n in shape[begin:j])
    return Symbol(tuple(axes))


@rule("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_copy", "squeeze", "unsqueeze", "ravel")
def reshape(op: Op, x: Symbol, *_: Any) -> Symbol:
    return regroup(op, x, list(op.out.shape))


@rule("permute")
def permute(op: Op, x: Symbol, dims: Sequence[int]) -> Symbol:
    return Symbol(tuple(x.axes[d] for d in dims), x.param)


@rule("transpose", "swapaxes", "swapdims")
def transpose(op: Op, x: Symbol, first: int, second: int) -> Symbol:
    axes = list(x.axes)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return Symbol(tuple(axes), x.param)


@rule("movedim")
def movedim(op: Op, x: Symbol, source: Any, destination: Any) -> Symbol:
    sources = [d % x.ndim for d in ([source] if isinstance(source, int) else source)]
    targets = [d % x.ndim for d in ([destination] if isinstance(destination, int) else destination)]
    order = [d for d in range(x.ndim) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return Symbol(tuple(x.axes[d] for d in order), x.param)


@rule("t", "numpy_T", "mT")
def matrix_transpose(op: Op, x: Symbol) -> Symbol:
    return Symbol(tuple(reversed(x.axes)) if op.name != "aten.mT" else (*x.axes[:-2], x.axes[-1], x.axes[-2]), x.param)


@rule("expand", "expand_as", "broadcast_to")
def expand_(op: Op, x: Symbol, *shape: Any) -> Symbol:
    """Copies of one position are all alike, so a broadcast axis may be permuted freely."""
    sizes = list(op.out.shape)
    padded: list[Axis] = [()] * (len(sizes) - x.ndim) + list(x.axes)
    return Symbol(tuple(axis or fresh(size) for axis, size in zip(padded, sizes, strict=True)))


@rule("select")
def select(op: Op, x: Symbol, dim: int, index: int) -> Symbol:
    return pick(op, x, dim % x.ndim, index)


def pick(op: Op, x: Symbol, dim: int, index: int) -> Symbol:
    """Fix one position of an axis; what remains may differ from position to position (a fused query·key·value)."""
    axis = expand(x.axes[dim])
    rest = without(x, [dim])
    op.freeze(tuple(axis), f"position {index} is picked")
    if len(axis) == 1 and axis[0].kind == "leaf":
        index %= axis[0].size
        rest = [op.instance(other, axis[0], index) for other in rest]
    return Symbol(tuple(rest))


@rule("unbind")
def unbind(op: Op, x: Symbol, dim: int) -> tuple[Symbol, ...]:
    return tuple(pick(op, x, dim % x.ndim, k) for k in range(len(op.out)))
