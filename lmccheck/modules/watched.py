"""What a run computes from weights, op by op, and which tensors it reads that are neither its module's nor its own."""

from __future__ import annotations

import gc
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmccheck.errors import LmcError, SourceError
from lmccheck.modules.held import NO_ATTRIBUTES, held_tensors
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.trees import input_tensors


class Watched(TorchDispatchMode):
    """A run that is looked at.

    ``ops`` are the ops that took something computed from stored tensors, in order: with the same weights and inputs a
    network has the same ones, unless it takes results from an earlier run. ``foreign`` are the floating tensors of
    several numbers that an op read although they are no part of the module, of its inputs, or of the run; those in
    its plain attributes are part of a module only where it is ``trusted``: just built, so that it has not kept any.
    """

    def __init__(self, module: nn.Module, inputs: Any, *, trusted: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.ops: list[str] = []
        self.foreign: dict[int, Tensor] = {}
        self._weighted: dict[int, StorageWeakRef] = {}
        self._known: set[int] = set()
        for tensor in stored_tensors(module).values():
            self._mark(tensor, weighted=True)
        others = [item.tensor for item in held_tensors(module)] if trusted else []
        for tensor in (*module.parameters(), *module.buffers(), *others, *input_tensors(inputs)):
            self._known.add(_place(tensor))

    def is_weighted(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where the run put something that it computed from stored tensors."""
        mark = self._weighted.get(_place(tensor))
        return mark is not None and not mark.expired()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        new = func is torch.ops.aten.lift_fresh.default
        weighted = not new and any(self.is_weighted(tensor) for tensor in given)
        if weighted:
            self.ops.append(str(func))
        for tensor in () if new else given:
            if _place(tensor) not in self._known and tensor.is_floating_point() and tensor.numel() > 1:
                self.foreign[_place(tensor)] = tensor
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf, weighted)
        return result

    def _mark(self, tensor: Tensor, weighted: bool) -> None:
        place = _place(tensor)
        self._known.add(place)
        if weighted and place:
            self._weighted[place] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # as above

    def reads(self, module: nn.Module) -> str | None:
        """Return the name of a tensor that another module stores and the run has read, None where there is none."""
        stored = stored_tensors(module).items()
        return next((name for name, tensor in stored if _place(tensor) in self.foreign), None)


def _place(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, 0 where it has none."""
    with suppress(RuntimeError, NotImplementedError):
        return int(tensor.untyped_storage().data_ptr())
    return 0


def kept_outside(watched: Watched, run: Callable[[], Watched]) -> str | None:
    """Return the place of a tensor, read from outside of the module, that ``run`` computes from weights if it is gone.

    Whatever holds such a tensor is emptied of it, ``run`` is called, and it is put back as it was. A constant is not
    computed again. None where there is no such place.
    """
    for tensor in list(watched.foreign.values()):
        for holder in map(_owner, gc.get_referrers(tensor)):
            if holder is watched.foreign or isinstance(holder, (types.FrameType, Watched)):
                continue
            for forget in (_emptied, _without, _as_none):
                with forget(holder, tensor) as place:
                    if place is None:
                        continue
                    found = None
                    try:
                        found = run()
                    except LmcError as error:
                        if not isinstance(error, SourceError):  # which says that a constant is missed
                            raise
                    if found is not None and any(found.is_weighted(item) for item in _tensors(holder)):
                        return place
    return None


def _owner(holder: Any) -> Any:
    """Return the class or object whose attributes a dict is, else the holder itself."""
    if type(holder) is not dict:
        return holder
    owners = (item for item in gc.get_referrers(holder) if isinstance(item, type) or _fields(item) is holder)
    return next((item for item in owners if isinstance(item, type) or not isinstance(item, types.ModuleType)), holder)


def _fields(holder: Any) -> Any:
    return getattr(holder, "__dict__", NO_ATTRIBUTES)


def _key(holder: Any, tensor: Tensor) -> str | None:
    named = holder if type(holder) is dict else _fields(holder)
    return next((key for key, value in list(named.items()) if value is tensor), None)


def _tensors(holder: Any) -> list[Tensor]:
    items = holder.values() if isinstance(holder, dict) else holder if isinstance(holder, (list, deque)) else ()
    if isinstance(holder, types.CellType):
        items = [holder.cell_contents]
    return [item for item in (*items, *_fields(holder).values()) if isinstance(item, Tensor)]


def _called(holder: Any, key: object) -> str:
    name = holder.get("__name__") if isinstance(holder, dict) else getattr(holder, "__name__", type(holder).__name__)
    return f"{key!r} of {name or 'a dict'}"


@contextmanager
def _emptied(holder: Any, tensor: Tensor) -> Iterator[str | None]:
    """Empty a plain container for as long as the context lasts; yields what it is called, None for other things."""
    if type(holder) not in (list, dict, deque) or (isinstance(holder, dict) and "__name__" in holder):
        yield None
        return
    before = holder.copy()
    holder.clear()
    try:
        yield f"a {type(holder).__name__}"
    finally:
        holder.clear()
        holder.update(before) if isinstance(holder, dict) else holder.extend(before)


@contextmanager
def _without(holder: Any, tensor: Tensor) -> Iterator[str | None]:
    """Take an attribute from an object for as long as the context lasts; yields its name, None for other things."""
    key = None if type(holder) is dict else _key(holder, tensor)
    if key is None or isinstance(holder, types.CellType):
        yield None
        return
    delattr(holder, key)
    try:
        yield _called(holder, key)
    finally:
        setattr(holder, key, tensor)


@contextmanager
def _as_none(holder: Any, tensor: Tensor) -> Iterator[str | None]:
    """Put None in the place of a variable or attribute for as long as the context lasts; yields its name."""
    key = _key(holder, tensor)
    if isinstance(holder, types.CellType):
        holder.cell_contents = None
        try:
            yield "a variable of a closure"
        finally:
            holder.cell_contents = tensor
    elif key is None:
        yield None
    else:
        put = holder.__setitem__ if type(holder) is dict else partial(setattr, holder)
        put(key, None)
        try:
            yield _called(holder, key)
        finally:
            put(key, tensor)
