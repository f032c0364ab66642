"""Where the units of a group lie: parts and pieces of a dimension, the slots of tensors, the groups themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

Named = TypeVar("Named")


@dataclass(frozen=True)
class Part:
    """One factor of a piece: ``size`` positions ``stride`` apart, moved by ``group`` (None: they stay)."""

    group: str | None
    size: int
    stride: int


@dataclass(frozen=True)
class Piece:
    """A product of factors inside one dimension of a tensor, from ``start`` on; outermost part first."""

    start: int
    parts: tuple[Part, ...]

    def positions(self) -> Tensor:
        """Return the positions along the dimension as an int64 tensor with one axis per part; not to be changed."""
        return self._positions

    @cached_property
    def _positions(self) -> Tensor:
        grid = torch.tensor(self.start)
        for part in self.parts:
            grid = grid.unsqueeze(-1) + torch.arange(part.size) * part.stride
        return grid

    @cached_property
    def coordinates(self) -> tuple[Tensor, ...]:
        """Which unit of each part a position belongs to: per part an int64 tensor of the shape of ``positions``."""
        return torch.meshgrid(*(torch.arange(part.size) for part in self.parts), indexing="ij")

    def covers(self, size: int) -> bool:
        """Whether it is one part, of all of a dimension of ``size`` positions in their order."""
        return len(self.parts) == 1 and (self.start, self.parts[0].size, self.parts[0].stride) == (0, size, 1)


@dataclass(frozen=True)
class Frozen:
    """Positions of one dimension of a tensor that no group moves, and why."""

    tensor: str
    dim: int
    size: int
    reason: str


@dataclass(frozen=True)
class Place:
    """Where a group containing this one is found in the same tensor: a part of a piece of another dimension."""

    dim: int
    piece: Piece
    at: int


@dataclass(frozen=True)
class Slot:
    """Where the units of a group live in a tensor.

    Unit u owns ``block`` positions from ``start + r·step + u·stride`` on, for 0 ≤ r < ``repeat``, in dimension ``dim``;
    ``positions`` gives them exactly, also where they are not consecutive. ``role`` is ``producer`` (incoming weights,
    biases, norm vectors, running statistics) or ``consumer`` (outgoing weights). ``learned`` is False for buffers such
    as running statistics; ``vector`` is True for tensors of one number per unit. ``across`` says in which other
    dimension of the tensor a containing group is found, where it is not in this one.
    """

    tensor: str
    dim: int
    role: str
    learned: bool
    vector: bool
    piece: Piece = field(repr=False)
    at: int = field(repr=False)  # which part of the piece is this group
    across: Mapping[str, Place] = field(default_factory=dict, repr=False)

    @property
    def start(self) -> int:
        """First position of the first unit."""
        return self.piece.start

    @property
    def size(self) -> int:
        """Number of units."""
        return self.piece.parts[self.at].size

    @property
    def stride(self) -> int:
        """Distance from one unit to the next."""
        return self.piece.parts[self.at].stride

    @property
    def repeat(self) -> int:
        """How many times the row of units occurs, one after the other."""
        return prod(part.size for part in self.piece.parts[: self.at])

    @property
    def step(self) -> int:
        """Distance from one row of units to the next."""
        return self.piece.parts[self.at - 1].stride if self.at else self.size * self.stride

    @property
    def block(self) -> int:
        """Number of positions a unit owns in one row."""
        return prod(part.size for part in self.piece.parts[self.at + 1 :])

    def positions(self, outer: Sequence[str] = ()) -> Tensor:
        """Return positions along ``dim``, (copies, size, rest) int64, one copy per position of ``outer`` groups."""
        grid = self._grid([name for name in outer if name not in self.across])
        return grid.reshape(-1, self.size, grid[..., 0, :].shape[-1])

    def _grid(self, inside: Sequence[str]) -> Tensor:
        parts = self.piece.parts
        lead = [next(k for k, part in enumerate(parts) if part.group == name) for name in inside]
        rest = [k for k in range(len(parts)) if k != self.at and k not in lead]
        grid = self.piece.positions().permute(*lead, self.at, *rest)
        return grid.reshape(*grid.shape[: len(lead) + 1], -1)

    def is_whole(self, tensor: Tensor, outer: Sequence[str] = ()) -> bool:
        """Whether the units are the positions of one dimension of ``tensor``, all of them and nothing else."""
        return not outer and self.piece.covers(tensor.shape[self.dim])

    def units(self, tensor: Tensor, outer: Sequence[str] = ()) -> Tensor:
        """Return what the units own of ``tensor``: (copies, size, everything else), one copy per ``outer`` position."""
        if self.is_whole(tensor, outer):
            return tensor.movedim(self.dim, 0).reshape(1, self.size, -1)  # all of a dimension: a view of a matrix
        inside = [name for name in outer if name not in self.across]
        views: dict[int, tuple[Tensor, list[str]]] = {self.dim: (self._grid(inside), [*inside, "", "?"])}
        for name in outer:
            if name in self.across:
                place = self.across[name]
                grid = place.piece.positions().movedim(place.at, 0)
                views[place.dim] = grid.reshape(grid.shape[0], -1), [name, "?"]
        labels: list[str] = ["?"] * tensor.ndim
        for dim in sorted(views, reverse=True):
            grid, names = views[dim]
            tensor = tensor.index_select(dim, grid.reshape(-1).to(tensor.device)).unflatten(dim, grid.shape)  # type: ignore[no-untyped-call]  # torch leaves it without types
            labels[dim : dim + 1] = names
        lead = [labels.index(name) for name in (*outer, "")]
        order = [*lead, *(k for k in range(tensor.ndim) if k not in lead)]
        copies = prod(tensor.shape[k] for k in lead[:-1])
        return tensor.permute(order).reshape(copies, self.size, -1)


@dataclass(frozen=True)
class UnitGroup:
    """Units that are permuted together: a name, how many there are, and every slot they occupy.

    ``within`` names the groups whose units contain this one: its permutation is then one row per containing unit,
    an int64 tensor of shape (copies, size) instead of (size,). ``bound`` says why single units may not be dropped
    (an op that combines them other than by outgoing weights, such as LayerNorm); it is empty where they may.
    """

    name: str
    size: int
    slots: tuple[Slot, ...] = field(repr=False)
    within: tuple[str, ...] = ()
    copies: int = 1
    bound: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this group's tensor in a permutation."""
        return (self.copies, self.size) if self.within else (self.size,)

    @property
    def droppable(self) -> bool:
        """Whether setting a unit's outgoing weights (its consumer slots) to zero removes it from the function."""
        return not self.bound


Layouts = Mapping[str, Mapping[int, tuple[Piece, ...]]]  # tensor -> dim -> the pieces in which groups have units


def slots_of(
    layouts: Layouts,
    shapes: Mapping[str, tuple[int, ...]],
    roles: Mapping[tuple[str, int], str],
    learned: Collection[str],
    within: Mapping[str, Sequence[str]],
) -> dict[str, list[Slot]]:
    """Return, per group, the slots its pieces describe.

    ``within`` says which groups contain which; one that is in no other part of the piece is looked for in the other
    dimensions of the tensor. Raises LookupError, with the group's and the container's name, when it is nowhere.
    """
    found: dict[str, list[Slot]] = {}
    for name, dims in layouts.items():
        for dim, pieces in dims.items():
            for piece in pieces:
                for at, part in enumerate(piece.parts):
                    if part.group is None:
                        continue
                    here = {p.group for p in piece.parts}
                    across = {
                        outer: _elsewhere(dims, dim, part.group, outer)
                        for outer in within.get(part.group, ())
                        if outer not in here
                    }
                    slot = Slot(name, dim, roles[name, dim], name in learned, len(shapes[name]) == 1, piece, at, across)
                    found.setdefault(part.group, []).append(slot)
    return found


def places_of(dims: Mapping[int, tuple[Piece, ...]], group: str) -> list[Place]:
    """Return where a group is found in the dimensions of a tensor."""
    return [
        Place(dim, piece, at)
        for dim, pieces in dims.items()
        for piece in pieces
        for at, part in enumerate(piece.parts)
        if part.group == group
    ]


def _elsewhere(dims: Mapping[int, tuple[Piece, ...]], dim: int, inner: str, outer: str) -> Place:
    """Find a containing group in another dimension; it must be there once."""
    places = [place for place in places_of(dims, outer) if place.dim != dim]
    if len(places) != 1:
        raise LookupError(inner, outer)
    return places[0]


def circles(slots: Iterable[Slot]) -> dict[str, list[int]]:
    """Return, per tensor, the dimensions that hold groups within one another's: these have no order to be permuted in.

    Dimensions that depend on such ones are among them.
    """
    leans: dict[str, dict[int, set[int]]] = {}
    for slot in slots:
        on = leans.setdefault(slot.tensor, {}).setdefault(slot.dim, set())
        on.update(place.dim for place in slot.across.values())
    for dims in leans.values():
        while free := [dim for dim in dims if not dims[dim] & dims.keys()]:
            for dim in free:
                del dims[dim]
    return {name: sorted(dims) for name, dims in leans.items() if dims}


def containers_first(within: Mapping[Named, Sequence[Named]]) -> list[Named]:
    """Return the groups in their order, but each after those it lies in; ``within`` names all of these for each.

    >>> containers_first({"inner": ["outer"], "other": [], "outer": []})
    ['other', 'outer', 'inner']
    """
    rank = {group: k for k, group in enumerate(within)}
    return sorted(
        within,
        key=lambda group: (max(rank[one] for one in (group, *within[group])), len(within[group]), rank[group]),
    )
