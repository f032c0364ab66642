"""Convolutions: channels behave like a linear layer's units, positions in space are told apart."""

from __future__ import annotations

from typing import Any

from lmccheck.symmetry.analysis import Op, Symbol, Uncovered
from lmccheck.symmetry.axes import Axis, Factor, axis_size, fresh
from lmccheck.symmetry.rules._table import rule

SPACE = "positions in space are told apart"


def _convolve(op: Op, x: Symbol, weight: Symbol, bias: Symbol | None, groups: int, transposed: bool) -> Symbol:
    space = weight.ndim - 2
    if x.ndim != space + 2:
        raise Uncovered("an input without a batch dimension")
    channels, reads, writes = x.axes[1], weight.axes[1], weight.axes[0]
    if transposed:
        reads, writes = writes, reads
    for axis in (*x.axes[2:], *weight.axes[2:]):
        op.freeze(axis, SPACE)
    if groups == 1:
        op.unify(channels, reads)
        op.consumes(weight, reads)
        op.mixes_across([reads])
        out: Axis = writes
    else:
        out = _grouped(op, channels, reads, writes, groups, transposed)
    if bias is not None:
        op.unify(out, bias.axes[0])
    return Symbol((x.axes[0], out, *(op.frozen(int(n), SPACE) for n in op.out.shape[2:])))


def _grouped(op: Op, channels: Axis, reads: Axis, writes: Axis, groups: int, transposed: bool) -> Axis:
    """Input channels are group·in, output channels group·out: groups move whole, channels within their group."""
    if transposed:
        raise Uncovered("a transposed convolution with groups")
    group: Axis = (Factor(groups),)
    op.unify(channels, (*group, *reads))
    each: Axis = fresh(axis_size(writes) // groups)
    op.unify(writes, (*group, *each))
    op.mixes_across([(*group, *reads)])
    return (*group, *each)


@rule("conv1d", "conv2d", "conv3d")
def conv(
    op: Op, x: Symbol, weight: Symbol, bias: Symbol | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Symbol:
    return _convolve(op, x, weight, bias, groups, transposed=False)


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
    return _convolve(op, x, weight, bias, groups, transposed=True)


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
    return _convolve(op, x, weight, bias, groups, transposed)
