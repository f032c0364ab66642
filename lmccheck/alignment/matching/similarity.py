"""How alike the units of two networks are by their weights, while θ_B moves from one permutation to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmccheck.alignment.matching.reassign import Solver, Step, by_assignment, nested_groups, nested_names, reassign
from lmccheck.symmetry.slots import Piece, Slot, UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

Counts = Callable[[Slot], bool]
_CHUNK = 1 << 22  # numbers multiplied at a time where a product is accumulated in float64
_KEPT = 1 << 25  # numbers of similarities kept for groups whose neighbours have not moved since


class WeightSimilarity:
    """⟨unit u of A, unit v of θ_B as it now lies⟩ for any group, with θ_B under a permutation that can be changed.

    ``a`` and ``b`` hold the tensors that count, once each; others have no say. Products are taken in float64 where
    the weights are, else in ``least``. A similarity is computed anew only where another group of its tensors has moved,
    and a permuted tensor is kept only while all of them together stay below the size of θ_B and the ``keep`` limit.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        permutation: Permutation,
        *,
        keep: int = 1 << 26,
        least: torch.dtype = torch.float32,
    ) -> None:
        self.spec, self.a, self.b = spec, a, b
        self._least = least
        self.permutation = permutation
        self._keep = sum(tensor.numel() for tensor in b.values()) <= keep
        self._current: dict[str, Tensor] = {}
        self._kept: dict[tuple[str, int], Tensor] = {}
        self.touched = {
            group.name: {
                slot.tensor
                for other in spec.groups
                if other is group or group.name in other.within
                for slot in other.slots
                if slot.tensor in a
            }
            for group in spec.groups
        }
        self._twice = {group.name: self._self_coupled(group) for group in spec.groups}

    def aim(self, a: Mapping[str, Tensor]) -> None:
        """Compare θ_B with other weights from now on."""
        self.a = a
        self._kept.clear()

    def rebase(self, b: Mapping[str, Tensor]) -> None:
        """Take other weights for θ_B from now on, under the same permutation."""
        self.b = {name: tensor.detach() for name, tensor in b.items()}
        self._current.clear()
        self._kept.clear()

    def current(self, name: str) -> Tensor:
        """Return one tensor of θ_B as it now lies."""
        if name in self._current:
            return self._current[name]
        if not self._keep:  # one copy of the tensor, permuted in place
            moved = self.b[name].clone()
            self.spec.move_(name, moved, self.permutation)
            return moved
        self._current[name] = self.spec.moved(name, self.b[name], self.permutation)
        return self._current[name]

    def units(self, group: UnitGroup, counts: Counts | None = None) -> Tensor:
        """Return the similarity of the units of a group, (copies, size, size); groups inside them are left out."""
        taken = {place for child in nested_groups(self.spec, group) for slot in child.slots for place in _places(slot)}
        total: Tensor | None = None
        for k, slot in enumerate(group.slots):
            if slot.tensor not in self.a or (slot.tensor, slot.dim, slot.piece) in taken:
                continue
            if counts is None or counts(slot):
                total = self._added(total, group, k, slot)
        return torch.zeros(group.copies, group.size, group.size) if total is None else total

    def _added(self, total: Tensor | None, group: UnitGroup, k: int, slot: Slot) -> Tensor:
        """Return ``total`` plus the similarity by one slot, in place where it is not kept."""
        known = self._kept.get((group.name, k))
        if known is None:
            left, right = self._both(slot, group.within)
            shape = (len(left), group.size, group.size)
            room = self._keep and sum(p.numel() for p in self._kept.values()) + torch.Size(shape).numel() <= _KEPT
            if not room and total is not None and total.dtype == left.dtype:
                return total.baddbmm_(left, right.transpose(1, 2))
            known = left @ right.transpose(1, 2)
            if not room:
                return known if total is None else total + known
            self._kept[group.name, k] = known
        return known.clone() if total is None else total + known

    def _both(self, slot: Slot, outer: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Return the units of A and of θ_B as it now lies, in one dtype."""
        first, second = self.a[slot.tensor], self.current(slot.tensor)
        dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), self._least)
        return slot.units(first.to(dtype), outer), slot.units(second.to(dtype), outer)

    def apart(self, slot: Slot) -> float:
        """Return Σ‖unit u of A − unit u of θ_B as it now lies‖² over a slot."""
        left, right = self._both(slot, ())
        return float((left - right).square().sum())

    def blocks(self, group: UnitGroup, counts: Counts | None = None) -> dict[str, Tensor]:
        """Return, per group directly inside, S[u, v, i, j] of inner units i of unit u of A and j of unit v of θ_B."""
        found = {}
        for child in nested_groups(self.spec, group):
            total = torch.zeros(group.size, group.size, child.size, child.size, dtype=torch.float64)
            for slot in child.slots:
                if slot.tensor in self.a and (counts is None or counts(slot)):
                    left, right = self._both(slot, (group.name,))
                    product = left.flatten(0, 1) @ right.flatten(0, 1).T  # (size·inner, size·inner)
                    sizes = (group.size, child.size, group.size, child.size)
                    total += product.reshape(sizes).transpose(1, 2).to(total)  # which may be on a GPU
            found[child.name] = total
        return found

    def place(self, group: UnitGroup, counts: Counts | None = None, solve: Solver = by_assignment) -> Step:
        """Reassign a group by the slots that count, whatever it gains."""
        step = self._step(group, counts, solve)
        self.move(group, step.permutation, step.relative)
        return step

    def improve(self, group: UnitGroup, slack: float, share: float = 0.0) -> tuple[Step, bool]:
        """Reassign a group if that gains more than ``slack``, or than a ``share`` of the gain; say whether it did."""
        step = self._step(group)
        taken = self.gain(group, step.permutation, step.gain) > slack + share * abs(step.gain)
        if taken:
            self.move(group, step.permutation, step.relative)
        return step, taken

    def _step(self, group: UnitGroup, counts: Counts | None = None, solve: Solver = by_assignment) -> Step:
        similarity, blocks = self.units(group, counts), self.blocks(group, counts)
        return reassign(self.spec, group, self.permutation, similarity, blocks, solve)

    def gain(self, group: UnitGroup, proposal: Permutation, linear: float) -> float:
        """Return what a proposal for one group adds to ⟨A, π·θ_B⟩; ``linear`` is what its similarity promised.

        The promise is kept exactly, save where one tensor has the group in two dimensions.
        """
        if not self._twice[group.name]:
            return linear
        return sum(
            inner(self.a[name], self.spec.moved(name, self.b[name], proposal)) - inner(self.a[name], self.current(name))
            for name in self.touched[group.name]
        )

    def move(self, group: UnitGroup, proposal: Permutation, relative: Tensor) -> None:
        """Take a proposal that moves ``group``, and what is inside its units, by ``relative``."""
        self.permutation = proposal
        plain = group.name not in nested_names(self.spec)
        for name in self.touched[group.name]:
            self._current.pop(name, None)
        for key in list(self._kept):
            other, k = key
            if other == group.name and plain and not self._twice[group.name]:
                self._kept[key] = self._kept[key][:, :, relative[0]]
            elif self.spec.by_name[other].slots[k].tensor in self.touched[group.name]:
                del self._kept[key]

    def objective(self) -> float:
        """Return ⟨A, π·θ_B⟩ over the tensors that count, accumulated in float64."""
        return sum(inner(tensor, self.current(name)) for name, tensor in self.a.items())

    def meets_itself(self, group: UnitGroup) -> bool:
        """Whether one tensor has the group, or groups inside its units, in more than one dimension."""
        return self._twice[group.name]

    def _self_coupled(self, group: UnitGroup) -> bool:
        """Whether one tensor has the group, or groups that move with it, in two dimensions, or twice in one place."""
        names = {group.name, *(child.name for child in nested_groups(self.spec, group))}
        dims: dict[str, set[int]] = {}
        for name in names:
            for slot in self.spec.by_name[name].slots:
                dims.setdefault(slot.tensor, set()).add(slot.dim)
        if any(len(found) > 1 for found in dims.values()):
            return True
        movers = names - {group.name} or names
        pieces = [slot.piece for name in names for slot in self.spec.by_name[name].slots]
        return any(
            sum(part.group in movers for part in piece.parts) > 1
            or sum(part.group == group.name for part in piece.parts) > 1
            for piece in pieces
        )


def inner(a: Tensor, b: Tensor) -> float:
    """Return ⟨a, b⟩ accumulated in float64, a part at a time."""
    if a.numel() <= _CHUNK:
        return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))
    rows = max(1, _CHUNK * a.shape[0] // a.numel())
    return sum(
        inner(a[k : k + rows].contiguous(), b[k : k + rows].contiguous())
        if a.shape[0] > 1
        else float(torch.sum(a.double() * b.double()))
        for k in range(0, a.shape[0], rows)
    )


def _places(slot: Slot) -> set[tuple[str, int, Piece]]:
    """Return the pieces of a tensor that a slot, with the containing groups it is read by, accounts for."""
    return {
        (slot.tensor, slot.dim, slot.piece),
        *((slot.tensor, place.dim, place.piece) for place in slot.across.values()),
    }
