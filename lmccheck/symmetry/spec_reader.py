"""A permutation spec from plain data: groups, and the slots that each one occupies in a module's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from lmccheck.errors import SourceError, SymmetryError, nearest
from lmccheck.modules.stored import overlapping_names, stored_tensors, tied_names
from lmccheck.store.documents import read_table
from lmccheck.symmetry.keys import FrozenTable, GroupTable, Role, SlotTable
from lmccheck.symmetry.slots import Frozen, Part, Piece, Slot, UnitGroup, slots_of
from lmccheck.symmetry.spec import PermutationSpec

UNSAID = "the spec does not say that its units may be dropped"
MOST_PROBLEMS = 10  # a spec of another network has one for every slot


@dataclass(frozen=True)
class _Found:
    """A slot as it was understood: ``axis`` of the piece that ``key`` describes belongs to ``group``."""

    group: str
    where: str
    written: str  # the tensor's name as the slot gives it, which may be an alias
    key: tuple[str, int, int, tuple[int, ...], tuple[int, ...]]  # tensor, dim, start, view, strides
    axis: int
    role: Role | None

    @property
    def tensor(self) -> str:
        return self.key[0]

    @property
    def dim(self) -> int:
        return self.key[1]


def spec_from_groups(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> PermutationSpec:
    """Return the permutation spec that ``groups`` describe, with the keys of a spec file's ``[[group]]``.

    A group has ``name``, ``size``, ``slots``, and optionally ``within`` (groups whose units contain it) and
    ``droppable = True`` or ``bound`` (why single units may not be dropped). A slot has ``tensor``, ``dim`` (0),
    ``role`` (``producer`` in dimension 0, ``consumer`` elsewhere), and where its units are not the whole dimension
    ``start``, ``view`` (the dimension from there on as a row-major product), ``axis`` (0) of the view, ``strides``.
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
    tables = reader.groups(groups)
    found = reader.slots(tables)
    layouts = reader.layouts(found)
    reader.containers(tables, found, layouts)
    kept = reader.frozen(frozen)
    roles = reader.roles(found)
    reader.droppable(tables, found, roles)
    slots = slots_of(layouts, reader.shapes, roles, reader.learned, {g.name: tuple(g.within) for g in tables})
    return PermutationSpec(_unit_groups(tables, found, slots), kept, layouts, reader.shapes, reader.tied, dict(unruled))


class _Reader:
    """Understands a description step by step; a step that finds mistakes ends it with all of that step's."""

    def __init__(self, module: nn.Module, origin: str) -> None:
        self.origin = origin
        self.model = type(module).__name__
        self.stored = stored_tensors(module)
        self.tied = tied_names(module)
        self.shared = overlapping_names(module)
        self.shapes = {name: tuple(self.stored[name].shape) for name in dict.fromkeys(self.tied.values())}
        self.learned = dict.fromkeys(self.shapes, False)
        self.learned.update({self.tied[n]: True for n, _ in module.named_parameters(remove_duplicate=False)})
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        self.problems.append(problem)
        if len(self.problems) >= MOST_PROBLEMS:
            self.settle()

    def settle(self) -> None:
        """Raise SymmetryError if mistakes were found."""
        if self.problems:
            told = self.problems[:MOST_PROBLEMS]
            if len(told) == MOST_PROBLEMS:
                told.append(f"only the first {MOST_PROBLEMS} mistakes are shown; mend: is it this network's spec?")
            raise SymmetryError("\n".join(f"{self.origin}: {problem}" for problem in told))

    def groups(self, groups: Sequence[Any]) -> list[GroupTable]:
        if isinstance(groups, (str, Mapping)) or not isinstance(groups, Sequence):
            self.note(f"group: got {type(groups).__name__}, expected a sequence of groups")
            self.settle()
        tables: dict[str, GroupTable] = {}
        for k, values in enumerate(groups):
            values = _plain(values)
            table = read_table(GroupTable, values, _title(values, k), self.problems, ": ")
            if table is None:
                continue
            title = _group(table.name)
            if table.name in tables:
                self.note(f"{title}: the name occurs twice; mend: rename one, or join their slots")
            if table.droppable and table.bound:
                self.note(f"{title}: got droppable = true and bound, expected one of them")
            tables[table.name] = table
        for table in tables.values():
            self.within(table, tables)
        self.settle()
        return _containers_first(list(tables.values()))

    def within(self, table: GroupTable, tables: Mapping[str, GroupTable]) -> None:
        """Check that ``within`` names groups, all of those around them too, and never comes back to the group."""
        where = f"{_group(table.name)}: within"
        for name in table.within:
            if name not in tables:
                self.note(f"{where}: got {_quoted(name)}, expected the name of a group{nearest(name, tables)}")
            elif name == table.name or table.name in tables[name].within:
                self.note(
                    f"{where}: got {_quoted(name)}, which lies in {_quoted(table.name)} itself, expected no cycle"
                )
            elif absent := [outer for outer in tables[name].within if outer not in table.within]:
                self.note(
                    f"{where}: got {_quoted(name)} without {_quoted(absent[0])}, in which that lies; mend: name every "
                    "containing group"
                )
        if len(set(table.within)) < len(table.within):
            self.note(f"{where}: a group occurs twice, expected each once")

    def tensor(self, name: str, where: str) -> str | None:
        """Return the name by which a tensor is known, or None after noting why it cannot be used."""
        if name not in self.stored:
            near = nearest(name, self.stored)
            self.note(f"{where}.tensor: got {_quoted(name)}, expected a tensor of model {self.model}{near}")
            return None
        return self.tied[name]

    def slots(self, tables: Sequence[GroupTable]) -> list[_Found]:
        found = []
        for table in tables:
            for k, values in enumerate(table.slots):
                where = f"{_group(table.name)}: slots[{k}]"
                slot = read_table(SlotTable, values, where, self.problems)
                if slot is not None and (one := self.slot(table, slot, where)) is not None:
                    found.append(one)
        self.settle()
        return found

    def slot(self, group: GroupTable, slot: SlotTable, where: str) -> _Found | None:
        """Return where a slot's units live, or None after noting its first mistake."""
        name = self.tensor(slot.tensor, where)
        if name is None:
            return None
        tensor, shape = self.stored[name], self.shapes[name]
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            self.note(f"{where}.tensor: {_quoted(slot.tensor)} is {kind}, expected floats: no other is ever permuted")
            return None
        if name in self.shared:
            self.note(
                f"{where}.tensor: {_quoted(slot.tensor)} is a view into another tensor's memory, expected its own"
            )
            return None
        if slot.dim >= len(shape):
            expected = f"0 to {len(shape) - 1}" if shape else "no slot"
            self.note(f"{where}.dim: got {slot.dim}, expected {expected}: {slot.tensor} has shape {shape}")
            return None
        length = shape[slot.dim]
        place = f"{slot.tensor} has {length} positions in dimension {slot.dim}"
        view = tuple(slot.view or (group.size,))
        strides = tuple(slot.strides or (prod(view[k + 1 :]) for k in range(len(view))))
        start = slot.start or 0
        if len(strides) != len(view):
            self.note(f"{where}.strides: got {len(strides)} of them, expected {len(view)}, one for each of view")
        elif slot.axis >= len(view):
            self.note(f"{where}.axis: got {slot.axis}, expected 0 to {len(view) - 1}: view is {list(view)}")
        elif slot.view is None and slot.start is None and slot.strides is None and length != group.size:
            self.note(f"{where}: {place}, the group {group.size} units; mend: say which with view, axis and start")
        elif view[slot.axis] != group.size:
            got = f"axis {slot.axis} of view {list(view)} has {view[slot.axis]}"
            self.note(f"{where}.view: {got}, expected the group's {group.size} units")
        elif max(prod(view), start + 1 + sum((n - 1) * s for n, s in zip(view, strides, strict=True))) > length:
            self.note(f"{where}.view: got {list(view)} from {start} on, but {place}; expected a view inside them")
        elif slot.start is None and slot.strides is None and prod(view) != length:
            self.note(f"{where}.view: got {list(view)}, but {place}; mend: let it cover them all, or say its start")
        else:
            return _Found(group.name, where, slot.tensor, (name, slot.dim, start, view, strides), slot.axis, slot.role)
        return None

    def layouts(self, found: Sequence[_Found]) -> dict[str, dict[int, tuple[Piece, ...]]]:
        """Join the slots that describe one piece, and check that no two pieces overlap."""
        axes: dict[Any, dict[int, _Found]] = {}
        for slot in found:
            taken = axes.setdefault(slot.key, {}).setdefault(slot.axis, slot)
            if taken.group != slot.group or (taken is not slot and taken.written == slot.written):
                self.note(f"{slot.where}: {slot.written} is taken there by {taken.where}, expected one slot")
        layouts: dict[str, dict[int, dict[int, Piece]]] = {}
        owners: dict[tuple[str, int], tuple[torch.Tensor, list[str]]] = {}
        for (name, dim, start, view, strides), by_axis in axes.items():
            parts = [
                Part(by_axis[k].group if k in by_axis else None, size, stride)
                for k, (size, stride) in enumerate(zip(view, strides, strict=True))
            ]
            piece, where = Piece(start, tuple(parts)), min(by_axis.items())[1].where
            owner, wheres = owners.setdefault((name, dim), (torch.full((self.shapes[name][dim],), -1), []))
            positions = piece.positions().reshape(-1)
            before = owner[positions].max()
            if before >= 0:
                self.note(f"{where}: overlaps {wheres[int(before)]} in {name}, dimension {dim}; expected none twice")
            elif positions.bincount().max() > 1:
                self.note(f"{where}.strides: got {list(strides)}, which come to one position twice")
            owner[positions] = len(wheres)
            wheres.append(where)
            layouts.setdefault(name, {}).setdefault(dim, {})[start] = piece
        self.settle()
        return {
            name: {
                dim: tuple(piece for _, piece in sorted(layouts[name][dim].items())) for dim in sorted(layouts[name])
            }
            for name in self.shapes
            if name in layouts
        }

    def containers(
        self,
        tables: Sequence[GroupTable],
        found: Sequence[_Found],
        layouts: Mapping[str, Mapping[int, tuple[Piece, ...]]],
    ) -> None:
        """Check that each slot's tensor shows, once, which unit of every containing group a position belongs to."""
        within = {table.name: table.within for table in tables}
        needs: dict[str, dict[int, set[int]]] = {}  # tensor -> dim -> the dims of which its order depends
        for slot in found:
            own = next(p for p in layouts[slot.tensor][slot.dim] if p.start == slot.key[2])
            for outer in within[slot.group]:
                here = sum(part.group == outer for part in own.parts)
                elsewhere = [
                    dim
                    for dim, pieces in layouts[slot.tensor].items()
                    for piece in pieces
                    for part in piece.parts
                    if part.group == outer and dim != slot.dim
                ]
                if here + (0 if here else len(elsewhere)) != 1:
                    times = f"{here or len(elsewhere)} times" if here or elsewhere else "not"
                    self.note(
                        f"{slot.where}: its containing group {_quoted(outer)} is {times} in {slot.written}, expected "
                        "once; mend: give it a slot in the same view, or in another dimension"
                    )
                elif not here:
                    needs.setdefault(slot.tensor, {}).setdefault(slot.dim, set()).update(elsewhere)
        for name, dims in needs.items():
            waiting = dict(dims)
            while free := [dim for dim in waiting if not waiting[dim] & waiting.keys()]:
                for dim in free:
                    del waiting[dim]
            if waiting:
                self.note(f"{name}: dimensions {sorted(waiting)} each hold a group within one of another, in a circle")
        self.settle()

    def roles(self, found: Sequence[_Found]) -> dict[tuple[str, int], str]:
        """Return the role of every dimension that has slots: the one a slot says, else by its number."""
        said: dict[tuple[str, int], _Found] = {}
        for slot in found:
            first = said.setdefault((slot.tensor, slot.dim), slot) if slot.role else slot
            if first.role != slot.role:
                self.note(f"{slot.where}.role: got {_quoted(slot.role)}, but {first.where} says {_quoted(first.role)}")
        self.settle()
        default = {(slot.tensor, slot.dim): "consumer" if slot.dim else "producer" for slot in found}
        return {**default, **{place: str(slot.role) for place, slot in said.items()}}

    def droppable(
        self, tables: Sequence[GroupTable], found: Sequence[_Found], roles: Mapping[tuple[str, int], str]
    ) -> None:
        read = {slot.group for slot in found if roles[slot.tensor, slot.dim] == "consumer"}
        for table in tables:
            if table.droppable and table.name not in read:
                self.note(
                    f"{_group(table.name)}: droppable: got true, but no slot is a consumer, whose weights dropping a "
                    'unit would set to zero; mend: give its outgoing weights role = "consumer"'
                )
        self.settle()

    def frozen(self, entries: Sequence[Any]) -> tuple[Frozen, ...]:
        kept = []
        for k, values in enumerate(entries):
            where = f"frozen[{k}]"
            table = read_table(FrozenTable, values, where, self.problems)
            name = None if table is None else self.tensor(table.tensor, where)
            if table is None or name is None:
                continue
            shape = self.shapes[name]
            if table.dim >= len(shape) or table.size > shape[table.dim]:
                self.note(f"{where}: got {table.size} of dimension {table.dim}, but {name} has shape {shape}")
            kept.append(Frozen(name, table.dim, table.size, table.reason))
        self.settle()
        return tuple(kept)


def _plain(values: Any) -> Any:
    """Return dicts and lists, as a file would have given, for any mappings and sequences."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    return list(map(_plain, values)) if isinstance(values, Sequence) and not isinstance(values, str) else values


def _quoted(name: str | None) -> str:
    return json.dumps(name, ensure_ascii=False)


def _group(name: str) -> str:
    return f"group {_quoted(name)}"


def _title(values: Any, number: int) -> str:
    """Return how to call a group that may not even have a name."""
    name = values.get("name") if isinstance(values, dict) else None
    return _group(name) if isinstance(name, str) and name else f"group[{number}]"


def _containers_first(tables: list[GroupTable]) -> list[GroupTable]:
    """Return the groups in their order, but each after those it lies in."""
    ordered: list[GroupTable] = []
    placed: set[str] = set()
    waiting = list(tables)
    while waiting:
        table = next(t for t in waiting if placed.issuperset(t.within))
        waiting.remove(table)
        ordered.append(table)
        placed.add(table.name)
    return ordered


def _unit_groups(
    tables: Sequence[GroupTable], found: Sequence[_Found], slots: Mapping[str, Sequence[Slot]]
) -> tuple[UnitGroup, ...]:
    """Return the groups, the slots of each in the order in which they were given."""
    rank: dict[tuple[str, str, int, int, int], int] = {}
    for slot in found:
        rank.setdefault((slot.group, *slot.key[:3], slot.axis), len(rank))
    sizes = {table.name: table.size for table in tables}

    def order(name: str) -> Callable[[Slot], int]:
        return lambda slot: rank[name, slot.tensor, slot.dim, slot.start, slot.at]

    return tuple(
        UnitGroup(
            table.name,
            table.size,
            tuple(sorted(slots[table.name], key=order(table.name))),
            tuple(table.within),
            prod(sizes[outer] for outer in table.within),
            "" if table.droppable else table.bound or UNSAID,
        )
        for table in tables
    )
