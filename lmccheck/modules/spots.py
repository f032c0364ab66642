"""Places that hold something and can be emptied for one run: does the run put there again what it computes?

A result that a network keeps is told from a constant by that: without it, a forward computes it again.
"""

from __future__ import annotations

import array
import ctypes
import functools
import os
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lmccheck.errors import LmcError, SourceError

Found = TypeVar("Found")
CONTAINERS = (dict, list, deque, set)
MEMORY = (np.ndarray, array.array, bytearray, ctypes._SimpleCData, ctypes.Array, ctypes.Structure, Tensor)
CACHE = type(functools.lru_cache(lambda: None))
ABSENT = object()


@dataclass(frozen=True)
class Spot:
    """All that a container, a closure's cell, a function's cache or a piece of memory holds, or, with a ``key``, one
    attribute of an object or variable of a file (whose holder is its dict of names)."""

    holder: Any
    key: str | None = None

    @property
    def called(self) -> str:
        """What messages call it."""
        if self.key is None:
            return "a variable of a closure" if self._is_cell else f"a {type(self.holder).__name__.strip('_')}"
        named = self.holder.get("__name__") if type(self.holder) is dict else self._name_of_holder
        return f"{self.key!r} of {named or 'a dict'}"

    @property
    def _name_of_holder(self) -> str:
        return str(getattr(self.holder, "__name__", type(self.holder).__name__))

    @property
    def _is_cell(self) -> bool:
        return isinstance(self.holder, types.CellType)

    @property
    def _is_item(self) -> bool:
        """Whether the key is one of a file's variables or of the environment, no attribute of a kind of dict."""
        return type(self.holder) is dict or self.holder is os.environ

    @property
    def _is_memory(self) -> bool:
        return isinstance(self.holder, MEMORY)

    def stand_ins(self) -> list[Any]:
        """What may be put there in place of what it holds: nothing, None, zero or an empty tensor."""
        if self.key is None and not self._is_cell:
            return [ABSENT, *self._nothings()]
        value = self.get()
        zero = [type(value)()] if type(value) in (int, float, bool, complex) else []
        zero += [torch.empty(0)] if isinstance(value, Tensor) else []
        return [*([] if self._is_cell else [ABSENT]), None, *zero]

    def _nothings(self) -> list[Any]:
        """A dict or list with None in every place: what a network fills may have its places from the beginning."""
        if isinstance(self.holder, dict):
            return [dict.fromkeys(dict.keys(self.holder))]  # as it is, if it is lazy
        return [[None] * len(self.holder)] if isinstance(self.holder, (list, deque)) else []

    def get(self) -> Any:
        """Return what is there, a copy of it for a container or memory; a cache's results cannot be had."""
        if self.key is not None:
            return self.holder.get(self.key, ABSENT) if self._is_item else self._attribute()
        if self._is_cell:
            return self.holder.cell_contents
        if self._is_memory:
            numbers = _numbers_of(self.holder)
            return numbers.clone() if isinstance(numbers, Tensor) else numbers.copy()
        if isinstance(self.holder, dict):
            return dict(dict.items(self.holder))  # as it is, if it is lazy
        return ABSENT if isinstance(self.holder, CACHE) else self.holder.copy()

    def _attribute(self) -> Any:
        own = vars(self.holder) if hasattr(self.holder, "__dict__") else {}
        return own[self.key] if self.key in own else getattr(self.holder, self.key or "", ABSENT)

    def put(self, value: Any) -> None:
        """Put something there, ABSENT to take away what is there."""
        if self.key is None and self._is_cell:
            self.holder.cell_contents = value
        elif self.key is None and self._is_memory:
            numbers = _numbers_of(self.holder)
            numbers[...] = _zero(numbers) if value is ABSENT else value
        elif self.key is None and isinstance(self.holder, CACHE):
            self.holder.cache_clear()
        elif self.key is None:
            self.holder.clear()
            if value is not ABSENT:
                (self.holder.extend if isinstance(self.holder, (list, deque)) else self.holder.update)(value)
        elif self._is_item:
            self.holder.pop(self.key, None) if value is ABSENT else self.holder.__setitem__(self.key, value)
        elif value is ABSENT:
            delattr(self.holder, self.key)
        else:
            setattr(self.holder, self.key, value)

    @contextmanager
    def without(self, stand_in: Any) -> Iterator[None]:
        """Have ``stand_in`` in the place of what is there for as long as the context lasts."""
        before = self.get()
        try:
            self.put(stand_in)
        except (AttributeError, TypeError, ValueError, RuntimeError):  # it cannot be written to: then no run does
            yield
            return
        try:
            yield
        finally:
            self.put(before)

    def written(self, stand_in: Any) -> bool:
        """Whether something was put in the place of ``stand_in``."""
        if self.key is None and self._is_memory:
            numbers = _numbers_of(self.holder)
            return bool((numbers != _zero(numbers)).any())
        if self.key is None and isinstance(self.holder, CACHE):
            return bool(self.holder.cache_info().currsize)
        if self.key is None and not self._is_cell:
            items = dict.values(self.holder) if isinstance(self.holder, dict) else self.holder
            return any(item is not None for item in items)
        value = self.get()
        return value is not None and value is not ABSENT and (value is not stand_in) and not _same(value, stand_in)


def _numbers_of(memory: Any) -> Any:
    """Return numbers that can be read and written in place: an array's, a tensor's, or bytes of anything else."""
    if isinstance(memory, Tensor):
        return memory.detach()
    return memory if isinstance(memory, np.ndarray) else np.frombuffer(memory, np.uint8)


def _zero(numbers: Any) -> Any:
    """Return what stands for nothing in such memory: arrays may have texts, dates or records."""
    return 0 if isinstance(numbers, Tensor) else np.zeros((), numbers.dtype)


def _same(value: Any, stand_in: Any) -> bool:
    return type(value) is type(stand_in) and not isinstance(value, Tensor) and bool(value == stand_in)


def comes_back(spot: Spot, stand_in: Any, run: Callable[[], Found], kept: Callable[[Found], bool]) -> bool:
    """Whether ``run`` writes to a spot again that holds a stand-in meanwhile, and ``kept`` is true of what it found.

    A constant is not written again: a run without it fails, or computes something else.
    """
    with spot.without(stand_in):
        try:
            found = run()
        except LmcError as error:
            if not isinstance(error, SourceError):  # which says that a constant is missed
                raise
            return False
        return spot.written(stand_in) and kept(found)


def holding(holder: Any, tensor: Tensor) -> Spot | None:
    """Return the spot of a tensor in something that refers to it, None where that cannot be emptied."""
    if isinstance(holder, types.CellType):
        return Spot(holder)
    if type(holder) in (list, dict, deque) and not (isinstance(holder, dict) and "__name__" in holder):
        return Spot(holder)
    named = holder if type(holder) is dict else getattr(holder, "__dict__", {})
    key = next((key for key, value in list(named.items()) if value is tensor), None)
    return None if key is None else Spot(holder, key)


def tensors_at(spot: Spot) -> list[Tensor]:
    """Return the tensors that a spot holds."""
    value = spot.get()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, deque)) else (value,)
    return [item for item in items if isinstance(item, Tensor)]
