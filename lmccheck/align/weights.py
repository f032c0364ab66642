"""Weight matching: the permutation of θ_B whose weights lie closest to θ_A's.

Git Re-Basin, Algorithm 1 (Ainsworth et al. 2023): maximise ⟨θ_A, π·θ_B⟩ by coordinate descent over unit groups, each
step a linear assignment with all other groups held fixed. On the permutation spec it needs no knowledge of the network.
For groups inside units (head dimensions inside heads) the similarity of two units is that of their best inner
assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmccheck.align.assignment import best_assignment
from lmccheck.symmetry.spec import Permutation, PermutationSpec, Slot, UnitGroup

MOST_SWEEPS = 200
MOST_STARTS = 8
START_BUDGET = 20_000_000  # learned numbers times descents; a network beyond it gets one descent


@dataclass(frozen=True)
class Matching:
    """What weight matching found: the permutation, ⟨θ_A, π·θ_B⟩ after and before, and how it went.

    ``sweeps`` counts passes over the groups of the descent that was kept; ``reached`` is every descent's objective.
    """

    permutation: Permutation
    objective: float
    objective_before: float
    sweeps: int
    reached: tuple[float, ...]


def match(
    spec: PermutationSpec,
    theta_a: Mapping[str, Tensor],
    theta_b: Mapping[str, Tensor],
    *,
    seed: int = 0,
    starts: int | None = None,
) -> Matching:
    """Match θ_B to θ_A from the identity ``starts`` times, with seeded orders of visiting; keep the best objective.

    Weights are taken in float64. Only learned tensors count: running statistics follow their channels but do not
    steer. Every descent visits all groups in a random order until none improves; a step is kept only if it raises the
    objective, which therefore never falls. The order decides which local optimum is reached. By default there are up
    to eight descents, fewer the larger the network (20 million learned numbers: one).
    """
    a, b = _learned(spec, theta_a), _learned(spec, theta_b)
    if starts is None:
        size = sum(tensor.numel() for tensor in a.values())
        starts = min(MOST_STARTS, max(1, START_BUDGET // max(1, size)))
    generator = torch.Generator().manual_seed(seed)
    before = inner(a, b)
    best = Matching(spec.identity(), before, before, 0, ())
    reached = []
    for _ in range(starts):
        found = _descend(spec, a, b, generator)
        reached.append(found.objective)
        if found.objective > best.objective + 1e-12 * (1 + abs(best.objective)) or not best.sweeps:
            best = found
    return replace(best, objective_before=before, reached=tuple(reached))


def _descend(
    spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor], generator: torch.Generator
) -> Matching:
    """Return where coordinate descent from the identity ends."""
    permutation = spec.identity()
    current = dict(b)
    scale = 1 + abs(inner(a, current))
    children = {group.name: [g for g in spec.groups if g.within == (group.name,)] for group in spec.groups}
    touched = {group.name: _tensors_moved_by(spec, group) for group in spec.groups}
    sweeps, improved = 0, True
    while improved and sweeps < MOST_SWEEPS:
        improved = False
        sweeps += 1
        for k in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[k]
            proposal = _step(spec, group, children[group.name], permutation, a, current)
            moved = spec.apply({name: b[name] for name in touched[group.name]}, proposal)
            gain = inner(moved, a) - inner({name: current[name] for name in moved}, a)
            if gain > 1e-12 * scale:
                permutation, improved = proposal, True
                current.update(moved)
    objective = inner(a, current)
    return Matching(permutation, objective, objective, sweeps, (objective,))


def _tensors_moved_by(spec: PermutationSpec, group: UnitGroup) -> set[str]:
    """Return the learned tensors in which ``group``, or a group inside its units, has slots."""
    return {
        slot.tensor
        for other in spec.groups
        if other is group or group.name in other.within
        for slot in other.slots
        if slot.learned
    }


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return ⟨a, b⟩ over the tensors of ``a``."""
    return float(sum(torch.sum(tensor * b[name]) for name, tensor in a.items()))


def _learned(spec: PermutationSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the learned tensors that have slots, once each, in float64."""
    names = {slot.tensor for group in spec.groups for slot in group.slots if slot.learned}
    return {name: weights[name].detach().to("cpu", torch.float64) for name in weights if name in names}


def _step(
    spec: PermutationSpec,
    group: UnitGroup,
    children: list[UnitGroup],
    permutation: Permutation,
    a: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
) -> Permutation:
    """Return ``permutation`` with one group (and the groups directly inside it) reassigned.

    ``current`` is θ_B under ``permutation``, so the assignment found is relative to it.
    """
    nested = (
        []
        if group.within
        else [child for child in children if not any(c.within[:1] == (child.name,) for c in spec.groups)]
    )
    taken = {(slot.tensor, slot.dim, slot.piece) for child in nested for slot in child.slots}
    own = [slot for slot in group.slots if slot.learned and (slot.tensor, slot.dim, slot.piece) not in taken]
    similarity = _similarity(own, group.within, group.copies, group.size, a, current)
    choices: dict[tuple[str, int, int], Tensor] = {}
    for child in nested:
        blocks = _inner_blocks(child, group, a, current)  # (size, size, inner, inner)
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
        positions = slot.positions(within)  # (copies, size, rest)
        left, right = (_gather(x[slot.tensor], slot.dim, positions) for x in (a, b))
        total += left @ right.transpose(1, 2)
    return total


def _gather(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Return what lies at ``positions`` of ``dim`` as (copies, size, everything else)."""
    copies, size, _ = positions.shape
    return tensor.movedim(dim, 0)[positions.reshape(-1)].reshape(copies, size, -1)


def _inner_blocks(child: UnitGroup, group: UnitGroup, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Return S[u, v, i, j] = ⟨inner unit i of unit u of A, inner unit j of unit v of B⟩ over the child's slots."""
    total = torch.zeros(group.size, group.size, child.size, child.size, dtype=torch.float64)
    for slot in child.slots:
        if slot.learned:
            positions = slot.positions((group.name,))  # (size, inner, rest)
            left, right = (_gather(x[slot.tensor], slot.dim, positions) for x in (a, b))
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
