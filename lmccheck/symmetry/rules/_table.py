"""The table itself, apart so that the families can fill it without importing each other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.op import Op, Symbol, Uncovered

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ``aten.<name>`` of every given name; a name with a dot is taken as it is."""

    def register(function: Rule) -> Rule:
        for name in names:
            key = name if "." in name else f"aten.{name}"
            if key in RULES:
                raise AssertionError(f"two rules for {key}")
            RULES[key] = function
        return function

    return register


def broadcast(op: Op, *operands: Any) -> tuple[Axis, ...]:
    """Unify the axes of tensors the way broadcasting pairs them, from the last dimension; return the result's axes."""
    tensors = [operand for operand in operands if isinstance(operand, Symbol)]
    rank = max((tensor.ndim for tensor in tensors), default=0)
    axes: list[Axis] = []
    for back in range(rank, 0, -1):
        result: Axis = ()
        for tensor in tensors:
            if tensor.ndim < back or not tensor.axes[-back]:
                continue
            if result:
                op.unify(result, tensor.axes[-back])
            else:
                result = tensor.axes[-back]
        axes.append(result)
    return tuple(axes)


def normal_dims(symbol: Symbol, dims: int | Sequence[int] | None) -> list[int]:
    """Return the given dimensions as non-negative ints; every dimension for None or an empty list."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return list(range(symbol.ndim))
    return sorted(d % max(symbol.ndim, 1) for d in ([dims] if isinstance(dims, int) else dims))


def without(symbol: Symbol, dims: Sequence[int]) -> list[Axis]:
    """Return the axes of ``symbol`` that are not in ``dims``."""
    return [axis for d, axis in enumerate(symbol.axes) if d not in set(dims)]


def tensor(value: Any) -> Symbol:
    """Return ``value`` as a Symbol or give the call up."""
    if not isinstance(value, Symbol):
        raise Uncovered("an argument is not a tensor")
    return value


def replaced(symbol: Symbol, dim: int, *axes: Axis) -> Symbol:
    """Return ``symbol`` with one of its axes replaced by any number of others."""
    dim %= symbol.ndim
    return Symbol((*symbol.axes[:dim], *axes, *symbol.axes[dim + 1 :]))


def reads_output(op: Op, number: int) -> bool:
    """Whether anything uses that output of an op with several."""
    return any(user.target is operator.getitem and user.args[1] == number and user.users for user in op.node.users)


def dims_in(arguments: Sequence[Any]) -> int | Sequence[int] | None:
    """Return the dimensions when they are the first argument; None when it is something else (a flag, a dtype)."""
    first = arguments[0] if arguments else None
    return first if isinstance(first, (int, list, tuple)) and not isinstance(first, bool) else None
