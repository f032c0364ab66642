"""Reductions and softmax: symmetric in what they combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.op import Op, Symbol
from lmccheck.symmetry.rules._table import broadcast, dims_in, normal_dims, reads_output, rule, without


def _reduced(op: Op, x: Symbol, dims: int | Sequence[int] | None) -> Symbol:
    combined = normal_dims(x, dims)
    kept = without(x, combined)
    op.mixes_across(kept)
    for d in combined:
        op.binds(x.axes[d], "it is reduced over")
    out = op.out[0] if isinstance(op.out, tuple) else op.out
    if out.ndim == x.ndim and x.ndim:
        empty: Axis = ()
        return Symbol(tuple(empty if d in combined else axis for d, axis in enumerate(x.axes)))
    return Symbol(tuple(kept))


@rule(
    *("mean", "nanmean", "sum", "nansum", "amax", "amin", "logsumexp", "prod", "any", "all", "count_nonzero"),
    *("var", "std"),
)
def reduce(op: Op, x: Symbol, *arguments: Any) -> Symbol:
    return _reduced(op, x, dims_in(arguments))


@rule("var_mean", "std_mean", "aminmax")
def spread_and_mean(op: Op, x: Symbol, *arguments: Any) -> tuple[Symbol, Symbol]:
    reduced = _reduced(op, x, dims_in(arguments))
    return reduced, Symbol(reduced.axes)


@rule("norm", "linalg_vector_norm")
def norm(op: Op, x: Symbol, order: Any = 2, dims: Any = None, *_: Any) -> Symbol:
    return _reduced(op, x, dims if isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool) else None)


@rule("max", "min")
def extremum(op: Op, x: Symbol, *arguments: Any) -> Any:
    """The largest value is symmetric in what it is taken of; where it stands is not."""
    if not arguments:
        return _reduced(op, x, None)
    if isinstance(arguments[0], Symbol):
        return Symbol(broadcast(op, x, arguments[0]))
    reduced = _reduced(op, x, arguments[0])
    if reads_output(op, 1):
        for d in normal_dims(x, arguments[0]):
            op.freeze(x.axes[d], "the place of an extremum is read")
    return reduced, Symbol(reduced.axes)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def softmax(op: Op, x: Symbol, dim: int, *_: Any) -> Symbol:
    op.mixes_across(without(x, normal_dims(x, dim)))
    for d in normal_dims(x, dim):
        op.binds(x.axes[d], "the softmax compares its positions")
    return Symbol(x.axes)


@rule("cumsum", "cumprod", "logcumsumexp")
def accumulate(op: Op, x: Symbol, dim: int, *_: Any) -> Symbol:
    if x.ndim:
        op.orders(x, [dim], "positions are accumulated in order")
    return Symbol(x.axes)


@rule("cummax", "cummin")
def running_extremum(op: Op, x: Symbol, dim: int) -> tuple[Symbol, Symbol]:
    if x.ndim:
        op.orders(x, [dim], "positions are accumulated in order")
    return Symbol(x.axes), Symbol(x.axes)


@rule("cosine_similarity")
def cosine_similarity(op: Op, a: Symbol, b: Symbol, dim: int = 1, *_: Any) -> Symbol:
    return _reduced(op, Symbol(broadcast(op, a, b)), dim)
