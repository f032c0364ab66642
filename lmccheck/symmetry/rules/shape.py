"""Views: reshapes refine factors, permutes reorder axes, slices and concatenations cut and join segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.analysis import Op, Symbol, Uncovered
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
from lmccheck.symmetry.rules._table import broadcast, normal_dims, rule, without


def regroup(op: Op, x: Symbol, shape: Sequence[int]) -> Symbol:
    """Deal the factors of ``x``, outermost first, into dimensions of the given sizes, splitting leaves where needed.

    A block of dimensions that no refinement of the factors fits is frozen, and so is what comes out of it.
    """
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
    return regroup(op, x, [int(n) for n in op.out.shape])


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
def expand_(op: Op, x: Symbol, *_: Any) -> Symbol:
    """Copies of one position are all alike, so a broadcast axis may be permuted freely."""
    sizes = [int(n) for n in op.out.shape]
    padded: list[Axis] = [()] * (len(sizes) - x.ndim) + list(x.axes)
    return Symbol(tuple(axis or fresh(size) for axis, size in zip(padded, sizes, strict=True)))


@rule("select")
def select(op: Op, x: Symbol, dim: int, index: int) -> Symbol:
    return _pick(op, x, dim % x.ndim, index)


def _pick(op: Op, x: Symbol, dim: int, index: int) -> Symbol:
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
    return tuple(_pick(op, x, dim % x.ndim, k) for k in range(len(op.out)))


def _cut(op: Op, x: Symbol, dim: int, sizes: Sequence[int]) -> tuple[Symbol, ...]:
    """Cut an axis into consecutive segments; an axis that cannot be cut there is frozen."""
    why = "cut in the middle of a unit"
    pieces: list[Axis] = []
    rest: Axis = x.axes[dim]
    for k, size in enumerate(sizes):
        remaining = sum(sizes[k:])
        if size == remaining:
            pieces.append(rest)
            rest = ()
        elif size == 0:
            pieces.append((Factor(0),))
        else:
            cut = split_at(as_factor(rest), size, op.reason(why))
            if cut is None:
                op.freeze(x.axes[dim], why)
                return tuple(Symbol((*x.axes[:dim], op.frozen(n, why), *x.axes[dim + 1 :])) for n in sizes)
            pieces.append(tuple(expand([cut[0]])))
            rest = tuple(expand([cut[1]]))
    return tuple(Symbol((*x.axes[:dim], piece, *x.axes[dim + 1 :])) for piece in pieces)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")
def split(op: Op, x: Symbol, how: Any, dim: int = 0, *_: Any) -> tuple[Symbol, ...]:
    dim %= x.ndim
    return _cut(op, x, dim, [int(part.shape[dim]) for part in op.out])


@rule("slice")
def slice_(op: Op, x: Symbol, dim: int, start: int | None, end: int | None, step: int) -> Symbol:
    dim %= x.ndim
    length = axis_size(x.axes[dim])
    begin, stop, _ = slice(start, end, step).indices(length)
    size = int(op.out.shape[dim])
    if size == length:
        return x
    if step != 1 or size == 0:
        op.freeze(x.axes[dim], "every n-th position is taken")
        return Symbol((*x.axes[:dim], op.frozen(size, "every n-th position is taken"), *x.axes[dim + 1 :]))
    sizes = [n for n in (begin, stop - begin, length - stop) if n]
    return _cut(op, x, dim, sizes)[1 if begin else 0]


@rule("narrow")
def narrow(op: Op, x: Symbol, dim: int, start: Any, length: int) -> Symbol:
    if not isinstance(start, int):
        raise Uncovered("a start that is a tensor")
    cut: Symbol = slice_(op, x, dim, start, start + length, 1)
    return cut


@rule("cat", "concat")
def cat(op: Op, tensors: Sequence[Symbol], dim: int = 0) -> Symbol:
    tensors = [t for t in tensors if t.shape != (0,)]
    dim %= tensors[0].ndim
    if len(tensors) > 1 and all(not t.axes[dim] for t in tensors):
        return _stacked(op, [Symbol((*t.axes[:dim], *t.axes[dim + 1 :])) for t in tensors], dim)
    others = broadcast(op, *(Symbol((*t.axes[:dim], (), *t.axes[dim + 1 :])) for t in tensors))
    return Symbol((*others[:dim], concatenate([t.axes[dim] for t in tensors]), *others[dim + 1 :]))


@rule("stack")
def stack(op: Op, tensors: Sequence[Symbol], dim: int = 0) -> Symbol:
    return _stacked(op, tensors, dim)


def _stacked(op: Op, tensors: Sequence[Symbol], dim: int) -> Symbol:
    """Every stacked tensor keeps its own axes, told apart by where it was put."""
    dim %= tensors[0].ndim + 1
    place: Axis = ()
    axes: list[Axis] = []
    for several in zip(*(tensor.axes for tensor in tensors), strict=True):
        if any([factor.find() for factor in axis] != [factor.find() for factor in several[0]] for axis in several):
            found, axis = op.stacked(list(several), place)
            place = (found,)
        else:
            axis = several[0]
        axes.append(axis)
    place = place or op.frozen(len(tensors), "stacked tensors are told apart")
    return Symbol((*axes[:dim], place, *axes[dim:]))


@rule("roll")
def roll(op: Op, x: Symbol, shifts: Any, dims: Any) -> Symbol:
    for d in normal_dims(x, dims):
        op.freeze(x.axes[d], "positions are shifted")
    return Symbol(x.axes)


@rule("flip")
def flip(op: Op, x: Symbol, dims: Any) -> Symbol:
    for d in normal_dims(x, dims):
        op.freeze(x.axes[d], "positions are reversed")
    return Symbol(x.axes)


@rule("pad", "constant_pad_nd")
def pad(op: Op, x: Symbol, padding: Sequence[int], *_: Any) -> Symbol:
    axes = list(x.axes)
    for k in range(len(padding) // 2):
        d = x.ndim - 1 - k
        if padding[2 * k] or padding[2 * k + 1]:
            op.freeze(axes[d], "positions are padded")
            axes[d] = op.frozen(int(op.out.shape[d]), "positions are padded")
    return Symbol(tuple(axes))


@rule("repeat", "tile")
def repeat(op: Op, x: Symbol, *_: Any) -> Symbol:
    """Copies one after the other: a new outer factor, free since all copies are alike, over the old axis."""
    sizes = [int(n) for n in op.out.shape]
    padded: list[Axis] = [()] * (len(sizes) - x.ndim) + list(x.axes)
    axes = [(*fresh(n // axis_size(axis)), *axis) if n else axis for axis, n in zip(padded, sizes, strict=True)]
    return Symbol(tuple(axes))


@rule("index", "_unsafe_index")
def index(op: Op, x: Symbol, indices: Sequence[Symbol | None]) -> Symbol:
    """Looked-up dimensions are told apart; the others keep their axes where they keep their place."""
    looked_up = [d for d, item in enumerate(indices) if isinstance(item, Symbol)]
    for d in looked_up:
        op.freeze(x.axes[d], "positions are looked up by index")
    for item in indices:
        for axis in item.axes if isinstance(item, Symbol) else ():
            op.freeze(axis, "positions of an index")
    first, last = min(looked_up), max(looked_up)
    if last - first + 1 != len(looked_up):
        raise Uncovered("indexes dimensions that are not neighbours")
    width = op.out.ndim - (x.ndim - len(looked_up))
    middle = [op.frozen(int(n), "positions are looked up by index") for n in op.out.shape[first : first + width]]
    return Symbol((*x.axes[:first], *middle, *x.axes[last + 1 :]))
