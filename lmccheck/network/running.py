"""What surrounds all that is measured: torch's own settings, and the modules of the folder a network comes from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from lmccheck.data.imports import running_in
from lmccheck.modules.precision import own_settings

P = ParamSpec("P")
Made = TypeVar("Made")


@contextmanager
def running(measured: Any) -> Iterator[None]:
    """Run what is loaded, a pair, say, with settings and modules of its own; see ``own_settings``, ``running_in``."""
    homes = [network.home for network in getattr(measured, "networks", ()) if network.home is not None]
    with own_settings(), running_in(homes[0] if homes else None):  # of two widths both are of one folder
        yield


def at_home(function: Callable[P, Made]) -> Callable[P, Made]:
    """Let a function of something loaded, its first argument, compute in ``running`` of that."""
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> Made:
        with running(given[0] if given else named.get(first)):
            return function(*given, **named)

    return call
