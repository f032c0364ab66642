"""The permutation spec of a network: its unit groups, the tensor slots they index, and how to permute weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import SymmetryError
from lmccheck.module import identity

Permutation = dict[str, Tensor]


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
        """Return the positions along the dimension as an int64 tensor with one axis per part."""
        grid = torch.tensor(self.start)
        for part in self.parts:
            grid = grid.unsqueeze(-1) + torch.arange(part.size) * part.stride
        return grid


@dataclass(frozen=True)
class Frozen:
    """Positions of one dimension of a tensor that no group moves, and why."""

    tensor: str
    dim: int
    size: int
    reason: str


@dataclass(frozen=True)
class Slot:
    """Where the units of a group live in a tensor.

    Unit u owns the positions ``start + r·step + u·block + k`` of dimension ``dim`` for 0 ≤ r < ``repeat`` and
    0 ≤ k < ``block``. ``role`` is ``producer`` (incoming weights, biases, norm vectors, running statistics) or
    ``consumer`` (outgoing weights). ``learned`` is False for buffers such as running statistics.
    """

    tensor: str
    dim: int
    start: int
    repeat: int
    step: int
    size: int
    block: int
    role: str
    learned: bool
    piece: Piece = field(repr=False)
    at: int = field(repr=False)  # which part of the piece is this group

    def positions(self, outer: tuple[str, ...] = ()) -> Tensor:
        """Return positions along ``dim``, (copies, size, rest) int64, one copy per position of ``outer`` groups."""
        parts = self.piece.parts
        lead = [next(k for k, part in enumerate(parts) if part.group == name) for name in outer]
        rest = [k for k in range(len(parts)) if k != self.at and k not in lead]
        grid = self.piece.positions().permute(*lead, self.at, *rest)
        copies = prod(parts[k].size for k in lead)
        return grid.reshape(copies, self.size, -1)


@dataclass(frozen=True)
class UnitGroup:
    """Units that are permuted together: a name, how many there are, and every slot they occupy.

    ``within`` names the groups whose units contain this one: its permutation is then one row per containing unit,
    an int64 tensor of shape (copies, size) instead of (size,).
    """

    name: str
    size: int
    slots: tuple[Slot, ...] = field(repr=False)
    within: tuple[str, ...] = ()
    copies: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this group's tensor in a permutation."""
        return (self.copies, self.size) if self.within else (self.size,)


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of a network.

    ``groups`` are ordered from input to output, containing groups before the ones inside them. ``frozen`` lists what
    cannot move and why; ``unruled`` the ops that had no rule, with how often they occur. ``tied`` maps every name of
    the state dict to the name its storage is known by.
    """

    groups: tuple[UnitGroup, ...]
    frozen: tuple[Frozen, ...] = field(repr=False)
    layouts: Mapping[str, Mapping[int, tuple[Piece, ...]]] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    tied: Mapping[str, str] = field(repr=False)
    unruled: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, UnitGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def free_share(self) -> float:
        """Share of the stored numbers that lie in at least one slot (0 to 1)."""
        total = sum(prod(shape) for shape in self.shapes.values())
        free = 0.0
        for name, shape in self.shapes.items():
            still = 1.0
            for dim, size in enumerate(shape):
                moved = sum(
                    prod(part.size for part in piece.parts)
                    for piece in self.layouts.get(name, {}).get(dim, ())
                    if any(part.group for part in piece.parts)
                )
                still *= 1 - moved / size if size else 1.0
            free += prod(shape) * (1 - still)
        return free / total if total else 0.0

    def identity(self) -> Permutation:
        """Return the permutation that leaves everything where it is."""
        return {group.name: torch.arange(group.size).expand(group.shape).clone() for group in self.groups}

    def random(self, seed: int = 0) -> Permutation:
        """Return a uniformly random element of the group, repeatable from ``seed``."""
        generator = torch.Generator().manual_seed(seed)

        def draw(group: UnitGroup) -> Tensor:
            rows = [torch.randperm(group.size, generator=generator) for _ in range(group.copies)]
            return torch.stack(rows) if group.within else rows[0]

        return {group.name: draw(group) for group in self.groups}

    def check(self, permutation: Mapping[str, Tensor]) -> None:
        """Raise SymmetryError unless ``permutation`` has exactly this spec's groups, each a true permutation."""
        missing = [name for name in self.by_name if name not in permutation]
        extra = [name for name in permutation if name not in self.by_name]
        if missing or extra:
            raise SymmetryError(
                f"permutation: missing groups {missing}, unknown groups {extra}; expected one tensor per group"
            )
        for group in self.groups:
            value = permutation[group.name]
            if not isinstance(value, Tensor):
                raise SymmetryError(f"permutation of {group.name}: got {type(value).__name__}, expected a tensor")
            if tuple(value.shape) != group.shape:
                raise SymmetryError(f"permutation of {group.name}: shape {tuple(value.shape)}, expected {group.shape}")
            if not torch.equal(value.cpu().sort(-1).values, torch.arange(group.size).expand(group.shape)):
                raise SymmetryError(f"permutation of {group.name}: not a permutation of 0..{group.size - 1}")

    def apply(self, weights: Mapping[str, Tensor], permutation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``weights`` permuted: position i of a group's units takes what unit ``permutation[group][i]`` was.

        Keys, order, dtypes and sharing (tied tensors) are kept; tensors without slots are returned as they are.
        Raises SymmetryError when the permutation or a tensor's shape does not fit the spec.
        """
        self.check(permutation)
        done: dict[object, tuple[Tensor, Tensor]] = {}  # the originals are held, so that no identity is used twice
        result: dict[str, Tensor] = {}
        for name, value in weights.items():
            layout = self.layouts.get(self.tied.get(name, name))
            if not layout:
                result[name] = value
                continue
            expected = self.shapes[self.tied.get(name, name)]
            if tuple(value.shape) != expected:
                raise SymmetryError(f"tensor {name}: shape {tuple(value.shape)}, the spec expects {expected}")
            if identity(value) not in done:
                moved = value
                for dim, pieces in layout.items():
                    moved = moved.index_select(dim, self.source(pieces, expected[dim], permutation).to(value.device))
                done[identity(value)] = value, moved
            result[name] = done[identity(value)][1]
        return result

    def source(self, pieces: tuple[Piece, ...], size: int, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return, for each of ``size`` positions along a dimension, the position its content comes from (int64)."""
        index = torch.arange(size)
        for piece in pieces:
            sizes = [part.size for part in piece.parts]
            coordinates = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")
            by_group = {part.group: c for part, c in zip(piece.parts, coordinates, strict=True) if part.group}
            origin = torch.full(sizes, piece.start)
            for part, coordinate in zip(piece.parts, coordinates, strict=True):
                if part.group:
                    group = self.by_name[part.group]
                    rows = permutation[part.group].to("cpu", torch.int64)
                    if group.within:
                        copy = torch.zeros_like(coordinate)
                        for outer in group.within:
                            copy = copy * self.by_name[outer].size + by_group[outer]
                        coordinate = rows[copy, coordinate]
                    else:
                        coordinate = rows[coordinate]
                origin = origin + coordinate * part.stride
            index[piece.positions().reshape(-1)] = origin.reshape(-1)
        return index

    def verify(
        self,
        module: nn.Module,
        example_inputs: tuple[Any, ...],
        *,
        weights: Mapping[str, Tensor] | None = None,
        trials: int = 3,
        seed: int = 0,
    ) -> float:
        """Return the largest relative output deviation under random elements of the group, in float64.

        Without ``weights`` parameters and running statistics are drawn at random, so that ones, zeros and equal
        values cannot hide an error. See ``lmccheck.symmetry.verify``.
        """
        from lmccheck.symmetry.verify import deviation

        return deviation(self, module, example_inputs, weights=weights, trials=trials, seed=seed)


def slots_of(
    layouts: Mapping[str, Mapping[int, tuple[Piece, ...]]],
    roles: Mapping[tuple[str, int], str],
    learned: Mapping[str, bool],
) -> dict[str, list[Slot]]:
    """Return, per group, the slots its pieces describe."""
    found: dict[str, list[Slot]] = {}
    for name, dim, piece in _pieces(layouts):
        for at, part in enumerate(piece.parts):
            if part.group is None:
                continue
            outer = piece.parts[:at]
            repeat = prod(p.size for p in outer)
            step = outer[-1].stride if outer else part.size * part.stride
            found.setdefault(part.group, []).append(
                Slot(
                    name,
                    dim,
                    piece.start,
                    repeat,
                    step,
                    part.size,
                    part.stride,
                    roles[name, dim],
                    learned[name],
                    piece,
                    at,
                )
            )
    return found


def _pieces(layouts: Mapping[str, Mapping[int, tuple[Piece, ...]]]) -> Iterator[tuple[str, int, Piece]]:
    for name, dims in layouts.items():
        for dim, pieces in dims.items():
            for piece in pieces:
                yield name, dim, piece
