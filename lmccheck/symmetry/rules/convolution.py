"""Convolutions: channels behave like a linear layer's units, positions in space are told apart."""

from __future__ import annotations

from typing import Any

from lmccheck.symmetry.axes import Axis, Factor, axis_size, fresh
from lmccheck.symmetry.op import Op, Symbol
from lmccheck.symmetry.rules._table import rule

SPACE = "positions in space are told apart"


def _convolve(
    op: Op,
    x: Symbol,
    weight: Symbol,
    bias: Symbol | None,
    stride: Any,
    padding: Any,
    groups: int,
    transposed: bool,
) -> Symbol:
    space = weight.ndim - 2
    batched = x.ndim == space + 2
    if not batched:
        x = Symbol(((), *x.axes))
    sizes = op.out.shape[-space:]
    reads, writes = weight.axes[1], weight.axes[0]
    if transposed:
        reads, writes = writes, reads
    if groups == 1:
        op.unify(x.axes[1], reads)
        op.consumes(weight, reads)
        op.contracts([x.axes[0], *x.axes[2:]], reads, [writes])
        out: Axis = writes
    elif transposed:
        out = _grouped_transposed(op, x, weight, reads, writes, groups)
    else:
        out = _grouped(op, x, weight, reads, writes, groups)
    if bias is not None:
        op.unify(out, bias.axes[0])
    axes: list[Axis] = []
    for d in range(2, x.ndim):
        alone = weight.shape[d] == 1 and _entry(stride, d - 2) == 1 and _entry(padding, d - 2) in (0, "valid", "same")
        if alone and x.shape[d] == sizes[d - 2]:  # every position is treated by itself
            axes.append(x.axes[d])
            continue
        op.freeze(x.axes[d], SPACE)
        op.freeze(weight.axes[d], SPACE)
        axes.append(op.frozen(sizes[d - 2], SPACE))
    return Symbol((x.axes[0], out, *axes) if batched else (out, *axes))


def _entry(setting: Any, k: int) -> Any:
    """Return what a stride or padding says of one dimension; torch takes one number for all."""
    if isinstance(setting, (list, tuple)):
        return setting[k] if len(setting) > 1 else setting[0]
    return setting


def _grouped(op: Op, x: Symbol, weight: Symbol, reads: Axis, writes: Axis, groups: int) -> Axis:
    """Input channels are group·in, output channels group·out: groups move whole, channels within their group."""
    group: Axis = (Factor(groups),)
    op.unify(x.axes[1], (*group, *reads))
    op.consumes(weight, reads)
    each: Axis = fresh(axis_size(writes) // groups)
    op.unify(writes, (*group, *each))
    op.contracts([x.axes[0], *x.axes[2:]], reads, [each], [group])
    return (*group, *each)


def _grouped_transposed(op: Op, x: Symbol, weight: Symbol, reads: Axis, writes: Axis, groups: int) -> Axis:
    """The weight's input side holds all groups, its output side one: group·in by out."""
    group: Axis = (Factor(groups),)
    each: Axis = fresh(axis_size(reads) // groups)
    op.unify(reads, (*group, *each))
    op.unify(x.axes[1], reads)
    op.consumes(weight, each)
    op.contracts([x.axes[0], *x.axes[2:]], each, [writes], [group])
    return (*group, *writes)


@rule("conv1d", "conv2d", "conv3d")
def conv(
    op: Op, x: Symbol, weight: Symbol, bias: Symbol | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Symbol:
    return _convolve(op, x, weight, bias, stride, padding, groups, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    op: Op,
    x: Symbol,
    weight: Symbol,
    bias: Symbol | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Symbol:
    return _convolve(op, x, weight, bias, stride, padding, groups, transposed=True)


@rule("convolution")
def convolution(
    op: Op,
    x: Symbol,
    weight: Symbol,
    bias: Symbol | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Symbol:
    return _convolve(op, x, weight, bias, stride, padding, groups, transposed)
