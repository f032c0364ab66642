"""One thing that two folders say differently, the names it may be accepted by, and values as a line can hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BRIEF = 60  # characters of a value


class Missing:
    """A value that is not there; null is one that is."""

    def __repr__(self) -> str:
        return "absent"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """``what`` of ``file`` is ``values[0]`` in one folder and ``values[1]`` in the other.

    ``names`` are those it may be accepted by, the one to propose first; a ``note`` is said, and is no error.
    """

    file: str
    what: str
    values: tuple[str, str]
    names: tuple[str, ...]
    note: bool = False
    more: str = ""  # how much else differs in the same way

    def line(self, one: str, other: str) -> str:
        """Say it of two folders by their names."""
        said = self.said(one, other)
        return said if self.note else f'{said}; mend: make them equal, or accept = ["{_cut(self.names[0])}"]'

    def said(self, one: str, other: str) -> str:
        """Say it of two folders by their names, with no mend."""
        return f"{self.file}: {_cut(self.what)} is {self.values[0]} in {one} and {self.values[1]} in {other}{self.more}"


def _cut(name: str) -> str:
    return name if len(name) <= BRIEF else f"{name[:BRIEF]} …"


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON files are the same, where 1 is 1.0, true is not 1, and NaN is NaN.

    >>> same([1e-5, {"a": float("nan")}], [0.00001, {"a": float("nan")}]), same(1, True)
    (True, False)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other) or (one != one and other != other)


def leaves(one: Any, other: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (place, value, other value) of each part in which two values differ; MISSING where there is none.

    >>> list(leaves({"size": [2, 3]}, {"size": [2, 4], "more": 1}, "image"))
    [('image.size[1]', 3, 4), ('image.more', absent, 1)]
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from leaves(one.get(key, MISSING), other.get(key, MISSING), f"{where}.{key}" if where else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from leaves(mine, theirs, f"{where}[{place}]")
    elif not same(one, other):
        yield where, one, other


def first_leaf(one: Any, other: Any, where: str) -> tuple[str, Any, Any, str]:
    """Return the first part in which two different values differ, and how many more there are, in words."""
    found = leaves(one, other, where)
    place, mine, theirs = next(found, (where, one, other))
    more = sum(1 for _ in found)
    return place, mine, theirs, f" ({more} more of its parts differ)" if more else ""


def brief(value: Any) -> str:
    """Return a value as JSON has it, cut where it is long.

    >>> brief(1e6), brief("the"), brief(None), brief([0.5] * 40)
    ('1000000.0', '"the"', 'null', '[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, …')
    """
    if isinstance(value, Missing):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer of too many digits to print
        return "…"
    return text if len(text) <= BRIEF + 2 else f"{text[:BRIEF]} …"
