"""Reductions, softmax and pooling: symmetric in what they combine, or orderly in space."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.analysis import Op, Symbol, Uncovered
from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.rules._table import normal_dims, rule, without
from lmccheck.symmetry.rules.convolution import SPACE


def _reduced(op: Op, x: Symbol, dims: int | Sequence[int] | None) -> Symbol:
    combined = normal_dims(x, dims)
    kept = without(x, combined)
    op.mixes_across(kept)
    for d in combined:
        op.binds(x.axes[d], "it is reduced over")
    out = op.out[0] if isinstance(op.out, (tuple, list)) else op.out
    if out.ndim == x.ndim and x.ndim:
        empty: Axis = ()
        return Symbol(tuple(empty if d in combined else axis for d, axis in enumerate(x.axes)))
    return Symbol(tuple(kept))


@rule("mean", "sum", "amax", "amin", "logsumexp", "prod")
def reduce(op: Op, x: Symbol, *arguments: Any) -> Symbol:
    dims = next((a for a in arguments[:1] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)), None)
    return _reduced(op, x, dims)


@rule("var", "std")
def spread(op: Op, x: Symbol, *arguments: Any) -> Symbol:
    dims = (
        arguments[0]
        if arguments and isinstance(arguments[0], (int, list, tuple)) and not isinstance(arguments[0], bool)
        else None
    )
    return _reduced(op, x, dims)


@rule("norm", "linalg_vector_norm")
def norm(op: Op, x: Symbol, order: Any, dims: Any = None, *_: Any) -> Symbol:
    return _reduced(op, x, dims if isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool) else None)


@rule("max", "min")
def extremum(op: Op, x: Symbol, *arguments: Any) -> Any:
    """The largest value is symmetric in what it is taken of; where it stands is not."""
    if not arguments:
        return _reduced(op, x, None)
    if not isinstance(arguments[0], int):
        raise Uncovered("two tensors in an overload without a rule")
    reduced = _reduced(op, x, arguments[0])
    if any(user.target is operator.getitem and user.args[1] == 1 for user in op.node.users):
        for d in normal_dims(x, arguments[0]):
            op.freeze(x.axes[d], "the place of an extremum is read")
    return reduced, Symbol(reduced.axes)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(op: Op, x: Symbol, dim: int, *_: Any) -> Symbol:
    op.mixes_across(without(x, normal_dims(x, dim)))
    for d in normal_dims(x, dim):
        op.binds(x.axes[d], "the softmax compares its positions")
    return Symbol(x.axes)


def _pooled(op: Op, x: Symbol, space: int) -> Symbol:
    if x.ndim < space + 1:
        raise Uncovered("too few dimensions")
    for axis in x.axes[-space:]:
        op.freeze(axis, SPACE)
    sizes = op.out[0].shape if isinstance(op.out, (tuple, list)) else op.out.shape
    return Symbol((*x.axes[:-space], *(op.frozen(int(n), SPACE) for n in sizes[-space:])))


def _dimensions(op: Op) -> int:
    return int(next(c for c in reversed(op.name.removesuffix("_with_indices")) if c.isdigit()))


@rule(*(f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)))
def pool(op: Op, x: Symbol, *_: Any) -> Symbol:
    return _pooled(op, x, _dimensions(op))


@rule(
    *(f"{kind}{n}d" for kind in ("adaptive_max_pool",) for n in (1, 2, 3)),
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
)
def pool_with_indices(op: Op, x: Symbol, *_: Any) -> tuple[Symbol, Symbol]:
    pooled = _pooled(op, x, _dimensions(op))
    return pooled, Symbol(pooled.axes)


@rule(
    *(
        f"upsample_{kind}"
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    )
)
def upsample(op: Op, x: Symbol, *_: Any) -> Symbol:
    return _pooled(op, x, _dimensions(op))
