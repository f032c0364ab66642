"""How objects show themselves: one line each, without the numbers they hold, in every printer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)
LONGEST = 300  # characters


def one_line(describe: Callable[[Any], str]) -> Callable[[Class], Class]:
    """Return a decorator of classes: ``repr`` is the class's name with what ``describe`` says, at most 300 characters.

    Printers that look into dataclasses by themselves (Hypothesis, IPython) show the same.

    >>> @one_line(lambda pair: f"{pair.name!r}, two models")
    ... class Pair:
    ...     name = "a-b"
    >>> Pair()
    Pair('a-b', two models)
    """

    def decorate(cls: Class) -> Class:
        def shown(self: Any) -> str:
            text = f"{type(self).__name__}({' '.join(describe(self).split())})"
            return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}…)"

        def pretty(self: Any, printer: Any, cycle: bool) -> None:
            printer.text(shown(self))

        cls.__repr__ = shown  # type: ignore[assignment]  # a method of a class that is only known here
        cls._repr_pretty_ = pretty  # type: ignore[attr-defined]  # which pretty printers look for
        return cls

    return decorate


def some(names: Iterable[object], most: int = 4) -> str:
    """Return the first names, and how many more there are.

    >>> some(["a", "b", "c"], 2), some([])
    ('a, b and 1 more', '')
    """
    held = [str(name) for name in names]
    more = f" and {len(held) - most} more" if len(held) > most else ""
    return ", ".join(held[:most]) + more


def rounded_up(value: float, digits: int = 4) -> str:
    """Return a number with so many digits, never below it.

    >>> rounded_up(0.0474444), rounded_up(0.05), rounded_up(1e-13)
    ('0.04745', '0.05', '1e-13')
    """
    if not value > 0:
        return f"{max(value, 0.0):.{digits}g}"
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return next(said for k in (0, 1, 2) if float(said := f"{value + k * step:.{digits}g}") >= value)
