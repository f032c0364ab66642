"""What a rule is told of the cell it works on, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
ENCLOSURES: dict[str, Rule] = {}


@dataclass
class Cell:
    """One run of a network over a cell: ``work`` counts multiply-adds of its layers, ``plain`` those at one point.

    It is of ``samples`` samples by a graph that was traced on ``traced`` of them.
    """

    samples: int = 0
    traced: int = 0
    work: int = 0
    plain: int = 0

    def sized(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape whose first length is that of the traced samples as one of as many as there are."""
        first, *rest = shape
        return (self.samples if first == self.traced else first, *rest)

    def count(self, applications: int, multiplications: int) -> None:
        """Count a layer that was applied so many times."""
        self.work += applications * multiplications
        self.plain += multiplications


def encloses(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Register a rule for ``aten.<name>`` of every given name.

    A rule gets the Cell and the call's arguments as the schema has them: what depends on t as ``Enclosed``, all else
    as it is. It returns what the op makes of them, enclosed; ``NoEnclosure`` where it knows no bound.
    """

    def register(function: AnyRule) -> AnyRule:
        for name in names:
            key = name if "." in name else f"aten.{name}"
            if key in ENCLOSURES:
                raise AssertionError(f"two rules for {key}")
            ENCLOSURES[key] = function
        return function

    return register
