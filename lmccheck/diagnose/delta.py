"""Delta debugging: of many things that together break something, few that alone break it; no torch here.

Where more things never mend what fewer broke, galloping along an order finds each of k needed ones among n in about
2·log₂ n tests, less where the order puts them first (Junker 2004, QuickXplain). What is left is then made 1-minimal by
Zeller and Hildebrandt's ddmin (2002), whatever is true: without any one of it nothing breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class SpentError(Exception):
    """Nothing is left of a budget."""


@dataclass
class Budget:
    """How many evaluations may be made, and how many were."""

    most: int
    used: int = 0

    @property
    def left(self) -> int:
        """How many more may be made."""
        return self.most - self.used

    def spend(self) -> None:
        """Take one; raise SpentError where there is none."""
        if self.left <= 0:
            raise SpentError
        self.used += 1


@dataclass
class Search:
    """Some of ``items`` break something: ``breaks`` says of which, asked once of each choice, in the items' order.

    ``least``: the fewest that are known to break it; all of them to begin with, which is not asked.
    """

    items: Sequence[str]
    breaks: Callable[[tuple[str, ...]], bool]
    least: tuple[str, ...] = ()
    _known: dict[tuple[str, ...], bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.least = tuple(self.items)
        self._known[self.least] = True

    def __call__(self, some: Sequence[str]) -> bool:
        """Whether these break it."""
        chosen = set(some)
        key = tuple(item for item in self.items if item in chosen)
        if key not in self._known:
            self._known[key] = self.breaks(key)
        if self._known[key] and len(key) < len(self.least):
            self.least = key
        return self._known[key]


def minimal(items: Sequence[str], breaks: Callable[[tuple[str, ...]], bool]) -> tuple[tuple[str, ...], bool]:
    """Return few items that break something, in their order, and whether any one of them less does not.

    ``items``: all of them break it, in the order in which they are suspected. ``breaks`` may raise SpentError: the
    fewest that are known by then are returned, and False. That nothing at all does not break it is for the caller to
    know.

    >>> minimal("abcdefgh", lambda some: {"c", "g"} <= set(some))
    (('c', 'g'), True)
    """
    search = Search(items, breaks)
    try:
        few = ddmin(narrowed(items, search), search)
        return tuple(item for item in items if item in few), True
    except SpentError:
        return search.least, len(search.least) == 1


def narrowed(items: Sequence[str], breaks: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return few items that break something; the fewest, were more never to mend it."""
    found: list[str] = []
    rest = list(items)  # what is found breaks it, together with these
    while rest and not (found and breaks(found)):
        low, high = 0, len(rest)  # with the first `low` of the rest it holds, with the first `high` not
        while high - low > 1:
            middle = min(max(1, 2 * low), (low + high) // 2)  # galloping from the first, then by halves
            if breaks([*found, *rest[:middle]]):
                high = middle
            else:
                low = middle
        found.append(rest[high - 1])
        rest = rest[: high - 1]
    return found


def ddmin(items: Sequence[str], breaks: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return items that break something, none of which can be left out: a 1-minimal set.

    Zeller and Hildebrandt's ddmin, begun where each item is a part of its own: what remains then is to leave out one at
    a time, until nothing can be.
    """
    found = list(items)
    k = 0
    while k < len(found):
        less = [*found[:k], *found[k + 1 :]]
        if less and breaks(less):
            found, k = less, 0
        else:
            k += 1
    return found
