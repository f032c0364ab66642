"""Every tensor that a module can reach, and the name of the way to it: attributes, containers, objects, closures."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_ATTRIBUTES: dict[str, Any] = {}
_REGISTERED = ("_parameters", "_buffers", "_modules")
_CONTAINERS = {dict, OrderedDict, list, tuple, set, frozenset, deque}
_NOTHING = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Held:
    """A tensor that a module reaches other than as a parameter or buffer of it or of its parts.

    ``by_function`` says that the way leads through a function (its closure, its defaults), which no copy of the module
    has of its own, or to an array of numpy, which no tensor's copy changes.
    """

    path: str
    tensor: Tensor
    by_function: bool


def held_tensors(module: nn.Module) -> list[Held]:
    """Return every tensor that is reachable from the plain attributes of a module, at any depth; each object once,
    and once more where a function holds it as well."""
    found: list[Held] = []
    for path, value, through in reached(module):
        if isinstance(value, np.ndarray):
            with suppress(TypeError, ValueError):  # of a kind that torch has not
                found.append(Held(path, torch.from_numpy(value), True))
        elif isinstance(value, Tensor):
            found.append(Held(path, value, through))
    return found


def readable(value: Any) -> bool:
    """Whether an object says of what kind it is and what it has: a proxy of what is not there yet, such as a request's
    outside of one, raises errors of its own for both."""
    try:
        isinstance(value, type(None))
        getattr(value, "__dict__", None)
    except Exception:
        return False
    return True


def reached(module: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Yield what is reachable from the plain attributes of a module, other than its parts: the path, the object, and
    whether the way leads through a function."""
    parts = {id(part) for part in module.modules()}
    seen: dict[tuple[int, bool], Any] = {}
    waiting: deque[tuple[str, Any, bool]] = deque()
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        waiting += ((f"{prefix}{key}", value, False) for key, value in vars(part).items() if key not in _REGISTERED)
    while waiting:
        path, value, through = waiting.popleft()
        if not readable(value) or isinstance(value, _NOTHING) or id(value) in parts or (id(value), through) in seen:
            continue
        seen[id(value), through] = value  # kept: a number that was given away again would hide another object
        yield path, value, through
        if isinstance(value, np.ndarray) or _is_empty(value):
            continue
        if isinstance(value, Tensor):
            waiting += (
                (f"{path}.{key}", item, through) for key, item in getattr(value, "__dict__", NO_ATTRIBUTES).items()
            )
            continue
        through = through or isinstance(value, types.FunctionType)
        waiting += ((f"{path}{step}", item, through) for step, item in _parts(value))


def _is_empty(value: Any) -> bool:
    """Whether it is a container with nothing in it, such as most of what a module of torch has."""
    return type(value) in _CONTAINERS and not value and not getattr(value, "__dict__", NO_ATTRIBUTES)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a plain object holds, with the step to it; nothing of what belongs to Python or torch."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in _copied(dict.items(value)))  # as it is, if it is lazy
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((f"[{k}]", item) for k, item in enumerate(_copied(value)))
    elif isinstance(value, types.FunctionType):
        yield from function_parts(value)
    elif isinstance(value, types.MethodType):
        yield from (("", value.__self__), ("", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("", value.func), (".args", value.args), (".keywords", value.keywords))
    yield from ((f".{key}", item) for key, item in _copied(getattr(value, "__dict__", NO_ATTRIBUTES).items()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                yield f".{slot}", getattr(value, slot)


def function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function holds beside its code: the variables of its closure and its defaults."""
    code, kept = function.__code__, function.__closure__ or ()
    for name, cell in zip(code.co_freevars, kept, strict=True):
        try:
            yield f" (variable {name} of its closure)", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or NO_ATTRIBUTES).values()]
    yield from ((" (a default argument)", item) for item in defaults)


def _copied(items: Any) -> list[Any]:
    try:
        return list(items)
    except RuntimeError:  # another thread is writing to it
        return []
