"""Caches of functions: what ``functools.lru_cache`` keeps beside a module, which outlives every weight."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

_Cache = type(functools.lru_cache(lambda: None))
_DEEP = 4  # an entry is a link that refers to a result, which may hold the tensor in a container


def tensor_caches(module: nn.Module) -> list[Any]:
    """Return every ``lru_cache`` that the classes of a module's parts, or the files they are written in, have."""
    spaces: dict[int, Any] = {}
    for part in module.modules():
        for kind in type(part).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                spaces[id(kind)] = vars(kind)
                forward = vars(kind).get("forward")
                space = getattr(forward, "__globals__", vars(sys.modules.get(kind.__module__, object)))
                spaces[id(space)] = space
    return [value for space in spaces.values() for value in list(space.values()) if isinstance(value, _Cache)]


def clear_caches(caches: Iterable[Any]) -> None:
    """Clear those that hold a tensor: what they were computed from may have changed."""
    for cache in caches:
        if cache.cache_info().currsize and _reaches_tensor(cache):
            cache.cache_clear()


def _reaches_tensor(cache: Any) -> bool:
    seen: set[int] = set()
    level = [cache]
    for _ in range(_DEEP):
        level = [item for holder in level for item in gc.get_referents(holder) if id(item) not in seen]
        level = [item for item in level if not isinstance(item, (type, str, int, float))]
        seen |= {id(item) for item in level}
        if any(isinstance(item, (Tensor, nn.Module)) for item in level):
            return True
    return False
