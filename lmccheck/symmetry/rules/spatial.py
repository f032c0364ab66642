"""Space: pooling, resizing, sampling and patches tell positions apart and leave channels alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from lmccheck.symmetry.axes import Axis, axis_size, fresh
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import replaced, rule
from lmccheck.symmetry.rules.convolution import SPACE
from lmccheck.symmetry.rules.shape import permute, regroup


def _pooled(op: Op, x: Symbol, space: int) -> Symbol:
    if x.ndim < space + 1:
        raise Uncovered("too few dimensions")
    for axis in x.axes[-space:]:
        op.freeze(axis, SPACE)
    sizes = op.out[0].shape if isinstance(op.out, tuple) else op.out.shape
    return Symbol((*x.axes[:-space], *(op.frozen(n, SPACE) for n in sizes[-space:])))


def _dimensions(op: Op) -> int:
    return int(next(c for c in reversed(op.name) if c.isdigit()))


@rule(
    *(f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)),
    *(
        f"upsample_{kind}"
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    ),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def pool(op: Op, x: Symbol, *_: Any) -> Symbol:
    return _pooled(op, x, _dimensions(op))


@rule(
    *(f"adaptive_max_pool{n}d" for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
)
def pool_with_indices(op: Op, x: Symbol, *_: Any) -> tuple[Symbol, Symbol]:
    pooled = _pooled(op, x, _dimensions(op))
    return pooled, Symbol(pooled.axes)


@rule("max_unpool2d", "max_unpool3d")
def unpool(op: Op, x: Symbol, places: Symbol, *_: Any) -> Symbol:
    space = _dimensions(op)
    for mine, theirs in zip(x.axes[:-space], places.axes[:-space], strict=True):
        op.unify(mine, theirs)
    return _pooled(op, x, space)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(op: Op, x: Symbol, grid: Symbol, *_: Any) -> Symbol:
    space = x.ndim - 2
    op.unify(x.axes[0], grid.axes[0])
    for axis in grid.axes[1:]:
        op.freeze(axis, SPACE)
    return _pooled(op, x, space)


@rule("unfold")
def unfold(op: Op, x: Symbol, dim: int, *_: Any) -> Symbol:
    """Windows of one dimension: their places and the positions inside are told apart."""
    if not x.ndim:
        raise Uncovered("a scalar")
    op.freeze(x.axes[dim], SPACE)
    sizes = op.out.shape
    windows = replaced(x, dim, op.frozen(int(sizes[dim % x.ndim]), SPACE))
    return Symbol((*windows.axes, op.frozen(int(sizes[-1]), SPACE)))


@rule("im2col")
def im2col(op: Op, x: Symbol, kernel: Sequence[int], *_: Any) -> Symbol:
    """Patches: channels stay, each with its positions in the patch."""
    for axis in x.axes[-2:]:
        op.freeze(axis, SPACE)
    patch = op.frozen(prod(kernel), SPACE)
    return Symbol((*x.axes[:-3], (*x.axes[-3], *patch), op.frozen(op.out.shape[-1], SPACE)))


@rule("col2im")
def col2im(op: Op, x: Symbol, size: Sequence[int], kernel: Sequence[int], *_: Any) -> Symbol:
    channels = fresh(axis_size(x.axes[-2]) // prod(kernel))
    op.unify(x.axes[-2], (*channels, *op.frozen(prod(kernel), SPACE)))
    op.freeze(x.axes[-1], SPACE)
    op.mixes_across([*x.axes[:-2], channels])
    return Symbol((*x.axes[:-2], channels, *(op.frozen(int(n), SPACE) for n in size)))


@rule("pixel_shuffle")
def pixel_shuffle(op: Op, x: Symbol, factor: int) -> Symbol:
    """A channel and the positions it is spread over: (channel, row, column) becomes channel and finer space."""
    channels = fresh(axis_size(x.axes[-3]) // factor**2)
    op.unify(x.axes[-3], (*channels, *op.frozen(factor**2, SPACE)))
    return _resized(op, x, channels)


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op, x: Symbol, factor: int) -> Symbol:
    return _resized(op, x, (*x.axes[-3], *op.frozen(factor**2, SPACE)))


def _resized(op: Op, x: Symbol, channels: Axis) -> Symbol:
    for axis in x.axes[-2:]:
        op.freeze(axis, SPACE)
    return Symbol((*x.axes[:-3], channels, *(op.frozen(n, SPACE) for n in op.out.shape[-2:])))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Op, x: Symbol, groups: int) -> Symbol:
    """Channels are group·member; the two change places."""
    n, channels, *space = x.shape
    several = regroup(op, x, [n, groups, channels // groups, *space])
    return regroup(op, permute(op, several, [0, 2, 1, *range(3, several.ndim)]), [n, channels, *space])
