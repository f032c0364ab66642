"""What is seen of units where layers read them: second moments on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lmccheck.evaluate.layer_data import Key, LayerData
from lmccheck.evaluate.regression import Moments
from lmccheck.modules.memory import give_back
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.structure import State, Structure

HELD = 1 << 27  # numbers that moments may have together: 1 GB


class SeenUnits:
    """Second moments of the units of a group where layers of a weight read them: ``xx``, (units, units).

    They are taken when they are asked for, with those of the groups before, of as many as are not too large together,
    and let go for those of others: who asks for all of them goes from the output to the input. ``readers``: the layers
    of every weight that is known by what they read; units of the others are taken for alike.
    """

    def __init__(
        self, structure: Structure, theta: State, data: LayerData, readers: Mapping[str, Sequence[Layer]]
    ) -> None:
        self._structure, self._theta, self._data = structure, theta, data
        self._read = {
            (name, block.group): (several, block.positions)
            for name, several in readers.items()
            for block in structure.columns[name]
        }
        self._held: dict[Key, Moments] = {}

    def __call__(self, weight: str, group: str) -> Moments:
        """Return the moments of a group's units where layers of ``weight`` read them."""
        size = self._structure.sizes[group]
        if (weight, group) not in self._read:
            alike = Moments()
            alike.count, alike.xx, alike.x = 1, torch.eye(size, dtype=torch.float64), alike.x.new_zeros(size)
            return alike
        if (weight, group) not in self._held:
            self.let_go()
            several = self._together(group)
            self._held = self._data.second_moments(self._data.graph.stored(self._theta), several)
        return self._held[weight, group]

    def let_go(self) -> None:
        """Hold nothing until something is asked for again."""
        self._held.clear()
        give_back()

    def _together(self, group: str) -> dict[Key, tuple[Sequence[Layer], torch.Tensor]]:
        """Return what is read of a group and of those before it, of the last ones first where these are too many."""
        found: dict[Key, tuple[Sequence[Layer], torch.Tensor]] = {}
        groups = self._structure.groups
        at = groups.index(group)
        numbers = 0
        for other in (*reversed(groups[: at + 1]), *reversed(groups[at + 1 :])):
            of = {key: read for key, read in self._read.items() if key[1] == other}
            numbers += len(of) * self._structure.sizes[other] ** 2
            if found and numbers > HELD:
                break
            found |= of
        return found
