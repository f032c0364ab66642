"""A permutation spec in which whole experts may change places, made of one in which they may not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from lmccheck.symmetry.families import ModuleFamily
from lmccheck.symmetry.slots import Frozen, Part, Piece, UnitGroup, slots_of
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.stacks import STAR, usual_role

WHOLE = "its units are whole modules"

Along = tuple[Any, ...]  # axes (tensor, dimension) and other lists of as many, that move with a list


def free_order(spec: PermutationSpec, family: ModuleFamily, along: Along) -> PermutationSpec | None:
    """Return the spec with a list as a group, and what moves with it; None where units differ from one to another."""
    lists = [family, *(one for one in along if isinstance(one, ModuleFamily))]
    moved = [*((name, 0) for name in family.stacked), *(one for one in along if isinstance(one, tuple))]
    renamed = _inner_groups(spec, lists, {tensor for tensor, _ in moved} if family.stacked else set())
    if renamed is None:
        return None
    name = _free_name(spec, family.path or "experts")
    gone = {tensor for one in lists for members in one.patterns.values() for tensor in members}
    layouts = {tensor: dict(dims) for tensor, dims in spec.layouts.items() if tensor not in gone}
    shapes = {tensor: shape for tensor, shape in spec.shapes.items() if tensor not in gone}
    roles = {(slot.tensor, slot.dim): slot.role for group in spec.groups for slot in group.slots}
    learned = {slot.tensor for group in spec.groups for slot in group.slots if slot.learned}
    stacks = dict(spec.stacks)
    for pattern, members in ((p, m) for one in lists for p, m in one.patterns.items()):
        described = [_renamed(spec.layouts.get(tensor, {}), renamed) for tensor in members]
        if any(layout != described[0] for layout in described):
            return None
        shape = (family.count, *spec.shapes[members[0]])
        layouts[pattern] = {
            0: (_whole(name, family.count),),
            **{dim + 1: pieces for dim, pieces in described[0].items()},
        }
        shapes[pattern], stacks[pattern] = shape, members
        learned |= {pattern} if learned.issuperset(members) else set()
        for dim in range(len(shape) - 1):
            roles[pattern, dim + 1] = roles.get((members[0], dim), usual_role(pattern, dim + 1))
        roles[pattern, 0] = "producer"
    for tensor, dim in moved:
        layouts.setdefault(tensor, {})[dim] = (_whole(name, family.count),)
        roles[tensor, dim] = "producer"
    frozen = [Frozen(f.tensor, f.dim, f.size, f.reason) for f in spec.frozen if (f.tensor, f.dim) not in moved]
    return _assembled(
        spec, (name, family.count), renamed, (layouts, shapes, roles, learned), stacks, _as_stacks(frozen, lists)
    )


def _assembled(
    spec: PermutationSpec,
    order: tuple[str, int],
    renamed: Mapping[str, str],
    described: tuple[Any, Any, Any, set[str]],
    stacks: Mapping[str, tuple[str, ...]],
    frozen: Sequence[Frozen],
) -> PermutationSpec | None:
    layouts, shapes, roles, learned = described
    learned |= {tensor for tensor in layouts if tensor in stacks or tensor not in spec.layouts}
    name, size = order
    within: dict[str, tuple[str, ...]] = {}
    old: dict[str, UnitGroup] = {}
    for group in spec.groups:
        new = renamed.get(group.name, group.name)
        if new in old:
            continue
        outer = tuple(renamed.get(one, one) for one in group.within)
        if group.name in renamed and name not in within:
            within[name] = ()
        within[new], old[new] = ((name, *outer) if group.name in renamed else outer), group
    within.setdefault(name, ())
    layouts = {tensor: dict(sorted(dims.items())) for tensor, dims in layouts.items()}
    try:
        slots = slots_of(layouts, shapes, roles, learned, within)
    except LookupError:
        return None
    sizes = {new: group.size for new, group in old.items()} | {name: size}

    def group_of(new: str) -> UnitGroup:
        copies = 1
        for outer in within[new]:
            copies *= sizes[outer]
        bound = WHOLE if new == name else old[new].bound
        return UnitGroup(new, sizes[new], tuple(slots.get(new, ())), within[new], copies, bound)

    groups = tuple(map(group_of, within))
    return replace(spec, groups=groups, frozen=tuple(frozen), layouts=layouts, shapes=shapes, stacks=stacks)


def _free_name(spec: PermutationSpec, name: str) -> str:
    """Return what a group of whole modules is called: a module's units may bear its name already."""
    taken = spec.by_name
    return name if name not in taken else next(n for k in count(1) if (n := f"{name}/order{k - 1 or ''}") not in taken)


def _whole(group: str, size: int) -> Piece:
    return Piece(0, (Part(group, size, 1),))


def _inner_groups(
    spec: PermutationSpec, lists: Sequence[ModuleFamily], stacked: Collection[str]
) -> dict[str, str] | None:
    """Return, by the groups whose slots all lie in one module of the lists, the name that they have together.

    Groups of several modules are the same one where they have the same place in theirs. None where some have no such
    counterpart. Groups whose slots all lie in ``stacked`` tensors keep their names.
    """
    count = lists[0].count
    member = {name: k for one in lists for k in range(count) for name in one.member(k)}
    pattern = {name: p for one in lists for p, members in one.patterns.items() for name in members}
    inner: list[dict[Any, UnitGroup]] = [{} for _ in range(count)]
    for group in spec.groups:
        where = {member.get(slot.tensor) for slot in group.slots}
        if len(where) == 1 and (k := where.pop()) is not None:
            sign = frozenset((pattern[s.tensor], s.dim, s.piece.start, s.at, s.stride, s.size) for s in group.slots)
            inner[k][sign] = group
    if any(found.keys() != inner[0].keys() for found in inner):
        return None
    renamed = {g.name: g.name for g in spec.groups if stacked and {slot.tensor for slot in g.slots} <= set(stacked)}
    for sign, first in inner[0].items():
        together = _starred(first.name, lists, next(iter(sign))[0])
        renamed |= {found[sign].name: together for found in inner}
    return renamed


def _starred(name: str, lists: Sequence[ModuleFamily], pattern: str) -> str:
    """Return a name for all of a group's counterparts: that of the first, without its number."""
    for one in lists:
        lead = f"{one.path}." if one.path else ""
        if name.startswith(lead):
            _, dot, rest = name.removeprefix(lead).partition(".")
            return f"{lead}{STAR}{dot}{rest}"
    return pattern


def _renamed(layout: Mapping[int, tuple[Piece, ...]], names: Mapping[str, str]) -> dict[int, tuple[Piece, ...]]:
    return {
        dim: tuple(
            Piece(
                p.start,
                tuple(Part(names.get(part.group or "", part.group), part.size, part.stride) for part in p.parts),
            )
            for p in pieces
        )
        for dim, pieces in layout.items()
    }


def _as_stacks(frozen: Sequence[Frozen], lists: Sequence[ModuleFamily]) -> list[Frozen]:
    """Return what stays, said of stacks once instead of every member."""
    place = {name: (p, k) for one in lists for p, members in one.patterns.items() for k, name in enumerate(members)}
    found = []
    for item in frozen:
        pattern, k = place.get(item.tensor, (item.tensor, -1))
        if k <= 0:
            found.append(Frozen(pattern, item.dim + (k == 0), item.size, item.reason))
    return found
