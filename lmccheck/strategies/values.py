"""What strategies draw, beside plain numbers and dictionaries: small values whose repr is one line of code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Drawn:
    """A value that shows itself as the code that makes it, also to printers that look into dataclasses."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class PermutedUnits(Drawn):
    """A member of the permutation group of a network: a random one (``seed``; 0: the identity), then ``swaps``.

    A swap is (group, i, j), or (group, copy, i, j) where a group has several copies of its units, one for each unit
    of the groups that contain it.
    """

    swaps: tuple[tuple[Any, ...], ...] = ()
    seed: int = 0

    def __repr__(self) -> str:
        return f"PermutedUnits({self.swaps!r}{f', seed={self.seed}' if self.seed else ''})"


@dataclass(frozen=True, repr=False)
class DroppedUnits(Drawn):
    """Hidden units that are dropped, by their unit group; of n units, k of them dropped, the others weigh n/(n−k)."""

    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"DroppedUnits({dict(self.units)!r})"

    def __hash__(self) -> int:
        return hash(tuple(self.units.items()))


@dataclass(frozen=True, repr=False)
class Rows(Drawn):
    """Rows of the evaluation data, by their place."""

    rows: tuple[int, ...] = (0,)

    def __repr__(self) -> str:
        return f"Rows({self.rows!r})"


@dataclass(frozen=True, repr=False)
class WeightNoise(Drawn):
    """Gaussian noise in every parameter w: size·‖w‖·z/‖z‖ with z standard normal, known by ``seed``."""

    size: float = 0.0
    seed: int = 0

    def __repr__(self) -> str:
        return f"WeightNoise({self.size!r}, seed={self.seed})"
