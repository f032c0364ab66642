"""What the code that a network is written in can reach and may write to: files, classes, objects, closures, memory."""

from __future__ import annotations

import builtins
import dis
import functools
import gc
import os
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from lmccheck.data.imports import imported
from lmccheck.modules.caches import holds_results
from lmccheck.modules.held import function_parts, readable
from lmccheck.modules.spots import CACHE, CONTAINERS, MEMORY, Spot

_SCALARS = (int, float, complex, np.generic)
_NUMBERS = (*_SCALARS, np.ndarray)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, nn.Module, type(None))
_AT_HOME = (type, types.FunctionType, types.ModuleType, CACHE)  # they say in which file they were written
# what Python and torch offer to keep things in, beside dicts and lists
_KEEPERS = {"collections", "queue", "functools", "weakref", "_thread", "_threading_local", "torch.utils.weak"}
_OF_THREADS = {"queue", "threading"}
_INSTALLED = (
    "site-packages",
    "dist-packages",
    os.path.dirname(os.__file__),
    os.path.dirname(os.path.dirname(__file__)),
)
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "scipy", "lmccheck", "pytest", "_pytest", "pluggy"}
_EVERY_HAS = {*vars(types.ModuleType("")), "__file__", "__path__", "__module__", "__qualname__"}  # none keeps a result
_BY_TEXT = {"setattr", "__setattr__", "__dict__", "vars", "register_buffer", "globals"}
_BUILDING = ("__init__", "__new__", "__post_init__")
_MOST = 5000  # objects that are looked at
_LARGEST = 1 << 26  # bytes of memory that is emptied: what is larger are data
REGISTERED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_WRAPPERS = (staticmethod, classmethod)
_AT_ONCE = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
_OF_DATACLASSES = {"__dataclass_builtins_object__"}
_STORES: WeakKeyDictionary[types.CodeType, frozenset[str]] = WeakKeyDictionary()


class Walk:
    """What the files and classes that a module is written in hold, and the code in them."""

    def __init__(self, module: nn.Module, executed: Collection[types.CodeType]) -> None:
        self._codes = dict.fromkeys(executed)
        self._executed = [code for code in executed if not any(where in code.co_filename for where in _INSTALLED)]
        self._functions: set[types.CodeType] = set()
        self._seen: dict[int, Any] = {id(part): part for part in module.modules()}
        kinds = {kind for part in module.modules() for kind in type(part).__mro__}
        self._files = {kind.__module__ for kind in kinds}
        files = imported()  # thousands: they are asked once for what they have
        self._variables = [vars(file) for file in files]
        self._imported = dict(zip(map(id, self._variables), files, strict=True))  # by what functions call their globals
        self.spots: list[Spot] = []
        self.memory: list[Spot] = []
        self.others: list[Spot] = []
        self.contextual = False
        self.begun: list[Any] = []
        own = [kind for kind in kinds if _top(kind.__module__) not in _LIBRARIES]
        of_name = self._files_by("__name__", {kind.__module__ for kind in own})
        for kind in own:
            self.spots += self.reached(kind)
            self.spots += [spot for file in _written_in(kind, of_name) for spot in self.reached(file)]
        self._reach_executed()
        self._reach_libraries(kinds)

    def _files_by(self, key: str, values: set[str]) -> list[types.ModuleType]:
        """Return the files that are imported whose variable ``key`` is among ``values``."""
        if not values:
            return []
        return [self._imported[id(named)] for named in self._variables if key in named and named[key] in values]

    def _reach_executed(self) -> None:
        """Look at the files of code that was executed, and at functions in nobody's hands but torch's."""
        for file in self._files_by("__file__", {code.co_filename for code in self._executed}):
            self.spots += self.reached(file)
        unseen = [code for code in self._executed if _holds_more(code) and code not in self._functions]
        for holder in gc.get_referrers(*unseen) if unseen else ():
            if isinstance(holder, types.FunctionType):
                self.spots += self.reached(holder)

    def _reach_libraries(self, kinds: Iterable[type]) -> None:
        """Look for what the user's code writes to: names of libraries that it has, variables of the environment."""
        own = [code for code in self._codes if not any(where in code.co_filename for where in _INSTALLED)]
        seen = (value for value in self._seen.values() if issubclass(type(value), types.ModuleType))
        files = [file for file in seen if _is_users(file.__name__)]
        named = (item for file in files for item in list(vars(file).values()))
        theirs = [item for item in named if issubclass(type(item), (type, types.ModuleType))]  # no library is asked
        written = {name for code in own for name in _stored(code, None)} - _EVERY_HAS
        for holder in dict.fromkeys([builtins, *kinds, *(item for item in theirs if _top(_home(item)) in _LIBRARIES)]):
            for key in written & vars(holder).keys():
                if not isinstance(vars(holder)[key], _CODE):
                    (self.spots if _is_number(vars(holder)[key]) else self.others).append(Spot(holder, key))
        asking = [code for code in own if not {"environ", "getenv"}.isdisjoint(code.co_names)]
        texts = {text for code in asking for text in code.co_consts if type(text) is str}
        self.memory += [Spot(os.environ, text) for text in texts if text in os.environ]

    def reached(self, value: Any) -> list[Spot]:
        """Return the places of numbers that are reached from a value, each once in the life of the walk.

        Of what the user's own files have, other places are noted as well.
        """
        found: list[Spot] = []
        waiting = deque([(value, True)])
        while waiting and len(self._seen) < _MOST:
            value, users = waiting.popleft()
            if id(value) in self._seen or not readable(value) or isinstance(value, (str, bytes, type(None), *_SCALARS)):
                continue
            self._seen[id(value)] = value  # kept: a number that was given away again would hide another object
            users = _is_users(_home(value)) if isinstance(value, _AT_HOME) else users
            if users:
                self._note(value)
            if isinstance(value, MEMORY):
                continue
            if _is_place_of_numbers(value):
                found.append(Spot(value))
            if isinstance(value, types.ModuleType) and self._is_own(value.__name__):
                found += self.attributes(vars(value), vars(value), others=users)
            elif type(value).__module__ in _OF_THREADS:
                pass  # another thread may be in the middle of it; what it holds is looked at
            elif self._is_own_object(value) or (users and isinstance(value, (types.FunctionType, *CONTAINERS))):
                found += self.attributes(value, _fields(value), others=users)
            waiting += ((part, users) for part in self._parts(value))
        return found

    def _note(self, value: Any) -> None:
        """Note a place that is none of numbers, or what is no place and may still keep something."""
        self.contextual |= isinstance(value, ContextVar)
        if isinstance(value, types.GeneratorType) and value.gi_code in self._executed:
            self.begun.append(value)
        elif isinstance(value, MEMORY):
            self.memory += [Spot(value)] * _is_plain(value)
        elif isinstance(value, CACHE):  # one of more than numbers and texts is cleared where its network is run
            self.others += [Spot(value)] * (not holds_results(value))
        elif _is_place_of_others(value) and not _is_place_of_numbers(value):
            self.others.append(Spot(value))

    def attributes(self, holder: Any, named: Any, *, others: bool = False) -> list[Spot]:
        """Return those attributes of an object, or variables of a file, that are numbers; note the others if asked."""
        items = [(key, value) for key, value in list(named.items()) if key != "training" and not key.startswith("__")]
        items = [(key, value) for key, value in items if readable(value)]
        if others:
            data = (key for key, value in items if not _is_number(value) and not isinstance(value, _CODE))
            self.others += [Spot(holder, key) for key in data]
        return [Spot(holder, key) for key, value in items if _is_number(value)]

    def written(self, spots: Iterable[Spot]) -> list[Spot]:
        """Return those spots that some code writes to when a network is run: containers, and names that it stores."""
        spots = list(spots)
        keys = {spot.key for spot in spots if spot.key is not None}
        names = {name for code in self._codes for name in _stored(code, keys)} if keys else set()
        return [spot for spot in spots if spot.key is None or spot.key in names]

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, (*CONTAINERS, tuple)):
            yield from _items(value)
        elif isinstance(value, types.CellType):
            yield _held(value)
        elif isinstance(value, _WRAPPERS):
            yield value.__func__
        elif isinstance(value, property):
            yield value.fget
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            if self._is_own(value.__module__ or ""):
                self._functions.add(value.__code__)
                if _is_users(value.__module__ or ""):
                    self._codes[value.__code__] = None
                    yield self._imported.get(id(value.__globals__))
                yield from value.__closure__ or ()
                yield from (item for _, item in function_parts(value))
                yield from list(vars(value).values())
        elif isinstance(value, types.ModuleType):
            named = list(vars(value).items()) if self._is_own(value.__name__) else []
            yield from (item for key, item in named if not key.startswith("__"))
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, CACHE):
            yield value.__wrapped__
        elif self._is_own_object(value):
            yield type(value)
            yield from list(_fields(value).values())

    def _is_own_object(self, value: Any) -> bool:
        if isinstance(value, type):
            return self._is_own(_home(value))
        if isinstance(value, (types.FunctionType, types.ModuleType, functools.partial, CACHE, *CONTAINERS)):
            return False
        kind = type(value)
        return kind is types.SimpleNamespace or kind.__module__ in _KEEPERS or self._is_own(_home(kind))

    def _is_own(self, name: str) -> bool:
        """Whether a file is the user's, or one of a library that a part of the network is written in."""
        return _is_users(name) or (name in self._files and _top(name) not in _LIBRARIES)


def _written_in(kind: type, files: Iterable[types.ModuleType]) -> list[types.ModuleType]:
    """Return the file of a class; of several files of that name the one that its functions are of."""
    named = [file for file in files if file.__name__ == kind.__module__]
    own = {id(value.__globals__) for value in vars(kind).values() if isinstance(value, types.FunctionType)}
    return [file for file in named if id(vars(file)) in own] or named


def _holds_more(code: types.CodeType) -> bool:
    """Whether a function of this code may outlive its call, and hold more in its closure than dataclasses are made
    with: that of a comprehension is gone at once, and to look for one is to look at everything in memory."""
    return code.co_name not in _AT_ONCE and not _OF_DATACLASSES.issuperset(code.co_freevars)


def _is_users(name: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return _top(name) not in _LIBRARIES and "site-packages" not in file and "dist-packages" not in file


def _top(name: str) -> str:
    return name.partition(".")[0]


def _home(value: Any) -> str:
    return str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)


def _fields(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, in its dict or in slots of its kind."""
    found = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__ if not isinstance(value, type) else ():
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    return found


def _is_plain(memory: Any) -> bool:
    """Whether memory can be written to in place, and is nobody's parameter, nor a file's or another process's."""
    memory = _owner(memory)
    if isinstance(memory, Tensor):
        usual = type(memory) is Tensor and memory.layout == torch.strided and memory.device.type != "meta"
        usual = usual and not (memory.is_nested or memory.requires_grad)
        storage = memory.untyped_storage() if usual else None
        own = storage is not None and storage.resizable() and not storage.is_shared()
        return own and 0 < memory.nbytes <= _LARGEST
    if not isinstance(memory, MEMORY) or not getattr(memory, "_b_needsfree_", True):
        return False
    held: Any = memory
    return 0 < (held if isinstance(held, np.ndarray) else memoryview(held)).nbytes <= _LARGEST


def _owner(memory: Any) -> Any:
    """Return what a view is of, a mapped file for example."""
    while (of := memory.base if isinstance(memory, np.ndarray) else getattr(memory, "obj", None)) is not None:
        memory = of
    return memory


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) or (isinstance(value, Tensor) and value.numel() < 2)


def _is_place_of_numbers(value: Any) -> bool:
    if isinstance(value, types.CellType):
        return _is_number(_held(value))
    return isinstance(value, CONTAINERS) and "__name__" not in value and any(map(_holds_number, _items(value)))


def _is_place_of_others(value: Any) -> bool:
    """Whether a container holds anything but code: a result in a list that is an item of it, too."""
    if not isinstance(value, CONTAINERS) or "__name__" in value:
        return False
    return any(not isinstance(item, _CODE) for item in _items(value))


def _holds_number(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, tuple) and any(map(_is_number, value)))


def _items(value: Any) -> list[Any]:
    try:
        items = islice(list(dict.values(value)) if isinstance(value, dict) else value, _MOST)
        return list(filter(readable, items))
    except RuntimeError:  # another thread is writing to it
        return []


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _stored(code: types.CodeType, keys: set[str] | None) -> set[str]:
    """Return those of some names (any, for None) that code may write to: as attributes, variables, or by a text."""
    found: set[str] = set()
    if code.co_name not in _BUILDING:
        if not _BY_TEXT.isdisjoint(code.co_names):
            found |= {item for item in code.co_consts if type(item) is str and (keys is None or item in keys)}
        if keys is None or not keys.isdisjoint(code.co_names):
            if code not in _STORES:  # which takes long to read
                stores = (step for step in dis.get_instructions(code) if step.opname in ("STORE_ATTR", "STORE_GLOBAL"))
                _STORES[code] = frozenset(step.argval for step in stores)
            found |= _STORES[code] if keys is None else _STORES[code] & keys
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _stored(item, keys)
    return found
