"""Places outside of a module, or in one that was run before, where a network may keep what it made of weights.

Unlike a tensor, a number (or a text of one) that a forward reads cannot be seen by torch. So the code that a network is
written in is asked which places it writes to outside of ``__init__``, and which containers and memory it can reach.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lmccheck.errors import LmcError
from lmccheck.modules.spots import Spot
from lmccheck.modules.walk import REGISTERED, Walk

_TRIALS = 48  # runs with places emptied, of a network with many settings that it cannot do without


@dataclass(frozen=True)
class Outside:
    """Places other than a module that its code reaches.

    ``places`` are those of numbers, memory and variables of the environment, and those of anything else that may be
    made of weights: a run can do without more of one kind than of another. ``contextual`` says that there are variables
    of a context, ``begun`` are generators that a run went into and that were there before.
    """

    places: tuple[list[Spot], list[Spot], list[Spot]]
    contextual: bool
    begun: list[types.GeneratorType[Any, Any, Any]]


def numbers_outside(module: nn.Module, executed: Collection[types.CodeType]) -> Outside:
    """Return the places of numbers that the code of a module's parts reaches, other than by the module.

    ``executed`` is the code that a run of it went through: of a library no other is looked at.
    """
    walk = Walk(module, executed)
    places = walk.written(walk.spots), walk.memory, walk.written(walk.others)
    return Outside(places, walk.contextual, walk.begun)


def numbers_within(module: nn.Module, executed: Collection[types.CodeType]) -> list[Spot]:
    """Return the places of numbers in the plain attributes of a module, and buffers of it that no checkpoint holds."""
    walk = Walk(module, executed)
    found: list[Spot] = []
    for part in module.modules():
        found += walk.attributes(part, vars(part))
        found += (Spot(part, name) for name in part._non_persistent_buffers_set if part._buffers.get(name) is not None)
        for key, value in vars(part).items():
            found += walk.reached(value) if key not in REGISTERED else ()
    return walk.written(found)


@contextmanager
def executed() -> Iterator[Collection[types.CodeType]]:
    """Collect the code that is gone through as long as the context lasts; what garbage goes through at its end, such
    as a generator of another network, is none of it."""
    codes: dict[int, types.CodeType] = {}  # by id: code of two files with the same text is equal
    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()

    def note(frame: types.FrameType, event: str, given: Any) -> None:
        if event == "call":
            codes[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        yield codes.values()
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile's, up to Python 3.11: an object that is set by itself, and is no function
            sys.setprofile(None)
            before.enable()
        if collecting:
            gc.enable()


def kept_in_context(run: Callable[[bool], list[Tensor]], near: Callable[..., bool]) -> bool:
    """Whether a run leaves in a variable of a context what the next run there, with other weights, reads."""

    def after_other() -> list[Tensor]:
        run(True)
        return run(False)

    with suppress(LmcError):  # a variable that is set before a run is no result of one
        return not near(Context().run(run, False), Context().run(after_other))
    return False


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
        with ExitStack() as stack, suppress(LmcError):  # which says that a constant is missed
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
            with suppress(LmcError):
                spot, first = outputs(k, number, False)
                if not near(first, outputs(k, number, True, False)[1]):
                    return spot
    return None
