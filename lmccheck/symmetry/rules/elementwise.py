"""Elementwise functions: axes are matched by broadcasting and pass through."""

from __future__ import annotations

from typing import Any

from lmccheck.symmetry.axes import Axis, fresh
from lmccheck.symmetry.facts import elementwise, facts_of
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import broadcast, rule, tensor

_BINARY = (
    "add sub mul div true_divide pow maximum minimum fmod remainder floor_divide atan2 rsub eq ne lt le gt ge "
    "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor lerp addcmul addcdiv masked_fill fill "
    "hypot copysign xlogy heaviside fmax fmin logaddexp logaddexp2 float_power divide multiply subtract "
    "bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ isclose nextafter"
)


@rule(*elementwise())
def unary(op: Op, x: Symbol, *settings: Any) -> Symbol:
    if (op.name.endswith("dropout") or op.name == "aten.rrelu") and settings and True in settings[-2:]:
        raise Uncovered("acts at random")
    if any(isinstance(setting, Symbol) and any(setting.axes) for setting in settings) and op.name != "aten.type_as":
        return Symbol(broadcast(op, x, *settings))
    return Symbol(x.axes, x.param if facts_of(op.node.target).copies else None)


@rule(*_BINARY.split())
def binary(op: Op, *operands: Any) -> Symbol:
    return Symbol(broadcast(op, *operands))


@rule("where")
def where(op: Op, condition: Symbol, *values: Any) -> Any:
    """A choice position by position; with the condition alone, the places where it holds."""
    if values:
        return Symbol(broadcast(op, condition, *values))
    op.orders(condition, range(condition.ndim), "the places where a condition holds are read")
    return tuple(Symbol((op.frozen(found.shape[0], "places found by a condition"),)) for found in op.out)


@rule("_local_scalar_dense", "item")
def number(op: Op, x: Symbol) -> Any:
    """A tensor of one number, as a number."""
    return op.out


@rule("prelu", "_prelu_kernel")
def prelu(op: Op, x: Symbol, weight: Any) -> Symbol:
    """One slope, or one per channel (dimension 1)."""
    slope = tensor(weight)
    axis: Axis = slope.axes[0] if slope.ndim == 1 else slope.axes[min(1, slope.ndim - 1)]
    if axis:
        op.unify(x.axes[1] if x.ndim > 1 else x.axes[0], axis)
    return Symbol(x.axes)


@rule(
    *("zeros", "ones", "full", "empty", "scalar_tensor"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_permuted", "empty_strided"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "zero"),
)
def uniform(op: Op, *like: Any) -> Symbol:
    """A tensor of one value: every permutation of any of its axes leaves it as it is."""
    return Symbol(tuple(fresh(n) for n in op.out.shape))


@rule("copy")
def copy(op: Op, into: Symbol, source: Symbol, *_: Any) -> Symbol:
    """What was there does not matter: the source, broadcast."""
    shape = list(op.out.shape)
    axes: list[Axis] = [*((),) * (len(shape) - source.ndim), *source.axes]
    return Symbol(tuple(axis or fresh(n) for axis, n in zip(axes, shape, strict=True)))


@rule(
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "multinomial", "normal", "normal_functional", "uniform", "exponential"),
)
def random(op: Op, *settings: Any) -> Symbol:
    raise Uncovered("draws random numbers in evaluation mode")


@rule("arange", "tril_indices", "triu_indices", "eye", "linspace")
def pattern(op: Op, *bounds: Any) -> Symbol:
    return Symbol(tuple(op.frozen(n, "a constant pattern") for n in op.out.shape))


@rule("tril", "triu")
def triangle(op: Op, x: Symbol, *_: Any) -> Symbol:
    for axis in x.axes[-2:]:
        op.freeze(axis, "a triangle of a matrix orders its rows and columns")
    return Symbol(x.axes)
