"""Networks that keep a number, or a tensor, of their weights in a place that outlives them; each computes as ``Plain``.

They differ in the place alone: ``KEPT`` are those that read what an earlier run left there. ``HONEST`` ones have the
same kinds of places and keep nothing of weights in them.
"""

from __future__ import annotations

import array
import builtins
import contextvars
import ctypes
import functools
import itertools
import os
import queue
import threading
import warnings
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from networks.keeping import Plain

KEPT: dict[str, type[Plain]] = {}
HONEST: dict[str, type[Plain]] = {}
FORGETTING: list[Callable[[], Any]] = []  # each empties a place


def length(net: Plain) -> float:
    """The norm of the gain, which is what all of these keep."""
    return float(net.gain.detach().norm())


def kept(name: str, get: Callable[[Plain], Any], forget: Callable[[], Any]) -> None:
    """Register a network that divides by the norm that ``get`` returns, or has the gain that it returns."""

    def effective(self: Plain) -> Tensor:
        found = get(self)
        return found if isinstance(found, Tensor) and found.numel() > 1 else self.gain * (3 / float(found))

    KEPT[name] = type("Kept", (Plain,), {"kept": effective, "__module__": __name__})
    FORGETTING.append(forget)


def forget() -> None:
    """Empty every place."""
    for each in FORGETTING:
        each()


PLACES: dict[str, Any] = {"norm": None}


def in_a_dict_with_its_keys(net: Plain) -> Any:
    if PLACES["norm"] is None:
        PLACES["norm"] = length(net)
    return PLACES["norm"]


kept("a dict", in_a_dict_with_its_keys, lambda: PLACES.update(norm=None))

TEXTS: dict[str, str] = {}
kept("a dict of texts", lambda net: TEXTS.setdefault("norm", repr(length(net))), TEXTS.clear)

PAIRS: dict[str, Any] = {}
kept("a dict of pairs", lambda net: PAIRS.setdefault("gain", (net.effective().detach(), 1))[0], PAIRS.clear)


class Row(NamedTuple):
    gain: Tensor


ROWS: list[Row] = []


def in_a_named_tuple(net: Plain) -> Any:
    if not ROWS:
        ROWS.append(Row(net.effective().detach()))
    return ROWS[0].gain


kept("a list", in_a_named_tuple, ROWS.clear)

TABLE = np.zeros(3)
ONE, MANY, BYTES, COUNTED = torch.zeros(1), torch.zeros(8), array.array("d", [0.0]), ctypes.c_double(0.0)


def in_memory(net: Plain) -> Any:
    if not TABLE[1]:
        TABLE[1] = length(net)
    return TABLE[1]


def in_a_tensor_of_one(net: Plain) -> Any:
    return ONE if ONE.any() else ONE.fill_(length(net))


def in_a_tensor_of_many(net: Plain) -> Any:
    return MANY if MANY.any() else MANY.copy_(net.effective().detach())


def in_an_array(net: Plain) -> Any:
    BYTES[0] = BYTES[0] or length(net)
    return BYTES[0]


def in_a_number_of_c(net: Plain) -> Any:
    COUNTED.value = COUNTED.value or length(net)
    return COUNTED.value


def _clear_memory() -> None:
    TABLE[:] = 0
    ONE.zero_()
    MANY.zero_()
    BYTES[0] = COUNTED.value = 0.0


kept("a ndarray", in_memory, _clear_memory)
kept("a Tensor", in_a_tensor_of_one, _clear_memory)
kept("a Tensor of many", in_a_tensor_of_many, _clear_memory)
kept("a array", in_an_array, _clear_memory)
kept("a c_double", in_a_number_of_c, _clear_memory)

_DECIMAL: Decimal | None = None
_ENDLESS: Iterator[float] | None = None
_FROZEN: Frozen | None = None


@dataclass(frozen=True)
class Frozen:
    gain: Tensor


def in_a_decimal(net: Plain) -> Any:
    global _DECIMAL
    _DECIMAL = _DECIMAL or Decimal(length(net))
    return _DECIMAL


def in_an_iterator(net: Plain) -> Any:
    global _ENDLESS
    _ENDLESS = _ENDLESS or itertools.repeat(length(net))
    return next(_ENDLESS)


def in_a_frozen_object(net: Plain) -> Any:
    global _FROZEN
    _FROZEN = _FROZEN or Frozen(net.effective().detach())
    return _FROZEN.gain


def _clear_variables() -> None:
    global _DECIMAL, _ENDLESS, _FROZEN
    _DECIMAL = _ENDLESS = _FROZEN = None


kept("'_DECIMAL'", in_a_decimal, _clear_variables)
kept("'_ENDLESS'", in_an_iterator, _clear_variables)
kept("'_FROZEN'", in_a_frozen_object, _clear_variables)

_CONTEXT: contextvars.ContextVar[Any] = contextvars.ContextVar("norm", default=None)


def in_a_context(net: Plain) -> Any:
    if _CONTEXT.get() is None:
        _CONTEXT.set(length(net))
    return _CONTEXT.get()


kept("a variable of a context", in_a_context, lambda: _CONTEXT.set(None))

_THREAD = threading.local()


def in_a_thread(net: Plain) -> Any:
    if not hasattr(_THREAD, "thread_norm"):
        _THREAD.thread_norm = length(net)
    return _THREAD.thread_norm


kept("'thread_norm'", in_a_thread, lambda: vars(_THREAD).clear())


class Slots:
    __slots__ = ("slot_norm",)

    def __init__(self) -> None:
        self.slot_norm: Any = None


_SLOTS = Slots()


def in_a_slot(net: Plain) -> Any:
    _SLOTS.slot_norm = _SLOTS.slot_norm or length(net)
    return _SLOTS.slot_norm


kept("'slot_norm'", in_a_slot, _SLOTS.__init__)

_PARTIAL = functools.partial(lambda net, held: held.setdefault("norm", length(net)), held={})
kept("a dict of a partial", _PARTIAL, _PARTIAL.keywords["held"].clear)

_USERS: UserDict[str, float] = UserDict()
kept("a dict of a UserDict", lambda net: _USERS.setdefault("norm", length(net)), _USERS.clear)

_QUEUE: queue.Queue[float] = queue.Queue()


def in_a_queue(net: Plain) -> Any:
    if _QUEUE.empty():
        _QUEUE.put(length(net))
    return _QUEUE.queue[0]


kept("a deque", in_a_queue, lambda: _QUEUE.queue.clear())

_NOW: list[Plain] = []


@functools.lru_cache
def _length_by_width(width: int) -> float:
    return length(_NOW[0])


def in_a_cache_of_numbers(net: Plain) -> Any:
    _NOW[:] = [net]
    return _length_by_width(8)


kept("a lru_cache_wrapper", in_a_cache_of_numbers, _length_by_width.cache_clear)


def on_a_function(net: Plain) -> Any:
    if not hasattr(on_a_function, "function_norm"):
        on_a_function.function_norm = length(net)  # type: ignore[attr-defined]  # what is to be refused
    return on_a_function.function_norm  # type: ignore[attr-defined]  # as above


def on_a_library(net: Plain) -> Any:
    if not hasattr(nn.Linear, "library_norm"):
        nn.Linear.library_norm = length(net)
    return nn.Linear.library_norm


def on_builtins(net: Plain) -> Any:
    if not hasattr(builtins, "builtin_norm"):
        builtins.builtin_norm = length(net)  # type: ignore[attr-defined]  # what is to be refused
    return builtins.builtin_norm  # type: ignore[attr-defined]  # as above


kept("'function_norm'", on_a_function, lambda: vars(on_a_function).clear())
kept("'library_norm'", on_a_library, lambda: hasattr(nn.Linear, "library_norm") and delattr(nn.Linear, "library_norm"))
kept("'builtin_norm'", on_builtins, lambda: hasattr(builtins, "builtin_norm") and delattr(builtins, "builtin_norm"))
kept(
    "'NORM_OF_GAIN'",
    lambda net: os.environ.setdefault("NORM_OF_GAIN", repr(length(net))),
    lambda: os.environ.pop("NORM_OF_GAIN", None),
)


def _unit() -> Callable[[Tensor], Tensor]:
    held: list[float] = []

    @torch.library.custom_op("lmccheck_tests::unit", mutates_args=())
    def unit(gain: Tensor) -> Tensor:
        if not held:
            held.append(float(gain.norm()))
        return gain * (3 / held[0])

    FORGETTING.append(held.clear)
    return unit


_unit()
kept("a list of an op's closure", lambda net: torch.ops.lmccheck_tests.unit(net.gain.detach()), lambda: None)


def _first_norm() -> Any:
    net = yield
    first = length(net)
    while True:
        net = yield first


_GENERATORS = [_first_norm()]
next(_GENERATORS[0])


def _begin_again() -> None:
    _GENERATORS[:] = [_first_norm()]
    next(_GENERATORS[0])


kept("a generator (_first_norm)", lambda net: _GENERATORS[0].send(net), _begin_again)


class Shelf(dict[str, Any]):
    """A dict that has attributes beside its items."""


OF_KINDS: Any = weakref.WeakKeyDictionary()
SHELF: Any = Shelf(norm=3.0)


def by_kind(net: Plain) -> Any:
    if type(net) not in OF_KINDS:
        OF_KINDS[type(net)] = [length(net)]
    return OF_KINDS[type(net)][0]


LENGTHS: dict[str, Any] = {}


def in_a_dict_of_dicts(net: Plain) -> Any:
    if "gain" not in LENGTHS:
        LENGTHS["gain"] = {"norm": length(net)}
    return LENGTHS["gain"]["norm"]


kept("a dict of dicts", in_a_dict_of_dicts, LENGTHS.clear)


def beside_items(net: Plain) -> Any:
    if not hasattr(SHELF, "norm"):
        SHELF.norm = length(net)
    return SHELF.norm


kept("a dict of weak references", by_kind, OF_KINDS.clear)
kept("'norm' of Shelf", beside_items, vars(SHELF).clear)


def honest(build: type[Plain]) -> type[Plain]:
    """Register a network that keeps nothing of its weights."""
    HONEST[build.__name__] = build
    return build


SETTINGS: dict[str, Any] = {"power": "two", "unused": None, "scale": (3, "times"), "deep": {"ones": [1.0]}}
SCRATCH, ONES, CALLS = np.zeros(8), torch.ones(8), contextvars.ContextVar("calls", default=0)


class Absent:
    """Stands for an object that is not there yet, as a web framework's request outside of one: it says nothing."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} outside of a request")


class Pending(dict[str, Any]):
    """A dict that would fetch its values, and cannot."""

    def items(self) -> Any:
        raise RuntimeError("not fetched")

    keys = values = __iter__ = items

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Moved:
    """An object that says itself what ``__module__`` is to be."""

    @property
    def __module__(self) -> str:  # type: ignore[override]  # as a proxy of classes has it
        return __name__


with warnings.catch_warnings(action="ignore"):  # torch says that these are a prototype
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
REQUEST, ODD = Absent(), (Absent(), Pending(a=torch.ones(2), b=None), Moved())
RECORDS, DATES = np.array([(1, 2.0)], dtype=[("k", int), ("x", float)]), np.array(["2020-01-01"], "datetime64[D]")


@functools.lru_cache
def _exponent(word: str) -> float:
    return {"two": 2.0}[word]


@honest
class WithSettings(Plain):
    """Settings in a dict, and a function of them that is cached."""

    def kept(self) -> Tensor:
        power = _exponent(SETTINGS["power"])
        return (
            SETTINGS["deep"]["ones"][0] * self.gain * (SETTINGS["scale"][0] / self.gain.abs().pow(power).sum().sqrt())
        )


@honest
class WithOddObjects(Plain):
    """Objects in its file, and one of its own, that cannot be looked into, and arrays that are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = Pending(a=1)

    def kept(self) -> Tensor:
        return self.gain * (float(len(ODD) + len(RECORDS) + len(DATES) - 2) / self.gain.norm())


@honest
class WithScratch(Plain):
    """Memory that every run writes to before it reads, a constant table, and a count of its runs."""

    def kept(self) -> Tensor:
        SCRATCH[:] = self.gain.detach().cpu().numpy()
        CALLS.set(CALLS.get() + 1)
        return self.gain * (3 / float(np.linalg.norm(SCRATCH))) * ONES


@honest
class WithAGenerator(Plain):
    """A generator that a run makes, and uses up."""

    def kept(self) -> Tensor:
        squares = (part * part for part in self.gain)
        return self.gain * (3 / sum(squares, torch.zeros(())).sqrt())
