"""Memory that is free and that the process keeps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Return memory that is free to the system.

    glibc keeps tensors of up to 32 MB, which those of other sizes seldom fit into: several times a model is kept so.
    """
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError, OSError):  # another C library, or another system
        return lambda size: None
    return trim
