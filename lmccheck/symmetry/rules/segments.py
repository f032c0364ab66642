"""Segments: splits and slices cut axes, concatenations and pads join them, scatters put a slice in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.axes import Axis, Factor, as_factor, axis_size, concatenate, expand, fresh, split_at
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import broadcast, normal_dims, replaced, rule
from lmccheck.symmetry.rules.shape import pick, regroup


def cut(op: Op, x: Symbol, dim: int, sizes: Sequence[int]) -> tuple[Symbol, ...]:
    """Cut an axis into consecutive segments; an axis that cannot be cut there is frozen."""
    if sum(sizes) != axis_size(x.axes[dim]):
        why = "cut where the data says"
        op.freeze(x.axes[dim], why)
        return tuple(replaced(x, dim, op.frozen(n, why)) for n in sizes)
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
    return cut(op, x, dim, [int(part.shape[dim]) for part in op.out])


@rule("slice")
def slice_(op: Op, x: Symbol, dim: int, start: int | None, end: int | None, step: int) -> Symbol:
    dim %= x.ndim
    length = axis_size(x.axes[dim])
    begin, stop, _ = slice(start, end, step).indices(length)
    size = op.out.shape[dim]
    if size == length:
        return x
    if step != 1 and length % step == 0 and size == length // step:
        view = [*x.shape[:dim], size, step, *x.shape[dim + 1 :]]
        return pick(op, regroup(op, x, view), dim + 1, begin)
    if step != 1 or size == 0:
        op.freeze(x.axes[dim], "every n-th position is taken")
        return replaced(x, dim, op.frozen(size, "every n-th position is taken"))
    sizes = [n for n in (begin, stop - begin, length - stop) if n]
    return cut(op, x, dim, sizes)[1 if begin else 0]


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
    joined = concatenate([t.axes[dim] for t in tensors])
    if axis_size(joined) != op.out.shape[dim]:
        why = "joined from parts whose lengths depend on the data"
        op.freeze(joined, why)
        joined = op.frozen(op.out.shape[dim], why)
    return Symbol((*others[:dim], joined, *others[dim + 1 :]))


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
    op.orders(x, normal_dims(x, dims), "positions are shifted")
    return Symbol(x.axes)


@rule("flip")
def flip(op: Op, x: Symbol, dims: Any) -> Symbol:
    op.orders(x, normal_dims(x, dims), "positions are reversed")
    return Symbol(x.axes)


@rule("pad", "constant_pad_nd")
def pad(op: Op, x: Symbol, padding: Sequence[int], *how: Any) -> Symbol:
    """Positions padded with one value are all alike; other paddings tell positions apart."""
    constant = op.name == "aten.constant_pad_nd" or not how or how[0] == "constant"
    for k in range(len(padding) // 2):
        d = x.ndim - 1 - k
        before, after = int(padding[2 * k]), int(padding[2 * k + 1])
        if not before and not after:
            continue
        if constant and min(before, after) >= 0 and not all(factor.find().frozen for factor in x.axes[d]):
            parts = [fresh(before), x.axes[d], fresh(after)]
            x = replaced(x, d, concatenate([p for p, n in zip(parts, (before, 1, after), strict=True) if n]))
        else:
            op.freeze(x.axes[d], "positions are padded")
            x = replaced(x, d, op.frozen(op.out.shape[d], "positions are padded"))
    return x


@rule("slice_scatter")
def slice_scatter(
    op: Op, x: Symbol, source: Symbol, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Symbol:
    """A slice is replaced: what was there does not matter, what is beside it stays."""
    dim %= x.ndim
    length = axis_size(x.axes[dim])
    begin, stop, _ = slice(start, end, step).indices(length)
    others = broadcast(op, replaced(x, dim, ()), replaced(source, dim, ()))
    if source.shape[dim] == length:
        return replaced(Symbol(others), dim, source.axes[dim])
    if step != 1 or not source.shape[dim]:
        for axis in (x.axes[dim], source.axes[dim]):
            op.freeze(axis, "every n-th position is replaced")
        return replaced(Symbol(others), dim, x.axes[dim])
    sizes = [n for n in (begin, stop - begin, length - stop) if n]
    parts = [part.axes[dim] for part in cut(op, x, dim, sizes)]
    parts[1 if begin else 0] = source.axes[dim]
    return replaced(Symbol(others), dim, concatenate(parts))


@rule("select_scatter")
def select_scatter(op: Op, x: Symbol, source: Symbol, dim: int, index: int) -> Symbol:
    dim %= x.ndim
    op.freeze(x.axes[dim], "one position is replaced")
    others = broadcast(op, replaced(x, dim), source)
    return Symbol((*others[:dim], x.axes[dim], *others[dim:]))


@rule("repeat", "tile")
def repeat(op: Op, x: Symbol, *_: Any) -> Symbol:
    """Copies one after the other: a new outer factor, free since all copies are alike, over the old axis."""
    sizes = list(op.out.shape)
    padded: list[Axis] = [()] * (len(sizes) - x.ndim) + list(x.axes)
    axes = [(*fresh(n // axis_size(axis)), *axis) if n else axis for axis, n in zip(padded, sizes, strict=True)]
    return Symbol(tuple(axes))
