"""What a run computes from weights, op by op, and which tensors it reads that are neither its module's nor its own."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmccheck.data.trees import input_tensors
from lmccheck.modules.held import NO_ATTRIBUTES, held_tensors
from lmccheck.modules.spots import Spot, comes_back, holding, tensors_at
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import place


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
            self._known.add(place(tensor))

    def is_weighted(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where the run put something that it computed from stored tensors."""
        mark = self._weighted.get(place(tensor))
        return mark is not None and not mark.expired()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        new = func is torch.ops.aten.lift_fresh.default
        weighted = not new and any(self.is_weighted(tensor) for tensor in given)
        if weighted:
            self.ops.append(str(func))
        for tensor in () if new else given:
            if place(tensor) not in self._known and tensor.is_floating_point() and tensor.numel() > 1:
                self.foreign[place(tensor)] = tensor
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf, weighted)
        return result

    def _mark(self, tensor: Tensor, weighted: bool) -> None:
        where = place(tensor)
        self._known.add(where)
        if weighted and where:
            self._weighted[where] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # as above

    def reads(self, module: nn.Module) -> str | None:
        """Return the name of a tensor that another module stores and the run has read, None where there is none."""
        stored = stored_tensors(module).items()
        return next((name for name, tensor in stored if place(tensor) in self.foreign), None)


def kept_outside(watched: Watched, run: Callable[[], Watched]) -> str | None:
    """Return the place of a tensor, read from outside of the module, that ``run`` computes from weights if it is gone.

    Whatever holds such a tensor is emptied of it, ``run`` is called, and it is put back as it was. A constant is not
    computed again. None where there is no such place.
    """
    for tensor in list(watched.foreign.values()):
        for holder in map(_owner, gc.get_referrers(tensor)):
            if holder is watched.foreign or isinstance(holder, (types.FrameType, Watched)):
                continue
            spot = holding(holder, tensor)
            if spot is None:
                continue

            def kept(found: Watched, spot: Spot = spot) -> bool:
                return any(found.is_weighted(item) for item in tensors_at(spot))

            if any(comes_back(spot, stand_in, run, kept) for stand_in in spot.stand_ins()):
                return spot.called
    return None


def _owner(holder: Any) -> Any:
    """Return the class or object whose attributes a dict is, else the holder itself."""
    if type(holder) is not dict:
        return holder
    owners = (
        item
        for item in gc.get_referrers(holder)
        if isinstance(item, type) or getattr(item, "__dict__", NO_ATTRIBUTES) is holder
    )
    return next((item for item in owners if isinstance(item, type) or not isinstance(item, types.ModuleType)), holder)
