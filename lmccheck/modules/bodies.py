"""New bodies for the same tensors: what a module keeps of one point of weight space is unknown to the next."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from lmccheck.modules.copies import copied_by_python, copying, shared_tensors

_UNCHANGING = (int, float, bool, str, type(None))


class Bodies:
    """Makes copies of a module that have its very stored tensors, and everything else of their own.

    What a network keeps in its plain attributes, containers of them, objects, and buffers that are not stored is as in
    the module, which nobody runs; what a copy that was run has kept, or has handed out, stays with it. That is what
    ``copy.deepcopy`` gives, which would ask of every number in it at every copy how it is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shared = shared_tensors(module)
        self._parts: list[tuple[nn.Module, list[str]]] = []
        for part in module.modules():
            if copied_by_python(part):
                self._parts.append((part, [k for k, held in vars(part).items() if type(held) not in _UNCHANGING]))

    def make(self) -> nn.Module:
        """Return a new one, in training mode or as the module is."""
        memo: dict[int, Any] = dict(self._shared)
        with copying(self._module):
            for part, _ in self._parts:
                memo[id(part)] = type(part).__new__(type(part))
            for part, changing in self._parts:
                own = vars(memo[id(part)])
                own.update(vars(part))
                for key in changing:
                    own[key] = _copied(own[key], memo)
            body: nn.Module = copy.deepcopy(self._module, memo)
        return body


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return ``copy.deepcopy(value, memo)``; the dicts of a module, mostly empty, are copied without asking Python."""
    twin = memo.get(id(value))
    if twin is not None:
        return twin
    kind = type(value)
    if kind is not dict and kind is not OrderedDict:
        return copy.deepcopy(value, memo)
    twin = memo[id(value)] = kind()
    for key, item in value.items():
        twin[key if type(key) is str else copy.deepcopy(key, memo)] = _copied(item, memo)
    return twin
