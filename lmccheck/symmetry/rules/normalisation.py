"""Normalisation: per-channel affine maps are matched; statistics taken over an axis are symmetric in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.axes import Axis, Factor, axis_size
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import rule, without


def _per_channel(op: Op, x: Symbol, *vectors: Symbol | None) -> None:
    for vector in vectors:
        if vector is not None:
            op.unify(x.axes[1], vector.axes[0])


@rule("batch_norm")
def batch_norm(op: Op, x: Symbol, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any) -> Symbol:
    _per_channel(op, x, weight, bias, mean, var)
    if training or mean is None:
        op.mixes_across([x.axes[1]])
    return Symbol(x.axes)


@rule("_native_batch_norm_legit_no_training")
def batch_norm_eval(op: Op, x: Symbol, weight: Any, bias: Any, mean: Any, var: Any, *_: Any) -> tuple[Symbol, ...]:
    _per_channel(op, x, weight, bias, mean, var)
    return (
        Symbol(x.axes),
        *(Symbol(tuple(op.frozen(n, "saved statistics") for n in t.shape)) for t in op.out[1:]),
    )


@rule("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm")
def batch_norm_live(op: Op, x: Symbol, weight: Any, bias: Any, *rest: Any) -> tuple[Symbol, ...]:
    """With the batch's own statistics: each channel is normalised over everything else."""
    stored = [item for item in rest if isinstance(item, Symbol)]
    _per_channel(op, x, weight, bias, *stored)
    op.mixes_across([x.axes[1]])
    return (
        Symbol(x.axes),
        *(Symbol((x.axes[1],)) if t.shape == op.out[0].shape[1:2] else Symbol(((),)) for t in op.out[1:]),
    )


@rule("instance_norm")
def instance_norm(op: Op, x: Symbol, weight: Any, bias: Any, mean: Any, var: Any, *_: Any) -> Symbol:
    _per_channel(op, x, weight, bias, mean, var)
    op.mixes_across(x.axes[:2])
    return Symbol(x.axes)


def _over_last(op: Op, x: Symbol, dims: int, *affine: Symbol | None) -> None:
    for vector in affine:
        if vector is not None:
            for mine, theirs in zip(x.axes[-dims:], vector.axes, strict=True):
                op.unify(mine, theirs)
    op.mixes_across(x.axes[:-dims])
    for axis in x.axes[-dims:]:
        op.binds(axis, "the norm's statistics are taken over it")


@rule("layer_norm")
def layer_norm(op: Op, x: Symbol, shape: Sequence[int], weight: Any, bias: Any, *_: Any) -> Symbol:
    _over_last(op, x, len(shape), weight, bias)
    return Symbol(x.axes)


@rule("native_layer_norm")
def native_layer_norm(op: Op, x: Symbol, shape: Sequence[int], weight: Any, bias: Any, *_: Any) -> tuple[Symbol, ...]:
    _over_last(op, x, len(shape), weight, bias)
    rest: tuple[Axis, ...] = (*x.axes[: -len(shape)], *(() for _ in shape))
    return Symbol(x.axes), Symbol(rest), Symbol(rest)


@rule("_fused_rms_norm")
def fused_rms_norm(op: Op, x: Symbol, shape: Sequence[int], weight: Any, *_: Any) -> tuple[Symbol, Symbol]:
    _over_last(op, x, len(shape), weight)
    return Symbol(x.axes), Symbol((*x.axes[: -len(shape)], *(() for _ in shape)))


@rule("rms_norm")
def rms_norm(op: Op, x: Symbol, shape: Sequence[int], weight: Any, *_: Any) -> Symbol:
    _over_last(op, x, len(shape), weight)
    return Symbol(x.axes)


@rule("group_norm")
def group_norm(op: Op, x: Symbol, groups: int, weight: Any, bias: Any, *_: Any) -> Symbol:
    """Channels are group·member: the statistics of a group are symmetric in its members, groups move whole."""
    channels = axis_size(x.axes[1])
    if channels % groups:
        raise Uncovered("channels that groups do not divide")
    split: Axis = tuple(Factor(n) for n in (groups, channels // groups) if n > 1)
    op.unify(x.axes[1], split)
    _per_channel(op, x, weight, bias)
    op.mixes_across([x.axes[0], split[:1] if groups > 1 else ()])
    op.binds(split[1:] if groups > 1 else split, "the norm's statistics are taken over it")
    return Symbol(x.axes)


@rule("_weight_norm_interface")
def weight_norm(op: Op, v: Symbol, g: Symbol, dim: int = 0) -> tuple[Symbol, Symbol]:
    """g · v / ‖v‖ with the norm over every dimension but ``dim``."""
    op.unify(v.axes[dim], g.axes[dim])
    op.mixes_across([v.axes[dim]])
    for axis in without(v, [dim % v.ndim]):
        op.binds(axis, "the weights are normalised over it")
    return Symbol(v.axes, v.param), Symbol(g.axes)
