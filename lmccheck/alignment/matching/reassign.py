"""One step of matching: reassign a unit group, and the groups inside its units, while every other one is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from lmccheck.alignment.matching.assignment import Assignment, assign
from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

Solver = Callable[[Tensor], Assignment]

EXACT_TO = 1024  # units; beyond, the certified solver is faster and leaves a gap of rounding's size


def by_assignment(similarity: Tensor) -> Assignment:
    """Return the best assignment: exact for small groups, with a certified gap for large ones."""
    return assign(similarity, exact_to=EXACT_TO)


@dataclass(frozen=True)
class Step:
    """A reassignment: the new permutation, its move relative to the old one, (copies, size), and what it gains.

    ``gap`` certifies that no assignment gains more than that beyond it; 0.0 where the solver is exact.
    """

    permutation: Permutation
    relative: Tensor
    gain: float
    gap: float


def nested_groups(spec: PermutationSpec, group: UnitGroup) -> list[UnitGroup]:
    """Return the groups directly inside the units of ``group`` that are reassigned together with it.

    Only two levels are solved jointly; groups further in keep their order and are carried along.
    """
    if group.within:
        return []
    inside = [child for child in spec.groups if child.within == (group.name,)]
    return [child for child in inside if not any(child.name in other.within for other in spec.groups)]


def nested_names(spec: PermutationSpec) -> set[str]:
    """Return the names of the groups that lie inside the units of another, or have groups inside their own."""
    return {name for group in spec.groups if group.within for name in (group.name, *group.within)}


def in_turn(
    spec: PermutationSpec, known: Callable[[UnitGroup, Set[str]], float] = lambda group, placed: 1
) -> Iterator[tuple[UnitGroup, Set[str]]]:
    """Yield every group to be placed, and the names of those placed before it: the walk of all layerwise matching.

    The one of which most is ``known`` by then is next, the first in the network's order where several are, as all are
    by default. Groups directly inside its units are placed along with it, unless nothing is known of it.
    """
    placed: set[str] = set()
    waiting = list(spec.groups)
    while waiting:
        amounts = [known(group, placed) for group in waiting]
        group = waiting[amounts.index(max(amounts))]
        yield group, frozenset(placed)
        placed.add(group.name)
        if max(amounts) > 0:
            placed |= {child.name for child in nested_groups(spec, group)}
        waiting = [other for other in waiting if other.name not in placed]


def reassign(
    spec: PermutationSpec,
    group: UnitGroup,
    permutation: Permutation,
    similarity: Tensor,
    blocks: Mapping[str, Tensor],
    solve: Solver = by_assignment,
) -> Step:
    """Return ``permutation`` with one group, and the groups directly inside it, reassigned by linear assignment.

    ``similarity[c, u, v]``, (copies, size, size), says how much is gained where unit u of A takes what is now at v;
    ``blocks[child][u, v, i, j]``, (size, size, inner, inner), the same of inner units i and j. The similarity of two
    units is then their own and that of their best inner assignment, which is taken along.
    """
    if blocks:
        similarity = similarity.to("cpu", torch.float64, copy=True)
    now = float(similarity.diagonal(dim1=1, dim2=2).double().sum())
    nested = [child for child in spec.groups if child.name in blocks]
    choices: dict[tuple[str, int, int], Tensor] = {}
    for child in nested:
        block = blocks[child.name].to("cpu")
        now += float(block.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1).double().sum())
        for u in range(group.size):
            for v in range(group.size):
                inner = solve(block[u, v])
                choices[child.name, u, v] = inner.permutation.cpu()
                similarity[0, u, v] += inner.value
    solved = [solve(copy) for copy in similarity]
    relative = torch.stack([found.permutation for found in solved]).cpu()
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
    gain = sum(found.value for found in solved) - now
    return Step(result, relative, gain, sum(found.gap for found in solved))


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


def affordable(spec: PermutationSpec, budget: int, most: int) -> int:
    """Return how often all groups can be assigned within ``budget`` cubed group sizes, 1 to ``most`` times."""
    cost = sum(group.copies * group.size**3 for group in spec.groups)
    return max(1, min(most, budget // max(1, cost)))
