"""Weight matching: the permutation of θ_B whose weights lie closest to θ_A's.

Git Re-Basin, Algorithm 1 (Ainsworth et al. 2023): maximise ⟨θ_A, π·θ_B⟩ by coordinate descent over unit groups, each
step a linear assignment with all other groups held fixed. On the permutation spec it needs no knowledge of the network.
Differs in its starts: besides the identity, descents begin from an *anchored* assignment that first places the groups
known through inputs, outputs and groups already placed. From the identity alone, the groups of a wide network lock onto
each other's noise before the residual stream is placed, and a planted permutation is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lmccheck.align.reassign import nested_groups, reassign
from lmccheck.symmetry.spec import Permutation, PermutationSpec, Slot, UnitGroup

MOST_SWEEPS = 200
MOST_STARTS = 8
START_BUDGET = 20_000_000  # learned numbers times descents; a network beyond it gets one descent of each kind


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
    """Match θ_B to θ_A by ``starts`` descents, in turn from the identity and the anchored assignment; keep the best.

    Weights are taken in float64. Only learned tensors count: running statistics follow their channels but do not
    steer. Every descent visits all groups in a seeded random order until none improves; a step is kept only if it
    raises the objective, which therefore never falls. The order decides which local optimum is reached. By default
    there are up to eight descents, fewer the larger the network, and at least one of each kind.
    """
    a, b = _learned(spec, theta_a), _learned(spec, theta_b)
    if starts is None:
        size = sum(tensor.numel() for tensor in a.values())
        starts = min(MOST_STARTS, max(2, START_BUDGET // max(1, size)))
    generator = torch.Generator().manual_seed(seed)
    before = inner(a, b)
    identity = spec.identity()
    anchored = anchored_start(spec, a, b) if starts > 1 else identity
    best = Matching(identity, before, before, 0, ())
    reached = []
    for k in range(starts):
        found = _descend(spec, a, b, anchored if k % 2 else identity, generator)
        reached.append(found.objective)
        if found.objective > best.objective + 1e-12 * (1 + abs(best.objective)) or not best.sweeps:
            best = found
    return replace(best, objective_before=before, reached=tuple(reached))


def anchored_start(spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Permutation:
    """Return an assignment that places groups one after the other, best-known first.

    A slot is anchored when every other group in its tensor has been placed; the next group is the one whose units are
    described by the most anchored numbers, and only those enter its assignment.
    """
    on_tensor: dict[str, set[str]] = {}
    for group in spec.groups:
        for slot in group.slots:
            on_tensor.setdefault(slot.tensor, set()).add(group.name)
    family = {
        group.name: {group.name, *group.within, *(child.name for child in nested_groups(spec, group))}
        for group in spec.groups
    }
    placed: set[str] = set()
    waiting = {group.name: group for group in spec.groups}
    permutation, current = spec.identity(), dict(b)

    def anchored(name: str, slot: Slot) -> bool:
        return slot.learned and on_tensor[slot.tensor] <= placed | family[name]

    def described(name: str) -> float:
        """Anchored numbers per unit."""
        slots = [slot for slot in waiting[name].slots if anchored(name, slot)]
        return sum(a[s.tensor].numel() / a[s.tensor].shape[s.dim] * s.repeat * s.block for s in slots)

    while waiting:
        name = max(waiting, key=described)
        permutation = reassign(spec, waiting[name], permutation, a, current, partial(anchored, name))
        for done in (name, *(child.name for child in nested_groups(spec, waiting[name]))):
            placed.add(done)
            waiting.pop(done, None)
        current = spec.apply(b, permutation)
    return permutation


def _descend(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    start: Permutation,
    generator: torch.Generator,
) -> Matching:
    """Return where coordinate descent from ``start`` ends."""
    permutation = start
    current = spec.apply(b, start)
    scale = 1 + abs(inner(a, current))
    touched = {group.name: _tensors_moved_by(spec, group) for group in spec.groups}
    sweeps, improved = 0, True
    while improved and sweeps < MOST_SWEEPS:
        improved = False
        sweeps += 1
        for k in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[k]
            proposal = reassign(spec, group, permutation, a, current, lambda slot: slot.learned)
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
