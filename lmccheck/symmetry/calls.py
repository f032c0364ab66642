"""Calls of a traced graph as rules take them: arguments in order, and calls that say nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import fx

from lmccheck.symmetry.op import Symbol, Uncovered
from lmccheck.symmetry.trace import op_name


def refuse_ignored(rule: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Raise Uncovered where a tensor would fall into a rule's ``*_``, the settings it does not look at."""
    looked_at = _looked_at(rule)
    if looked_at is not None and any(any(symbol.axes) for symbol in symbols_in(list(arguments[looked_at:]))):
        raise Uncovered("has a tensor among its arguments that its rule does not treat")


@cache
def _looked_at(rule: Callable[..., Any]) -> int | None:
    """Return how many arguments a rule names before ``*_``; None for a rule that looks at all of them."""
    parameters = inspect.signature(rule).parameters
    return len(parameters) - 2 if "_" in parameters else None  # neither the op nor ``_`` itself


def bound_arguments(node: fx.Node) -> list[Any]:
    """Return a call's arguments in schema order, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return [*node.args, *node.kwargs.values()]
    bound = []
    for k, argument in enumerate(schema.arguments):
        if k < len(node.args):
            bound.append(node.args[k])
        elif argument.name in node.kwargs:
            bound.append(node.kwargs[argument.name])
        else:
            bound.append(argument.default_value if argument.has_default_value() else None)
    return bound


def mapped(get: Callable[[fx.Node], Any], value: Any) -> Any:
    if isinstance(value, fx.Node):
        return get(value)
    if isinstance(value, (tuple, list)):
        return [mapped(get, item) for item in value]
    if isinstance(value, dict):
        return {key: mapped(get, item) for key, item in value.items()}
    return value


def symbols_in(value: Any) -> list[Symbol]:
    if isinstance(value, Symbol):
        return [value]
    if isinstance(value, (tuple, list)):
        return [symbol for item in value for symbol in symbols_in(item)]
    if isinstance(value, dict):
        return [symbol for item in value.values() for symbol in symbols_in(item)]
    return []


def is_bookkeeping(node: fx.Node) -> bool:
    """Assertions and scalar arithmetic on shapes say nothing about positions."""
    name = op_name(node.target)
    return (
        "assert" in name or name.startswith("aten.sym_") or name in ("mul", "add", "sub", "floordiv", "eq", "ge", "le")
    )
