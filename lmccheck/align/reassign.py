"""One step of matching by weights: reassign a unit group while every other group is held where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmccheck.align.assignment import best_assignment
from lmccheck.symmetry.spec import Permutation, PermutationSpec, Piece, Slot, UnitGroup


def nested_groups(spec: PermutationSpec, group: UnitGroup) -> list[UnitGroup]:
    """Return the groups directly inside the units of ``group`` that are reassigned together with it.

    Only two levels are solved jointly; groups further in keep their order and are carried along.
    """
    if group.within:
        return []
    inside = [child for child in spec.groups if child.within == (group.name,)]
    return [child for child in inside if not any(child.name in other.within for other in spec.groups)]


def reassign(
    spec: PermutationSpec,
    group: UnitGroup,
    permutation: Permutation,
    a: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
    counts: Callable[[Slot], bool],
) -> Permutation:
    """Return ``permutation`` with one group, and the groups directly inside it, reassigned by linear assignment.

    ``current`` is θ_B under ``permutation``, so the assignment found is relative to it. ``counts`` says which slots
    enter the similarity. For a group with groups inside, the similarity of two units is that of their best inner
    assignment, which is taken along.
    """
    nested = nested_groups(spec, group)
    taken = {place for child in nested for slot in child.slots for place in _places(slot)}
    own = [slot for slot in group.slots if counts(slot) and (slot.tensor, slot.dim, slot.piece) not in taken]
    similarity = _similarity(own, group.within, group.copies, group.size, a, current)
    choices: dict[tuple[str, int, int], Tensor] = {}
    for child in nested:
        blocks = _inner_blocks(child, group, a, current, counts)  # (size, size, inner, inner)
        for u in range(group.size):
            for v in range(group.size):
                choices[child.name, u, v], value = best_assignment(blocks[u, v])
                similarity[0, u, v] += value
    relative = torch.stack([best_assignment(copy)[0] for copy in similarity])
    result = dict(permutation)
    result[group.name] = torch.gather(permutation[group.name].reshape(group.copies, -1), 1, relative).reshape(
        group.shape
    )
    for other in spec.groups:
        if group.name in other.within and other not in nested:
            result[other.name] = _carry(spec, other, group, permutation[other.name], relative)
    for child in nested:
        old = permutation[child.name]
        rows = [old[v][choices[child.name, u, v]] for u, v in enumerate(relative[0].tolist())]
        result[child.name] = torch.stack(rows)
    return result


def _similarity(
    slots: list[Slot], within: tuple[str, ...], copies: int, size: int, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> Tensor:
    """Return S[c, u, v] = Σ_slots ⟨unit u of A, unit v of B⟩ within copy c: (copies, size, size) float64."""
    total = torch.zeros(copies, size, size, dtype=torch.float64)
    for slot in slots:
        left, right = (slot.units(x[slot.tensor], within) for x in (a, b))  # (copies, size, rest)
        total += left @ right.transpose(1, 2)
    return total


def _places(slot: Slot) -> set[tuple[str, int, Piece]]:
    """Return the pieces of a tensor that a slot, with the containing groups it is read by, accounts for."""
    return {
        (slot.tensor, slot.dim, slot.piece),
        *((slot.tensor, place.dim, place.piece) for place in slot.across.values()),
    }


def _inner_blocks(
    child: UnitGroup,
    group: UnitGroup,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    counts: Callable[[Slot], bool],
) -> Tensor:
    """Return S[u, v, i, j] = ⟨inner unit i of unit u of A, inner unit j of unit v of B⟩ over the child's slots."""
    total = torch.zeros(group.size, group.size, child.size, child.size, dtype=torch.float64)
    for slot in child.slots:
        if counts(slot):
            left, right = (slot.units(x[slot.tensor], (group.name,)) for x in (a, b))  # (size, inner, rest)
            total += torch.einsum("uik,vjk->uvij", left, right)
    return total


def _carry(spec: PermutationSpec, inside: UnitGroup, group: UnitGroup, old: Tensor, relative: Tensor) -> Tensor:
    """Return the rows of a group inside ``group``, moved along with the units that contain them."""
    sizes = [spec.by_name[name].size for name in inside.within]
    rows = old.reshape(*sizes, inside.size)
    at = inside.within.index(group.name)
    if relative.shape[0] == 1:
        return rows.index_select(at, relative[0]).reshape(inside.shape)
    lead = [inside.within.index(name) for name in group.within]
    others = [k for k in range(len(sizes)) if k not in lead and k != at]
    ordered = rows.permute(*lead, at, *others, len(sizes))
    shape = ordered.shape
    flat = ordered.reshape(relative.shape[0], group.size, -1)
    moved = torch.gather(flat, 1, relative.unsqueeze(-1).expand_as(flat)).reshape(shape)
    back = torch.argsort(torch.tensor([*lead, at, *others, len(sizes)]))
    return moved.permute(*back.tolist()).reshape(inside.shape)
