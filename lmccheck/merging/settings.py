"""Settings of recipes, read and told of in one place; no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmccheck.errors import LmcError, nearest
from lmccheck.merging.contract import DTYPES


def by_parent(value: Any, parents: tuple[str, ...], name: str, what: str) -> dict[str, Any]:
    """Return a table with an entry for each parent, in the parents' order. Raises LmcError."""
    if not isinstance(value, Mapping):
        example = ", ".join(f"{parent} = …" for parent in parents[:2])
        raise LmcError(f".{name}: got {value!r}, expected a table of {what} by parent, {{ {example} }}")
    for key in value:
        if key not in parents:
            near = nearest(str(key), parents)
            raise LmcError(f".{name}.{key}: no such parent{near}; expected {', '.join(parents)}")
    if missing := [parent for parent in parents if parent not in value]:
        raise LmcError(
            f".{name}: nothing is said of parent {missing[0]!r}, expected {what} for each; mend: give it, or leave the "
            "parent out"
        )
    return {parent: value[parent] for parent in parents}


def weights(value: Any, parents: tuple[str, ...], name: str) -> dict[str, float]:
    """Return a weight for each parent, any finite number. Raises LmcError."""
    found = by_parent(value, parents, name, "weights")
    for parent, weight in found.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise LmcError(f".{name}.{parent}: got {weight!r}, expected a finite number")
    if not any(found.values()):
        raise LmcError(f".{name}: every weight is 0, expected a merge of something; mend: give weights")
    return {parent: float(weight) for parent, weight in found.items()}


def flag(options: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return an option that is true or false. Raises LmcError."""
    value = options.get(key, default)
    if not isinstance(value, bool):
        raise LmcError(f".{key}: got {value!r}, expected true or false")
    return value


def dtype(options: Mapping[str, Any]) -> str | None:
    """Return the dtype that floating tensors are written in; None for that of the parents. Raises LmcError."""
    value = options.get("dtype")
    if value is not None and value not in DTYPES:
        near = nearest(value, DTYPES) if isinstance(value, str) else ""
        raise LmcError(f".dtype: got {value!r}{near}, expected one of {', '.join(DTYPES)}")
    return value
