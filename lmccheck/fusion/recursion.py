"""The layerwise recursion of soft transport: B's groups placed one after the other, by what makes their units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set

import torch
from torch import Tensor

from lmccheck.alignment.matching.activation_norm import ActivationNorm
from lmccheck.alignment.matching.layerwise import IncomingWeights, by_transport, transport_plan
from lmccheck.alignment.matching.norms import counted, float64, merged_norms
from lmccheck.alignment.matching.reassign import in_turn, nested_groups
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.fusion.carrier import Carrier
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec


class Recursion:
    """Places B's groups one after the other, by their incoming weights; fills the carrier and the costs.

    ``twofold``: tensors that both make and read units, whose rows count as incoming weights too.
    """

    def __init__(
        self,
        carrier: Carrier,
        derived: Traced,
        theta_a: Mapping[str, Tensor],
        theta_b: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        twofold: set[str],
    ) -> None:
        self.carrier = carrier
        self.placed: list[str] = []
        self.left: list[str] = []
        self.costs: dict[str, float] = {}
        self._norm = ActivationNorm.of(derived.layers, moments)
        self._a = _comparable(carrier.a, theta_a, derived.layers)
        self._b = _comparable(carrier.b, theta_b, derived.layers)
        self._incoming = IncomingWeights(carrier.a, self._a, derived.layers, twofold, carrier.nested)

    def run(self) -> None:
        """Place every group: in the network's order, those first whose incoming weights can be compared by now."""

        def known(group: UnitGroup, placed: Set[str]) -> float:
            """Where there is nothing, first those that may stay in the order they have."""
            return self._incoming.evidence(group, placed) or self._may_stay(group) - 1

        for group, placed in in_turn(self.carrier.a, known):
            if not self._incoming.evidence(group, placed):
                self._leave(group)
            elif group.name in self.carrier.nested:
                self._place_nested(group, placed)
            else:
                self._place(group, placed)

    def _may_stay(self, group: UnitGroup) -> bool:
        return group.size == self.carrier.b.by_name[group.name].size

    def _leave(self, group: UnitGroup) -> None:
        """Leave units in order that cannot be compared: recurrent ones, or two groups known only together."""
        if not self._may_stay(group):
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has no incoming weights that can be compared before other groups are "
                "placed which wait for it, expected a layer that reads inputs or earlier units; mend: fuse networks "
                "of one width there"
            )
        if group.name not in self.carrier.nested:
            self.carrier.place(group.name, torch.eye(group.size, dtype=torch.float64) / group.size)
        self.left.append(group.name)
        self.placed.append(group.name)

    def plain(self) -> list[str]:
        """Return the matrices that were compared in the plain norm."""
        incoming = {s.tensor for g in self.carrier.a.groups for s in g.slots if self._incoming(s)}
        return self._norm.plain({name: self._a[name] for name in incoming})

    def _place(self, group: UnitGroup, placed: Set[str]) -> None:
        """Place a plain group by its transport plan."""
        cost = self._cost(group, placed)
        self.carrier.place(group.name, transport_plan(cost))
        self.costs[group.name] = float((self.carrier.plan(group.name) * cost).sum())
        self.placed.append(group.name)

    def _place_nested(self, group: UnitGroup, placed: Set[str]) -> None:
        """Permute a group of heads, or inside units, and what is directly inside it."""
        carrier = self.carrier
        family = [group, *nested_groups(carrier.a, group)]
        slots = [slot for member in family for slot in member.slots if self._incoming.comparable(slot, member, placed)]
        tensors = {slot.tensor: carrier.carried(slot.tensor, self._b[slot.tensor]) for slot in slots}
        weighed = self._weighed({name: self._a[name] for name in tensors}, {slot.tensor: slot.dim for slot in slots})
        start = {**carrier.a.identity(), **{name: carrier.permutation[name] for name in carrier.nested}}
        state = WeightSimilarity(carrier.a, weighed, tensors, start)
        state.place(group, self._incoming, by_transport)
        carrier.permutation.update({name: state.permutation[name] for name in carrier.nested})
        self.placed += [other.name for other in carrier.a.groups if other in family and other.name not in self.placed]

    def _cost(self, group: UnitGroup, placed: Set[str]) -> Tensor:
        """Return the squared distance of A's and B's units, (n_A, n_B) float64, B's inputs in A's coordinates."""
        carrier = self.carrier
        twins = dict(_numbered(carrier.b.by_name[group.name]))
        pairs = [(s, twins[key]) for key, s in _numbered(group) if self._incoming.comparable(s, group, placed)]
        unit_dims = {slot.tensor: slot.dim for slot, _ in pairs}
        left = {name: self._a[name] for name in unit_dims}
        right = {
            name: carrier.carried(name, carrier.permuted(name, self._b[name]), but=dim)
            for name, dim in unit_dims.items()
        }
        left_weighed, right_weighed = self._weighed(left, unit_dims), self._weighed(right, unit_dims)
        total = torch.zeros(group.size, carrier.b.by_name[group.name].size, dtype=torch.float64)
        for slot_a, slot_b in pairs:
            name = slot_a.tensor
            x, x_weighed = (carrier.rows(name, v[name], slot_a, of_b=False) for v in (left, left_weighed))
            y, y_weighed = (carrier.rows(name, v[name], slot_b, of_b=True) for v in (right, right_weighed))
            total += (x * x_weighed).sum(1)[:, None] + (y * y_weighed).sum(1) - 2 * x_weighed @ y.T
        return total.clamp(min=0.0)

    def _weighed(self, tensors: Mapping[str, Tensor], unit_dims: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the tensors in the norm asked for: weighed by Σ where there are second moments, else as they are."""
        return self._norm.weigh(tensors, unit_dims) if self._norm.moments else dict(tensors)


def _numbered(group: UnitGroup) -> Iterator[tuple[tuple[str, int, int, int], Slot]]:
    """Yield a group's slots, each with its place and its number among those in that place: the same in both specs."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for slot in group.slots:
        place = slot.tensor, slot.dim, slot.at
        yield (*place, seen[place]), slot
        seen[place] += 1


def _comparable(spec: PermutationSpec, theta: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the tensors units are compared by, float64, every BatchNorm merged with its layer."""
    wide = float64(theta)
    return merged_norms(counted(spec, wide), wide, layers)
