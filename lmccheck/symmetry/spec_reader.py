"""A permutation spec from plain data: groups, and the slots that each one occupies in a module's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from lmccheck.errors import SourceError, nearest
from lmccheck.modules.stored import overlapping_names, stored_tensors, tied_names
from lmccheck.store.documents import read_table
from lmccheck.symmetry.slots import Frozen, Layouts, Part, Piece, Slot, UnitGroup, circles, places_of
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.spec_tables import FrozenTable, GroupTable, Problems, Role, SlotTable, quoted, read_groups
from lmccheck.symmetry.stacks import STAR, members_of, usual_role

UNSAID = "the spec does not say that its units may be dropped"


@dataclass(frozen=True)
class _Found:
    """A slot as it was understood: ``axis`` of the piece that ``key`` describes belongs to ``group``."""

    group: str
    where: str
    written: str  # the tensor's name as the slot gives it, which may be an alias
    key: tuple[str, int, int, tuple[int, ...], tuple[int, ...]]  # tensor, dim, start, view, strides
    axis: int
    role: Role | None


def spec_from_groups(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> PermutationSpec:
    """Return the permutation spec that ``groups`` describe, with the keys of a spec file's ``[[group]]``.

    A group has ``name``, ``size``, ``slots``, and optionally ``within`` (groups whose units contain it) and
    ``droppable = True`` or ``bound`` (why single units may not be dropped). A slot has ``tensor``, ``dim`` (0),
    ``role`` (``producer`` in dimension 0, ``consumer`` elsewhere), and where its units are not the whole dimension
    ``start``, ``view`` (the dimension from there on as a row-major product), ``axis`` (0) of the view, ``strides``.
    A ``tensor`` with a ``*`` for a number stands for all tensors so named, stacked along a first dimension of its own:
    ``{"tensor": "experts.*.w1.weight"}`` has whole experts for units, ``"dim": 1`` theirs.
    The description is checked against the module's tensors, not against what the network computes: that is what
    ``spec.verify`` measures. Raises SymmetryError with one line for every mistake.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> slots = [{"tensor": "0.weight"}, {"tensor": "0.bias"}, {"tensor": "2.weight", "dim": 1}]
    >>> spec_from_groups(net, [{"name": "hidden", "size": 3, "slots": slots}]).groups[0].size
    3
    """
    return described(module, groups, (), {}, "spec_from_groups")


def described(
    module: nn.Module, groups: Sequence[Any], frozen: Sequence[Any], unruled: Mapping[str, int], origin: str
) -> PermutationSpec:
    """Return the spec of a description; ``origin`` begins every line of an error."""
    if not isinstance(module, nn.Module):
        raise SourceError(f"{origin}: got {type(module).__name__} as the module, expected a torch.nn.Module")
    reader = _Reader(module, origin)
    tables = read_groups(groups, reader.problems)
    found = reader.understood(tables)
    layouts = reader.layouts(found)
    slots = reader.slots(tables, found, layouts)
    kept = reader.frozen(frozen)
    sizes = {table.name: table.size for table in tables}
    unit_groups = [
        UnitGroup(
            table.name,
            table.size,
            tuple(slots[table.name]),
            tuple(table.within),
            prod(sizes[outer] for outer in table.within),
            "" if table.droppable else table.bound or UNSAID,
        )
        for table in tables
    ]
    members = {name for several in reader.stacks.values() for name in several}
    shapes = {name: shape for name, shape in reader.shapes.items() if name not in members}
    return PermutationSpec(tuple(unit_groups), kept, layouts, shapes, reader.tied, dict(unruled), reader.stacks)


class _Reader:
    """Understands a description step by step; a step that finds mistakes ends it with all of that step's."""

    def __init__(self, module: nn.Module, origin: str) -> None:
        self.problems = Problems(origin)
        self.model = type(module).__name__
        self.stored = stored_tensors(module)
        self.tied = tied_names(module)
        self.shared = overlapping_names(module)
        self.shapes = {name: tuple(self.stored[name].shape) for name in dict.fromkeys(self.tied.values())}
        self.learned = {self.tied[name] for name, _ in module.named_parameters(remove_duplicate=False)}
        self.stacks: dict[str, tuple[str, ...]] = {}

    def tensor(self, name: str, where: str) -> str | None:
        """Return the name by which a tensor is known, or None after noting that there is none."""
        if STAR in name:
            return name if name in self.stacks else self.stack(name, where)
        if name not in self.stored:
            near = nearest(name, self.stored)
            self.problems.append(f"{where}.tensor: got {quoted(name)}, expected a tensor of model {self.model}{near}")
        return self.tied.get(name)

    def stack(self, pattern: str, where: str) -> str | None:
        """Note the stack that a pattern stands for and return it, or None after noting why there is none."""
        members = members_of(pattern, self.stored) if pattern.count(STAR) == 1 else ()
        kinds = {(tuple(self.stored[name].shape), self.stored[name].dtype) for name in members}
        tied = [name for name in members if list(self.tied.values()).count(self.tied[name]) > 1]
        problem = ""
        if len(members) < 2:
            problem = f"stands for {len(members)} tensors of model {self.model}, expected two or more by one number"
        elif len(kinds) > 1:
            problem = f"stands for tensors of {len(kinds)} shapes or dtypes, expected one"
        elif tied or not self.shared.isdisjoint(members):
            problem = f"stands for {(tied or members)[0]!r}, whose memory is not its own, expected tensors apart"
        if problem:
            self.problems.append(f"{where}.tensor: {quoted(pattern)} {problem}")
            return None
        shape, dtype = next(iter(kinds))
        self.stacks[pattern] = members
        self.stored[pattern] = torch.empty((len(members), *shape), dtype=dtype, device="meta")
        self.shapes[pattern] = (len(members), *shape)
        if self.learned.issuperset(members):
            self.learned.add(pattern)
        return pattern

    def understood(self, tables: Sequence[GroupTable]) -> list[_Found]:
        """Return where the slots of all groups lie, each checked by itself."""
        found = []
        for table in tables:
            for k, values in enumerate(table.slots):
                where = f"{table.title}: slots[{k}]"
                slot = read_table(SlotTable, values, where, self.problems)
                name = None if slot is None else self.tensor(slot.tensor, where)
                if slot is None or name is None:
                    continue
                view = tuple(slot.view or (table.size,))
                strides = tuple(slot.strides or (prod(view[k + 1 :]) for k in range(len(view))))
                mistake = self._unusable(name, slot) or self._unfitting(name, slot, table.size, view, strides)
                if mistake:
                    self.problems.append(f"{where}{mistake}")
                key = name, slot.dim, slot.start or 0, view, strides
                found.append(_Found(table.name, where, slot.tensor, key, slot.axis, slot.role))
        self.problems.settle()
        return found

    def _unusable(self, name: str, slot: SlotTable) -> str:
        """Say why a tensor has no slots there; nothing where it may have."""
        tensor, shape = self.stored[name], self.shapes[name]
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            return f".tensor: {quoted(slot.tensor)} is {kind}, expected floats: no other is ever permuted"
        if name in self.shared:
            return f".tensor: {quoted(slot.tensor)} is a view into another tensor's memory, expected its own"
        if slot.dim >= len(shape):
            expected = f"0 to {len(shape) - 1}" if shape else "no slot"
            return f".dim: got {slot.dim}, expected {expected}: {slot.tensor} has shape {shape}"
        return ""

    def _unfitting(
        self, name: str, slot: SlotTable, units: int, view: tuple[int, ...], strides: tuple[int, ...]
    ) -> str:
        """Say why a view does not fit into its dimension, or not the group's units; nothing where it does."""
        length, start = self.shapes[name][slot.dim], slot.start or 0
        place = f"{slot.tensor} has {length} positions in dimension {slot.dim}"
        if len(strides) != len(view):
            return f".strides: got {len(strides)} of them, expected {len(view)}, one for each of view"
        if slot.axis >= len(view):
            return f".axis: got {slot.axis}, expected 0 to {len(view) - 1}: view is {list(view)}"
        if slot.view is None and slot.start is None and slot.strides is None and length != units:
            return f": {place}, the group {units} units; mend: say which with view, axis and start"
        if view[slot.axis] != units:
            got = f"axis {slot.axis} of view {list(view)} has {view[slot.axis]}"
            return f".view: {got}, expected the group's {units} units"
        if max(prod(view), start + 1 + sum((n - 1) * s for n, s in zip(view, strides, strict=True))) > length:
            return f".view: got {list(view)} from {start} on, but {place}; expected a view inside them"
        if slot.start is None and slot.strides is None and prod(view) != length:
            return f".view: got {list(view)}, but {place}; mend: let it cover them all, or say its start"
        return ""

    def layouts(self, found: Sequence[_Found]) -> Layouts:
        """Join the slots that describe one piece, and check that no two pieces overlap."""
        member = {name: pattern for pattern, names in self.stacks.items() for name in names}
        for slot in found:
            if pattern := member.get(slot.key[0]):
                self.problems.append(
                    f"{slot.where}: {slot.written} is one of {quoted(pattern)}, which has slots, expected either"
                )
        axes: dict[Any, dict[int, _Found]] = {}
        for slot in found:
            taken = axes.setdefault(slot.key, {}).setdefault(slot.axis, slot)
            if taken.group != slot.group or (taken is not slot and taken.written == slot.written):
                self.problems.append(f"{slot.where}: {slot.written} is taken there by {taken.where}, expected one slot")
        layouts: dict[str, dict[int, list[Piece]]] = {}
        owners: dict[tuple[str, int], dict[int, str]] = {}  # tensor, dim -> position -> the slot that has it
        for (name, dim, start, view, strides), by_axis in axes.items():
            names = [by_axis[k].group if k in by_axis else None for k in range(len(view))]
            piece = Piece(start, tuple(map(Part, names, view, strides)))
            layouts.setdefault(name, {}).setdefault(dim, []).append(piece)
            owner, where = owners.setdefault((name, dim), {}), min(by_axis.items())[1].where
            positions = piece.positions().reshape(-1).tolist()
            taken_by = next((owner[position] for position in positions if position in owner), None)
            if taken_by is not None:
                self.problems.append(f"{where}: overlaps {taken_by} in {name}, dimension {dim}; expected none twice")
            elif len(set(positions)) < len(positions):
                self.problems.append(f"{where}.strides: got {list(strides)}, which come to one position twice")
            owner.update(dict.fromkeys(positions, where))
        self.problems.settle()
        return {
            name: {
                dim: tuple(sorted(pieces, key=lambda piece: piece.start))
                for dim, pieces in sorted(layouts[name].items())
            }
            for name in self.shapes
            if name in layouts
        }

    def slots(
        self, tables: Sequence[GroupTable], found: Sequence[_Found], layouts: Layouts
    ) -> dict[str, tuple[Slot, ...]]:
        """Return the slots of every group in the order in which they were given, an alias of a tensor once."""
        roles = self._roles(found)
        within = {table.name: table.within for table in tables}
        slots: dict[str, dict[Any, Slot]] = {table.name: {} for table in tables}
        for one in found:
            name, dim, start, *_ = one.key
            piece = next(piece for piece in layouts[name][dim] if piece.start == start)
            across = {}
            for outer in within[one.group]:
                here = sum(part.group == outer for part in piece.parts)
                elsewhere = [place for place in places_of(layouts[name], outer) if place.dim != dim]
                times = here or len(elsewhere)
                if times != 1:
                    self.problems.append(
                        f"{one.where}: its containing group {quoted(outer)} is {f'{times} times' if times else 'not'} "
                        f"in {one.written}, expected once; mend: give it a slot in the same view, or in another "
                        "dimension"
                    )
                elif not here:
                    across[outer] = elsewhere[0]
            vector = len(self.shapes[name]) == 1
            slot = Slot(name, dim, roles[name, dim], name in self.learned, vector, piece, one.axis, across)
            slots[one.group].setdefault((one.key, one.axis), slot)
        self.problems.settle()
        for name, dims in circles(slot for several in slots.values() for slot in several.values()).items():
            self.problems.append(f"{name}: dimensions {dims} each hold a group within one of another, in a circle")
        for table in tables:
            if table.droppable and not any(slot.role == "consumer" for slot in slots[table.name].values()):
                self.problems.append(
                    f"{table.title}: droppable: got true, but no slot is a consumer, whose weights dropping a "
                    'unit would set to zero; mend: give its outgoing weights role = "consumer"'
                )
        self.problems.settle()
        return {name: tuple(several.values()) for name, several in slots.items()}

    def _roles(self, found: Sequence[_Found]) -> dict[tuple[str, int], str]:
        """Return the role of every dimension that has slots: the one a slot says, else by its number."""
        said: dict[tuple[str, int], _Found] = {}
        for slot in found:
            first = said.setdefault(slot.key[:2], slot) if slot.role else slot
            if first.role != slot.role:
                self.problems.append(
                    f"{slot.where}.role: got {quoted(slot.role)}, but {first.where} says {quoted(first.role)}"
                )
        self.problems.settle()
        default = {slot.key[:2]: usual_role(*slot.key[:2]) for slot in found}
        return {**default, **{place: str(slot.role) for place, slot in said.items()}}

    def frozen(self, entries: Sequence[Any]) -> tuple[Frozen, ...]:
        """Return what a file says of dimensions that stay as they are."""
        kept = []
        for k, values in enumerate(entries):
            where = f"frozen[{k}]"
            table = read_table(FrozenTable, values, where, self.problems)
            name = None if table is None else self.tensor(table.tensor, where)
            if table is None or name is None:
                continue
            shape = self.shapes[name]
            if table.dim >= len(shape) or table.size > shape[table.dim]:
                self.problems.append(
                    f"{where}: got {table.size} of dimension {table.dim}, but {name} has shape {shape}"
                )
            kept.append(Frozen(name, table.dim, table.size, table.reason))
        self.problems.settle()
        return tuple(kept)
