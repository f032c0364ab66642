"""Inputs and outputs of networks as trees of containers, whatever holds their tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from lmccheck.errors import SourceError


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (tuple, list)) else []


def input_tensors(inputs: Any) -> list[Tensor]:
    """Return every tensor of a network's inputs, in a stable order."""
    return [inputs] if isinstance(inputs, Tensor) else [t for part in _parts(inputs) for t in input_tensors(part)]


def tensors_in(output: Any) -> list[Tensor]:
    """Return every floating tensor of a network's output, in a stable order (dataclasses and mappings included)."""
    if isinstance(output, Tensor):
        return [output] if output.dtype.is_floating_point else []
    parts = _parts(output)
    if not parts and dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif not parts and hasattr(output, "logits"):
        parts = [output.logits]
    return [tensor for part in parts for tensor in tensors_in(part)]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a tree with ``change`` of every tensor, in containers like its own; other things stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        parts = [mapped(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, MutableMapping):
        twin = copy.copy(value)  # of its own class, with what it holds beside its items
        for key, part in value.items():
            twin[key] = mapped(change, part)
        return twin
    return value


def only_tensors(value: Any) -> bool:
    """Whether all that can be read in an output are floating tensors that ``mapped`` changes: no other object.

    What a container holds beside its items counts too: it is looked at after a change.
    """
    made: list[Tensor] = []

    def other(tensor: Tensor) -> Tensor:
        made.append(tensor.new_empty(0))
        return made[-1]

    return _made_of(mapped(other, value), {id(tensor) for tensor in made})


def _made_of(value: Any, tensors: Collection[int]) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and id(value) in tensors
    parts = _parts(value) if isinstance(value, (MutableMapping, tuple, list)) else None
    if parts is None:
        return value is None or isinstance(value, str)
    return all(_made_of(part, tensors) for part in (*parts, *getattr(value, "__dict__", {}).values()))


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a tree on a device, floating tensors in ``dtype``."""
    return mapped(lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device), value)


def take_samples(inputs: Any, which: slice | Tensor) -> Any:
    """Return some samples of a batch's inputs: a range of them, or those whose numbers are given, (k,) int64."""
    return mapped(lambda t: t[which] if t.ndim else t, inputs)


def equal(one: Any, other: Any) -> bool:
    """Whether two trees hold the same numbers, in whatever sequences and mappings."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return isinstance(other, (tuple, list)) and len(one) == len(other) and all(map(equal, one, other))
    return one is other


def positional(inputs: Any, where: str) -> tuple[Any, ...]:
    """Return a batch's inputs as positional arguments. Raises SourceError, beginning with ``where``, for a dict."""
    if isinstance(inputs, dict):
        raise SourceError(f"{where}: got inputs as a dict, expected a tensor or a tuple; mend: give positional inputs")
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
