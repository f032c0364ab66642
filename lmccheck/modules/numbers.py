"""Places outside of a module, or in one that was run before, where a network may keep numbers it made of weights.

Unlike a tensor, a number that a forward reads cannot be seen by torch. So the code that a network is written in is
asked which places it writes to outside of ``__init__``, and which containers of numbers it can reach.
"""

from __future__ import annotations

import dis
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from lmccheck.errors import SourceError
from lmccheck.modules.held import function_parts
from lmccheck.modules.spots import CONTAINERS, Spot

_NUMBERS = (int, float, complex, np.generic, np.ndarray)
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "scipy", "lmccheck", "pytest", "_pytest", "pluggy"}
_BY_TEXT = {"setattr", "__setattr__", "__dict__", "vars", "register_buffer", "globals"}
_BUILDING = ("__init__", "__new__", "__post_init__")
_MOST = 5000  # objects that are looked at
_TRIALS = 48  # runs with places emptied, of a network with many settings that it cannot do without
_REGISTERED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_WRAPPERS = (staticmethod, classmethod)


def numbers_outside(module: nn.Module, executed: Collection[types.CodeType]) -> list[Spot]:
    """Return the places of numbers that the code of a module's parts reaches, other than by the module.

    ``executed`` is the code that a run of it went through: of a library no other is looked at.
    """
    walk = _Walk(module, executed)
    return walk.written(walk.spots)


def numbers_within(module: nn.Module, executed: Collection[types.CodeType]) -> list[Spot]:
    """Return the places of numbers in the plain attributes of a module, and buffers of it that no checkpoint holds."""
    walk = _Walk(module, executed)
    found: list[Spot] = []
    for part in module.modules():
        found += walk.attributes(part, vars(part))
        found += (Spot(part, name) for name in part._non_persistent_buffers_set if part._buffers.get(name) is not None)
        for key, value in vars(part).items():
            found += walk.reached(value) if key not in _REGISTERED else ()
    return walk.written(found)


@contextmanager
def executed() -> Iterator[set[types.CodeType]]:
    """Collect the code that is gone through as long as the context lasts."""
    codes: set[types.CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, given: codes.add(frame.f_code) if event == "call" else None)
    try:
        yield codes
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile's, up to Python 3.11: an object that is set by itself, and is no function
            sys.setprofile(None)
            before.enable()


def kept_number(
    places: Callable[[], list[Spot]], run: Callable[[bool], list[Tensor]], near: Callable[..., bool]
) -> Spot | None:
    """Return a place where a run leaves what the next run, with other weights, reads; None where there is none.

    ``places`` returns the same places before every trial, of another copy of the network where they are in it;
    ``run(other)`` gives the outputs with the weights in question, or with other ones. Places are emptied together, in
    halves where a run misses one of them, so that few runs are made where nothing is kept.
    """
    trials = iter(range(_TRIALS))

    def written(which: Sequence[int], number: int) -> list[int]:
        if next(trials, None) is None:
            return []
        chosen = [spot for spot in places() if number < len(spot.stand_ins())]
        stand_ins = [chosen[k].stand_ins()[number] for k in which]
        with ExitStack() as stack, suppress(SourceError):  # which says that a constant is missed
            for k, stand_in in zip(which, stand_ins, strict=True):
                stack.enter_context(chosen[k].without(stand_in))
            run(False)
            return [k for k, stand_in in zip(which, stand_ins, strict=True) if chosen[k].written(stand_in)]
        half = len(which) // 2
        return [*written(which[:half], number), *written(which[half:], number)] if half else []

    def outputs(k: int, number: int, *runs: bool) -> tuple[Spot, list[Tensor]]:
        spot = [spot for spot in places() if number < len(spot.stand_ins())][k]
        with spot.without(spot.stand_ins()[number]):
            return spot, [run(other) for other in runs][-1]

    for number in range(3):
        count = sum(number < len(place.stand_ins()) for place in places())
        for k in written(range(count), number) if count else ():
            with suppress(SourceError):
                spot, first = outputs(k, number, False)
                if not near(first, outputs(k, number, True, False)[1]):
                    return spot
    return None


class _Walk:
    """What the files and classes that a module is written in hold, and the code in them."""

    def __init__(self, module: nn.Module, executed: Collection[types.CodeType]) -> None:
        self._codes = dict.fromkeys(executed)
        self._seen: dict[int, Any] = {id(part): part for part in module.modules()}
        kinds = {kind for part in module.modules() for kind in type(part).__mro__}
        self._files = {kind.__module__ for kind in kinds}
        self.spots: list[Spot] = []
        for kind in kinds:
            if _top(kind.__module__) not in _LIBRARIES:
                self.spots += self.reached(kind)
                file = sys.modules.get(kind.__module__)
                self.spots += self.reached(file) if file is not None else ()

    def reached(self, value: Any) -> list[Spot]:
        """Return the places of numbers that are reached from a value, each once in the life of the walk."""
        found: list[Spot] = []
        waiting = deque([value])
        while waiting and len(self._seen) < _MOST:
            value = waiting.popleft()
            if id(value) in self._seen or isinstance(value, (Tensor, str, bytes, type(None), *_NUMBERS)):
                continue
            self._seen[id(value)] = value  # kept: a number that was given away again would hide another object
            if _is_place_of_numbers(value):
                found.append(Spot(value))
            elif isinstance(value, types.ModuleType) and self._is_own(value.__name__):
                found += self.attributes(vars(value), vars(value))
            elif self._is_own_object(value):
                found += self.attributes(value, vars(value))
            waiting += self._parts(value)
        return found

    def attributes(self, holder: Any, named: Any) -> list[Spot]:
        """Return those attributes of an object, or variables of a file, that are numbers."""
        return [Spot(holder, key) for key, value in list(named.items()) if key != "training" and _is_number(value)]

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
                if _is_users(value.__module__ or ""):
                    self._codes[value.__code__] = None
                    yield sys.modules.get(value.__module__)
                yield from value.__closure__ or ()
                yield from (item for _, item in function_parts(value))
                yield from vars(value).values()
        elif isinstance(value, types.ModuleType):
            named = list(vars(value).items()) if self._is_own(value.__name__) else []
            yield from (item for key, item in named if not key.startswith("__"))
        elif self._is_own_object(value):
            yield type(value)
            yield from list(vars(value).values())

    def _is_own_object(self, value: Any) -> bool:
        if isinstance(value, type):
            return self._is_own(value.__module__)
        fields = hasattr(value, "__dict__") and not isinstance(value, (types.FunctionType, types.ModuleType))
        return fields and (type(value) is types.SimpleNamespace or self._is_own(type(value).__module__))

    def _is_own(self, name: str) -> bool:
        """Whether a file is the user's, or one of a library that a part of the network is written in."""
        return _is_users(name) or (name in self._files and _top(name) not in _LIBRARIES)


def _is_users(name: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return _top(name) not in _LIBRARIES and "site-packages" not in file and "dist-packages" not in file


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) or (isinstance(value, Tensor) and value.numel() < 2)


def _is_place_of_numbers(value: Any) -> bool:
    if isinstance(value, types.CellType):
        return _is_number(_held(value))
    return isinstance(value, CONTAINERS) and "__name__" not in value and any(map(_holds_number, _items(value)))


def _holds_number(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, tuple) and any(map(_is_number, value)))


def _items(value: Any) -> list[Any]:
    try:
        return list(islice(dict.values(value) if isinstance(value, dict) else value, _MOST))  # as it is, if it is lazy
    except RuntimeError:  # another thread is writing to it
        return []


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _stored(code: types.CodeType, keys: set[str]) -> set[str]:
    """Return those of some names that code may write to: as attributes, variables, or by a text that has them."""
    found: set[str] = set()
    if code.co_name not in _BUILDING:
        if not _BY_TEXT.isdisjoint(code.co_names):
            found |= {item for item in code.co_consts if type(item) is str and item in keys}
        if not keys.isdisjoint(code.co_names):
            stores = (step for step in dis.get_instructions(code) if step.opname in ("STORE_ATTR", "STORE_GLOBAL"))
            found |= {step.argval for step in stores if step.argval in keys}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _stored(item, keys)
    return found
