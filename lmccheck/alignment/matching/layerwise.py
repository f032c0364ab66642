"""Layerwise matching by optimal transport: what is known of a group when it is its turn, and the transport itself.

The method ``transport`` and ``fuse`` walk alike (``in_turn``) and compare incoming weights in the same norm. They
differ in how a group is assigned, by a permutation or by a soft plan between different widths, and in that ``fuse``,
which can compare nothing across widths before it is placed, takes the groups it knows most of first and lets biases
wait for their layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from lmccheck.alignment.matching.assignment import Assignment, assign
from lmccheck.alignment.matching.reassign import nested_groups, nested_names
from lmccheck.alignment.matching.similarity import Counts
from lmccheck.errors import LmcError
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.slots import Piece, Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec


class IncomingWeights:
    """Which slots of a group hold weights that make its units, and can be compared once other groups are placed.

    ``tensors``: those that count. ``twofold``: those that both make and read units, whose rows count as incoming, too.
    ``layers``: whose biases, which alone say little, wait for their weights. ``loose``: groups whose order does not
    matter yet where heads, or groups inside units, are compared: for walks that do not begin at the outermost.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        tensors: Mapping[str, Tensor],
        layers: Sequence[Layer] = (),
        twofold: Set[str] = frozenset(),
        loose: Set[str] = frozenset(),
    ) -> None:
        self.spec, self.tensors, self.twofold, self.loose = spec, tensors, twofold, loose
        self.nested = nested_names(spec)
        self._weight_of = {
            name: (layer.weight, layer.out)
            for layer in layers
            if layer.weight in tensors
            for name in (layer.bias, *((layer.norm.weight, layer.norm.bias) if layer.norm else ()))
        }

    def __call__(self, slot: Slot) -> bool:
        """Whether a slot holds weights that make its units."""
        return slot.tensor in self.tensors and (slot.role == "producer" or slot.tensor in self.twofold)

    def comparable(self, slot: Slot, group: UnitGroup, placed: Set[str]) -> bool:
        """Whether it does, and all but the group itself is in A's coordinates once other groups are placed."""
        if not self(slot):
            return False
        tensor, unit_dim = self._weight_of.get(slot.tensor, (slot.tensor, slot.dim))
        layout = self.spec.layouts.get(tensor, {})
        if group.name in self.nested:  # those around its units, and inside them, are placed before or with it
            family = {group.name, *group.within, *(child.name for child in nested_groups(self.spec, group))}
            return _groups_in(layout, set(layout)) <= placed | family | self.loose
        beside = {part.group for at, part in enumerate(slot.piece.parts) if at != slot.at} - {None}
        return beside | _groups_in(layout, set(layout) - {unit_dim}) <= placed

    def evidence(self, group: UnitGroup, placed: Set[str]) -> int:
        """Return 2 where a matrix of incoming weights can be compared by now, 1 where a vector can, else 0."""
        return max((1 + (not slot.vector) for slot in group.slots if self.comparable(slot, group, placed)), default=0)

    def counts(self, group: UnitGroup, placed: Set[str]) -> Counts:
        """Return which slots enter a group's assignment: the comparable ones, or all incoming where there are none."""
        known = self.evidence(group, placed) > 0
        return lambda slot: self.comparable(slot, group, placed) if known else self(slot)


def _groups_in(layout: Mapping[int, Sequence[Piece]], dims: Set[int]) -> set[str | None]:
    """Return the groups that some dimensions of a tensor hold."""
    return {part.group for dim in dims for piece in layout[dim] for part in piece.parts} - {None}


def transport_plan(cost: Tensor) -> Tensor:
    """Return the optimal transport plan between equal masses, (n_A, n_B) float64 with total mass 1.

    ``cost``: (n_A, n_B), at least 0. Between equally many it is a permutation, divided by their number (Birkhoff).
    """
    import ot  # type: ignore[import-untyped]  # POT ships without types; it takes a second that few alignments need

    table = cost.double().cpu().numpy()
    if not np.isfinite(table).all():
        raise LmcError(
            "costs of transport hold NaN or infinite values: no plan is best; look at the tensors they are of"
        )
    rows, columns = table.shape
    plan = torch.from_numpy(
        ot.emd(np.full(rows, 1 / rows), np.full(columns, 1 / columns), table / max(table.max(), 1e-300), 10_000_000)
    )
    if rows == columns and not torch.equal((plan * rows).round().sum(0), torch.ones(columns, dtype=torch.float64)):
        plan = torch.zeros_like(plan)  # ties may be returned as a mixture of permutations
        plan[torch.arange(rows), assign(-cost).permutation] = 1 / rows
    return plan


def by_transport(similarity: Tensor) -> Assignment:
    """Return the permutation p that maximises Σ_u similarity[u, p[u]], as an optimal transport plan.

    Equivalent to ``assign``; differs in the algorithm, POT's network simplex.
    """
    table = similarity.double().cpu()
    order = transport_plan(table.max() - table).argmax(1)
    return Assignment(order, float(table.numpy()[np.arange(len(order)), order.numpy()].sum()), 0.0, "POT")
