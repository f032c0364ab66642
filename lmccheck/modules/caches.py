"""What is kept beside a module and outlives its weights: caches of functions, dicts that have the ids of modules."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from itertools import compress, repeat
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from lmccheck.modules.held import reached

_Cache = type(functools.lru_cache(lambda: None))
_NAMES = {int, tuple}  # kinds of keys that have a module's id
_DEEP = 4  # an entry is a link that refers to a result, which may hold the tensor in a container


def tensor_caches(module: nn.Module) -> list[Any]:
    """Return every ``lru_cache`` that the classes of a module's parts, or the files they are written in, have."""
    return [value for value in _beside(module) if issubclass(type(value), _Cache)]


def _beside(module: nn.Module) -> Iterator[Any]:
    """Yield what the classes of a module's parts, and the files they are written in, have in their names."""
    spaces: dict[int, Any] = {}
    for part in module.modules():
        for kind in type(part).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                spaces[id(kind)] = vars(kind)
                forward = vars(kind).get("forward")
                space = getattr(forward, "__globals__", vars(sys.modules.get(kind.__module__, object)))
                spaces[id(space)] = space
    for space in spaces.values():
        yield from list(space.values())


def kept_by_identity(module: nn.Module) -> bool:
    """Whether a dict that is not the module's own has the ``id`` of a part of it among its keys, or in one of them.

    Python gives the number to another module as soon as this one is gone. Names and modules are no results.
    """
    numbers = {id(part) for part in module.modules()}
    own = {id(value) for _, value, through in reached(module) if not through}
    objects = [*_beside(module), *gc.get_objects()]  # of which the second lack dicts of nothing but numbers
    dicts = compress(objects, map(issubclass, map(type, objects), repeat(dict)))  # isinstance would ask every library
    return any(_names(held, numbers) for held in dicts if id(held) not in own)


def _names(held: dict[Any, Any], numbers: set[int]) -> bool:
    if _NAMES.isdisjoint(map(type, list(dict.keys(held)))):  # as of most of the thousands that there are
        return False
    named = [
        value
        for key, value in list(dict.items(held))
        if type(key) in _NAMES and not numbers.isdisjoint(key if type(key) is tuple else (key,))
    ]
    return any(not issubclass(type(value), (str, nn.Module, type(None))) for value in named)


def clear_caches(caches: Iterable[Any]) -> None:
    """Clear those that hold what may have been computed from weights, which may have changed."""
    for cache in caches:
        if cache.cache_info().currsize and holds_results(cache):
            cache.cache_clear()


def holds_results(cache: Any) -> bool:
    """Whether a key or a result is or has a tensor, a module, or a container that can be filled, with numbers perhaps.

    What the function that is cached refers to is none of them.
    """
    level, own = gc.get_referents(cache), vars(cache)
    index = next(item for item in reversed(level) if type(item) is dict and item is not own)  # behind what it holds
    seen = {id(own), id(index), id(cache.__wrapped__)}
    level = [*level, *gc.get_referents(index)]
    for _ in range(_DEEP):
        level = [item for item in level if id(item) not in seen and not isinstance(item, (type, str, int, float))]
        if any(isinstance(item, (Tensor, nn.Module)) or _can_be_filled(item) for item in level):
            return True
        seen |= {id(item) for item in level}
        level = [item for holder in level for item in gc.get_referents(holder)]
    return False


def _can_be_filled(item: Any) -> bool:
    """Whether it is a container, or an object with attributes that is no function and no file of code."""
    has_attributes = type(item).__dictoffset__ != 0 and not isinstance(item, (FunctionType, ModuleType))
    return has_attributes or type(item) in (list, dict, set, bytearray)
