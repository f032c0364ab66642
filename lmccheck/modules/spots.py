"""Places that hold something and can be emptied for one run: does the run put there again what it computes?

A result that a network keeps is told from a constant by that: without it, a forward computes it again.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmccheck.errors import LmcError, SourceError

Found = TypeVar("Found")
CONTAINERS = (dict, list, deque, set)
ABSENT = object()


@dataclass(frozen=True)
class Spot:
    """All that a container or a closure's cell holds, or, with a ``key``, one attribute of an object or variable of a
    file (whose holder is its dict of names)."""

    holder: Any
    key: str | None = None

    @property
    def called(self) -> str:
        """What messages call it."""
        if self.key is None:
            return "a variable of a closure" if self._is_cell else f"a {type(self.holder).__name__}"
        named = self.holder.get("__name__") if isinstance(self.holder, dict) else self._name_of_holder
        return f"{self.key!r} of {named or 'a dict'}"

    @property
    def _name_of_holder(self) -> str:
        return str(getattr(self.holder, "__name__", type(self.holder).__name__))

    @property
    def _is_cell(self) -> bool:
        return isinstance(self.holder, types.CellType)

    def stand_ins(self) -> list[Any]:
        """What may be put there in place of what it holds: nothing, None, zero or an empty tensor."""
        if self.key is None and not self._is_cell:
            return [ABSENT]
        value = self.get()
        zero = [type(value)()] if type(value) in (int, float, bool, complex) else []
        zero += [torch.empty(0)] if isinstance(value, Tensor) else []
        return [*([] if self._is_cell else [ABSENT]), None, *zero]

    def get(self) -> Any:
        """Return what is there, a copy of it for a container."""
        if self.key is None:
            return self.holder.cell_contents if self._is_cell else self.holder.copy()
        return self.holder.get(self.key, ABSENT) if isinstance(self.holder, dict) else self._attribute()

    def _attribute(self) -> Any:
        own = vars(self.holder) if hasattr(self.holder, "__dict__") else {}
        return own[self.key] if self.key in own else getattr(self.holder, self.key or "", ABSENT)

    def put(self, value: Any) -> None:
        """Put something there, ABSENT to take away what is there."""
        if self.key is None and self._is_cell:
            self.holder.cell_contents = value
        elif self.key is None:
            self.holder.clear()
            if value is not ABSENT:
                (self.holder.extend if isinstance(self.holder, (list, deque)) else self.holder.update)(value)
        elif isinstance(self.holder, dict):
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
        except (AttributeError, TypeError):  # it cannot be written to: then no run does
            yield
            return
        try:
            yield
        finally:
            self.put(before)

    def written(self, stand_in: Any) -> bool:
        """Whether something was put in the place of ``stand_in``."""
        if self.key is None and not self._is_cell:
            return bool(self.holder)
        value = self.get()
        return value is not None and value is not ABSENT and (value is not stand_in) and not _same(value, stand_in)


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
