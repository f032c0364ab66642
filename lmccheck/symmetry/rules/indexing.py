"""Lookups: positions that are found by a number are told apart, everything else passes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import broadcast, normal_dims, reads_output, replaced, rule, tensor, without
from lmccheck.symmetry.trace import value_of

LOOKED_UP = "positions are looked up by index"


@rule("embedding")
def embedding(op: Op, weight: Any, index: Any, *_: Any) -> Symbol:
    op.freeze(tensor(weight).axes[0], "rows are looked up by index")
    return Symbol((*tensor(index).axes, tensor(weight).axes[1]))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(op: Op, weight: Symbol, index: Symbol, *bags_and_weights: Any) -> tuple[Symbol, ...]:
    """Rows are looked up and combined, bag by bag; the further outputs are bookkeeping."""
    op.freeze(weight.axes[0], "rows are looked up by index")
    for symbol in (index, *(item for item in bags_and_weights if isinstance(item, Symbol))):
        for axis in symbol.axes:
            op.freeze(axis, "positions are dealt to bags in order")
    first, *rest = op.out
    bags = op.frozen(int(first.shape[0]), LOOKED_UP)
    return Symbol((bags, weight.axes[1])), *(
        Symbol(tuple(op.frozen(n, LOOKED_UP) for n in other.shape)) for other in rest
    )


@rule("one_hot")
def one_hot(op: Op, index: Symbol, *_: Any) -> Symbol:
    return Symbol((*index.axes, op.frozen(op.out.shape[-1], LOOKED_UP)))


@dataclass(frozen=True)
class _Lookup:
    """What an index looks up: which dimensions, how many take their place, and where those stand."""

    dims: list[int]
    width: int
    first: int


def _lookup(op: Op, x: Symbol, indices: Sequence[Symbol | None]) -> _Lookup:
    """Freeze what is looked up, and the positions of the indices; a mask stands for as many dimensions as it has."""
    dims: list[int] = []
    width = d = 0
    for item, node in zip(indices, op.node.args[1], strict=True):  # type: ignore[arg-type]  # a list of nodes
        if not isinstance(item, Symbol):
            d += 1
            continue
        mask = value_of(node).dtype in (torch.bool, torch.uint8)
        covered = item.ndim if mask else 1
        if mask:
            for axis, other in zip(x.axes[d : d + covered], item.axes, strict=True):
                op.unify(axis, other)
        dims += range(d, d + covered)
        d += covered
        width = max(width, 1 if mask else item.ndim)
        for axis in item.axes:
            op.freeze(axis, "positions of an index")
    op.orders(x, dims, LOOKED_UP)
    return _Lookup(dims, width, dims[0] if dims[-1] - dims[0] + 1 == len(dims) else 0)


@rule("index", "_unsafe_index")
def index(op: Op, x: Symbol, indices: Sequence[Symbol | None]) -> Symbol:
    """Looked-up dimensions are told apart, the others keep their axes; where the lookups are not neighbours, theirs
    come first."""
    found = _lookup(op, x, indices)
    kept = [axis for d, axis in enumerate(x.axes) if d not in found.dims]
    sizes = op.out.shape[found.first : found.first + found.width]
    return Symbol((*kept[: found.first], *(op.frozen(n, LOOKED_UP) for n in sizes), *kept[found.first :]))


@rule("index_put", "_unsafe_index_put")
def index_put(op: Op, x: Symbol, indices: Sequence[Symbol | None], values: Symbol, *_: Any) -> Symbol:
    """Put values where an index points: the dimensions that are not looked up are matched."""
    found = _lookup(op, x, indices)
    kept = [axis for d, axis in enumerate(x.axes) if d not in found.dims]
    empty: Axis = ()
    target = [*kept[: found.first], *[empty] * found.width, *kept[found.first :]]
    source = [*[empty] * (len(target) - values.ndim), *values.axes]
    for d in range(found.first, found.first + found.width):
        op.freeze(source[d], LOOKED_UP)
        source[d] = empty
    broadcast(op, Symbol(tuple(target)), Symbol(tuple(source)))
    return Symbol(x.axes)


@rule("nonzero", "nonzero_numpy", "masked_select", "argwhere")
def nonzero(op: Op, x: Symbol, *others: Any) -> Any:
    """What is found, and where, depends on every position's place."""
    for symbol in (x, *(other for other in others if isinstance(other, Symbol))):
        op.orders(symbol, range(symbol.ndim), LOOKED_UP)
    several = isinstance(op.out, tuple)
    found = [
        Symbol(tuple(op.frozen(n, LOOKED_UP) for n in value.shape)) for value in (op.out if several else (op.out,))
    ]
    return tuple(found) if several else found[0]


@rule("index_select")
def index_select(op: Op, x: Symbol, dim: int, index: Symbol) -> Symbol:
    op.freeze(x.axes[dim], LOOKED_UP)
    return replaced(x, dim, op.frozen(op.out.shape[dim], LOOKED_UP)) if x.ndim else x


@rule("gather")
def gather(op: Op, x: Symbol, dim: int, index: Symbol, *_: Any) -> Symbol:
    """out[i][j] = x[i][index[i][j]]: beside the looked-up dimension the two tensors go together."""
    if x.ndim != index.ndim or not x.ndim:
        raise Uncovered("an index of another rank")
    dim %= x.ndim
    op.freeze(x.axes[dim], LOOKED_UP)
    _beside(op, dim, x, index)
    op.mixes_across(without(x, [dim]))
    return Symbol(index.axes)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op, x: Symbol, dim: int, index: Symbol, source: Any, *_: Any) -> Symbol:
    """Put values where an index points along one dimension; beside it the tensors go together."""
    tensors = [x, index, source] if isinstance(source, Symbol) and source.ndim else [x, index]
    if any(t.ndim != x.ndim for t in tensors) or not x.ndim:
        raise Uncovered("an index of another rank")
    dim %= x.ndim
    for symbol in tensors:
        op.orders(symbol, [dim], LOOKED_UP)
    _beside(op, dim, *tensors)
    return Symbol(x.axes)


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(op: Op, x: Symbol, dim: int, index: Symbol, source: Any, *_: Any) -> Symbol:
    if not x.ndim:
        raise Uncovered("a scalar")
    op.orders(x, [dim], LOOKED_UP)
    if isinstance(source, Symbol) and source.ndim:
        op.orders(source, [dim], LOOKED_UP)
        broadcast(op, replaced(x, dim, ()), replaced(source, dim, ()))
    return Symbol(x.axes)


def _beside(op: Op, dim: int, *tensors: Symbol) -> None:
    """Match all dimensions but one; those of different length are compared from the front, so they are told apart."""
    for d in range(tensors[0].ndim):
        axes = [t.axes[d] for t in tensors]
        if d == dim:
            continue
        if len({t.shape[d] for t in tensors}) == 1:
            for axis in axes[1:]:
                op.unify(axes[0], axis)
        else:
            for axis in axes:
                op.freeze(axis, "only the first positions are looked up")


@rule("sort", "msort")
def sort(op: Op, x: Symbol, *arguments: Any) -> Any:
    """The sorted values do not depend on the order they came in; where they came from does."""
    dim = next((a for a in arguments if isinstance(a, int) and not isinstance(a, bool)), -1)
    return _ranked(op, x, 0 if op.name == "aten.msort" else dim)


@rule("topk", "kthvalue")
def topk(op: Op, x: Symbol, k: int, dim: int = -1, *_: Any) -> Any:
    return _ranked(op, x, dim)


@rule("median", "nanmedian", "mode")
def median(op: Op, x: Symbol, *arguments: Any) -> Any:
    dim = next((a for a in arguments if isinstance(a, int) and not isinstance(a, bool)), None)
    if dim is None:
        op.mixes_across([])
        for axis in x.axes:
            op.binds(axis, "it is reduced over")
        return Symbol(())
    return _ranked(op, x, dim)


def _ranked(op: Op, x: Symbol, dim: int) -> Any:
    several = isinstance(op.out, tuple)
    if not x.ndim:
        return (Symbol(()), Symbol(())) if several else Symbol(())
    if several and reads_output(op, 1):
        op.freeze(x.axes[dim], "the places of ranked values are read")
    op.mixes_across(without(x, [dim % x.ndim]))
    op.binds(x.axes[dim], "its positions are ranked")
    first = op.out[0] if several else op.out
    if first.ndim == x.ndim:
        ranked = replaced(x, dim, op.frozen(int(first.shape[dim]), "ranked values are told apart"))
    else:
        ranked = replaced(x, dim)
    return (ranked, Symbol(ranked.axes)) if several else ranked


@rule("argsort")
def argsort(op: Op, x: Symbol, *arguments: Any) -> Symbol:
    ints = [a for a in arguments if isinstance(a, int) and not isinstance(a, bool)]
    dim = ints[0] if ints else -1
    op.orders(x, [dim], "the places of ranked values are read")
    return Symbol(x.axes)


@rule("argmax", "argmin")
def argmax(op: Op, x: Symbol, dim: int | None = None, keepdim: bool = False) -> Symbol:
    reduced = normal_dims(x, dim)
    for d in reduced:
        op.freeze(x.axes[d], "the place of an extremum is read")
    op.mixes_across(without(x, reduced))
    empty: Axis = ()
    if op.out.ndim == x.ndim:
        return Symbol(tuple(empty if d in reduced else axis for d, axis in enumerate(x.axes)))
    return Symbol(tuple(without(x, reduced)))


@rule("masked_scatter")
def masked_scatter(op: Op, x: Symbol, mask: Symbol, source: Symbol) -> Symbol:
    """The source is dealt out in order, so every position is told apart."""
    for symbol in (x, mask, source):
        for axis in symbol.axes:
            op.freeze(axis, "values are dealt out in order")
    return Symbol(x.axes)


@rule("diagonal")
def diagonal(op: Op, x: Symbol, offset: int = 0, first: int = 0, second: int = 1) -> Symbol:
    """A row and a column of the same number are put together: with no offset the two go together."""
    first, second = first % x.ndim, second % x.ndim
    kept = [axis for d, axis in enumerate(x.axes) if d not in (first, second)]
    if offset == 0 and x.shape[first] == x.shape[second]:
        op.unify(x.axes[first], x.axes[second])
        return Symbol((*kept, x.axes[first]))
    for d in (first, second):
        op.freeze(x.axes[d], "rows and columns are put together")
    return Symbol((*kept, op.frozen(op.out.shape[-1], "rows and columns are put together")))


@rule("histc", "bincount")
def count(op: Op, x: Symbol, weights: Any = None, *_: Any) -> Symbol:
    """How many positions hold what, or what their weights add up to: symmetric in the positions."""
    for axis in Symbol(broadcast(op, x, weights)).axes:
        op.binds(axis, "its positions are counted")
    return Symbol((op.frozen(op.out.shape[0], "counts are told apart by what they count"),))


@rule("bucketize", "searchsorted")
def bucketize(op: Op, first: Any, second: Any, *_: Any) -> Symbol:
    """Each value is looked up among borders, which are told apart."""
    x, borders = (first, second) if op.name == "aten.bucketize" else (second, first)
    if not isinstance(x, Symbol) or tensor(borders).ndim != 1:
        raise Uncovered("borders of several rows")
    op.freeze(borders.axes[0], "values are looked up among borders")
    return Symbol(x.axes)
