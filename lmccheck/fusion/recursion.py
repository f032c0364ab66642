"""The layerwise recursion of soft transport: B's groups placed one after the other, by what makes their units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import ot  # type: ignore[import-untyped]  # POT ships without types
import torch
from torch import Tensor

from lmccheck.alignment.matching.assignment import assign
from lmccheck.alignment.matching.norms import counted, merged_norms
from lmccheck.alignment.matching.reassign import nested_groups, reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods.transport import by_transport
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.fusion.carrier import Carrier
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.slots import Piece, Slot, UnitGroup
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
        self.layers = derived.layers
        self.moments = moments
        self.twofold = twofold
        self.placed: list[str] = []
        self.left: list[str] = []
        self.costs: dict[str, float] = {}
        self._a = _comparable(carrier.a, theta_a, derived.layers)
        self._b = _comparable(carrier.b, theta_b, derived.layers)
        self._layer_of = {
            name: layer
            for layer in derived.layers
            for name in (layer.bias, *((layer.norm.weight, layer.norm.bias) if layer.norm else ()))
            if name is not None
        }

    def run(self) -> None:
        """Place every group: in the network's order, those first whose incoming weights can be compared by now."""
        pending = list(self.carrier.a.groups)
        while pending:
            # the first of the best; where there is none, first those that may stay in the order they have
            group = max(pending, key=lambda group: self._evidence(group) or 0.5 * self._may_stay(group))
            if not self._evidence(group):
                self._leave(group)
                pending.remove(group)
                continue
            names = self._place_nested(group) if group.name in self.carrier.nested else self._place(group)
            self.placed += [other.name for other in pending if other.name in names]
            pending = [other for other in pending if other.name not in names]

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
        weighed = {layer.weight for layer in self._weighed_layers()}
        incoming = {s.tensor for g in self.carrier.a.groups for s in g.slots if self._incoming(s)}
        return sorted(name for name in incoming & set(self._a) if self._a[name].ndim > 1 and name not in weighed)

    def _place(self, group: UnitGroup) -> set[str]:
        """Place a plain group by its transport plan."""
        cost = self._cost(group)
        plan = transport_plan(cost)
        self.carrier.place(group.name, plan)
        self.costs[group.name] = float((self.carrier.plan(group.name) * cost).sum())
        return {group.name}

    def _place_nested(self, group: UnitGroup) -> set[str]:
        """Permute a group of heads, or inside units, and what is directly inside it; return their names."""
        carrier = self.carrier
        family = [group, *nested_groups(carrier.a, group)]
        slots = [slot for member in family for slot in member.slots if self._comparable(slot, member)]
        tensors = {}
        for slot in slots:
            moved = self._b[slot.tensor]
            for dim in range(moved.ndim):
                moved = carrier.along(slot.tensor, moved, dim)
            tensors[slot.tensor] = moved
        weighed = self._weighed({name: self._a[name] for name in tensors}, {slot.tensor: slot.dim for slot in slots})
        start = {**carrier.a.identity(), **{name: carrier.permutation[name] for name in carrier.nested}}
        state = WeightSimilarity(carrier.a, weighed, tensors, start)
        step = reassign(
            carrier.a,
            group,
            state.permutation,
            state.units(group, self._incoming),
            state.blocks(group, self._incoming),
            by_transport,
        )
        carrier.permutation.update({name: step.permutation[name] for name in carrier.nested})
        return {member.name for member in family}

    def _cost(self, group: UnitGroup) -> Tensor:
        """Return the squared distance of A's and B's units, (n_A, n_B) float64, B's inputs in A's coordinates."""
        carrier = self.carrier
        twins = dict(_numbered(carrier.b.by_name[group.name]))
        pairs = [(slot, twins[key]) for key, slot in _numbered(group) if self._comparable(slot, group)]
        keep = {slot.tensor: slot.dim for slot, _ in pairs}
        left = {name: self._a[name] for name in keep}
        right = {}
        for name, kept in keep.items():
            value = carrier.permuted(name, self._b[name])
            for dim in range(value.ndim):
                value = value if dim == kept else carrier.along(name, value, dim)
            right[name] = value
        left_weighed, right_weighed = self._weighed(left, keep), self._weighed(right, keep)
        total = torch.zeros(group.size, carrier.b.by_name[group.name].size, dtype=torch.float64)
        for slot_a, slot_b in pairs:
            name = slot_a.tensor
            x, x_weighed = (carrier.rows(name, v[name], slot_a, of_b=False) for v in (left, left_weighed))
            y, y_weighed = (carrier.rows(name, v[name], slot_b, of_b=True) for v in (right, right_weighed))
            total += (x * x_weighed).sum(1)[:, None] + (y * y_weighed).sum(1) - 2 * x_weighed @ y.T
        return total.clamp(min=0.0)

    def _weighed(self, tensors: Mapping[str, Tensor], keep: Mapping[str, int]) -> dict[str, Tensor]:
        """Return W·Σ for the layers with second moments; else the mean over what a unit owns, if Σ is asked for."""
        result = dict(tensors)
        if not self.moments:
            return result
        for name, tensor in tensors.items():
            if tensor.ndim > 1:
                result[name] = tensor / max(1, prod(n for dim, n in enumerate(tensor.shape) if dim != keep[name]))
        for layer in self._weighed_layers():
            if layer.weight not in tensors:
                continue
            weight = tensors[layer.weight].movedim(layer.out, 0)
            shift = self._shift(layer)
            bias = tensors[shift] if shift in tensors else weight.new_zeros(len(weight))
            product = torch.cat([weight.flatten(1), bias[:, None]], 1) @ self.moments[layer.node]
            result[layer.weight] = product[:, :-1].reshape(weight.shape).movedim(0, layer.out)
            if shift in tensors:
                result[shift] = product[:, -1]
        return result

    def _weighed_layers(self) -> Iterator[Layer]:
        return (layer for layer in self.layers if layer.node in self.moments)

    def _shift(self, layer: Layer) -> str:
        """Return the name under which a layer's bias counts: its own, or that of the BatchNorm taken with it."""
        norm = layer.norm.bias if layer.norm is not None else None
        return norm if norm is not None and norm in self._a else layer.bias or ""

    def _incoming(self, slot: Slot) -> bool:
        return slot.role == "producer" or slot.tensor in self.twofold

    def _evidence(self, group: UnitGroup) -> int:
        """Return 2 where a matrix of incoming weights can be compared by now, 1 where a vector can, else 0."""
        return max((1 + (not slot.vector) for slot in group.slots if self._comparable(slot, group)), default=0)

    def _comparable(self, slot: Slot, group: UnitGroup) -> bool:
        """Whether a slot holds incoming weights of which all but the group itself is in A's coordinates by now."""
        if slot.tensor not in self._a or not self._incoming(slot):
            return False
        layer = self._layer_of.get(slot.tensor)  # a bias alone says little: it waits for its layer
        tensor, kept = (layer.weight, layer.out) if layer and layer.weight in self._a else (slot.tensor, slot.dim)
        layout = self.carrier.a.layouts.get(tensor, {})
        if group.name in self.carrier.nested:  # others of its kind are only out of order until they are placed
            return self._settled(layout, {*layout}, self.carrier.nested)
        beside = {part.group for at, part in enumerate(slot.piece.parts) if at != slot.at} - {None}
        return beside <= {*self.placed} and self._settled(layout, {*layout} - {kept}, set())

    def _settled(self, layout: Mapping[int, Sequence[Piece]], dims: set[int], free: set[str]) -> bool:
        """Whether every group in some dimensions of a tensor is placed, or ``free`` not to be."""
        groups = {part.group for dim in dims for piece in layout[dim] for part in piece.parts} - {None}
        return groups <= {*self.placed, *free}


def _numbered(group: UnitGroup) -> Iterator[tuple[tuple[str, int, int, int], Slot]]:
    """Yield a group's slots, each with its place and its number among those in that place: the same in both specs."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for slot in group.slots:
        place = slot.tensor, slot.dim, slot.at
        yield (*place, seen[place]), slot
        seen[place] += 1


def transport_plan(cost: Tensor) -> Tensor:
    """Return the optimal transport plan between equal masses, (n_A, n_B) float64 with total mass 1.

    ``cost``: (n_A, n_B), at least 0. Between equally many it is a permutation, divided by their number.
    """
    table = cost.double().cpu().numpy()
    rows, columns = table.shape
    plan = torch.from_numpy(
        ot.emd(np.full(rows, 1 / rows), np.full(columns, 1 / columns), table / max(table.max(), 1e-300), 10_000_000)
    )
    if rows == columns and not torch.equal((plan * rows).round().sum(0), torch.ones(columns, dtype=torch.float64)):
        plan = torch.zeros_like(plan)  # ties may be returned as a mixture of permutations
        plan[torch.arange(rows), assign(-cost).permutation] = 1 / rows
    return plan


def _comparable(spec: PermutationSpec, theta: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the tensors units are compared by, float64, every BatchNorm merged with its layer."""
    wide = {name: tensor.detach().double() for name, tensor in theta.items() if tensor.is_floating_point()}
    return merged_norms(counted(spec, wide), wide, layers)
