"""The permutation spec of a network: its unit groups, the tensor slots they index, and how to permute weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import SymmetryError
from lmccheck.shown import one_line, some
from lmccheck.store.tensors import identity
from lmccheck.symmetry.slots import Frozen, Piece, Place, Slot, UnitGroup
from lmccheck.symmetry.stacks import Stacks, stacked
from lmccheck.symmetry.verify import deviation

Permutation = dict[str, Tensor]
_AT_ONCE = 1 << 20  # numbers permuted at a time where it is done in place


@one_line(lambda spec: f"{spec.shown}; {len(spec.frozen)} frozen axes")
@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of a network.

    ``groups`` are ordered from input to output, containing groups before the ones inside them. ``frozen`` lists what
    cannot move and why; ``unruled`` the ops that had no rule, with how often they occur. ``tied`` maps every name of
    the state dict to the name its storage is known by. ``stacks``: tensors that have slots together only, in which
    whole experts are units; ``shapes`` and ``layouts`` know them by the pattern of their names.
    """

    groups: tuple[UnitGroup, ...]
    frozen: tuple[Frozen, ...] = field(repr=False)
    layouts: Mapping[str, Mapping[int, tuple[Piece, ...]]] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    tied: Mapping[str, str] = field(repr=False)
    unruled: Mapping[str, int] = field(default_factory=dict)
    stacks: Stacks = field(default_factory=dict, repr=False)

    @cached_property
    def by_name(self) -> dict[str, UnitGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def shown(self) -> str:
        """Its groups in a few words."""
        return f"{len(self.groups)} unit groups: {some(f'{g.name} ({g.size})' for g in self.groups)}"

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

    def moving(self, seed: int = 0) -> Permutation:
        """Return a random element in which no group stays as it is; one of two units does so in half of all draws."""
        still = self.identity()
        return {g: p.roll(1, -1) if torch.equal(p, still[g]) else p for g, p in self.random(seed).items()}

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
        together = dict(self._moved_members(weights, permutation))
        result: dict[str, Tensor] = {}
        for name, value in weights.items():
            if name in together:
                result[name] = together[name]
                continue
            if not self.layouts.get(self.tied.get(name, name)):
                result[name] = value
                continue
            if identity(value) not in done:
                done[identity(value)] = value, self.moved(name, value, permutation)
            result[name] = done[identity(value)][1]
        return result

    def _moved_members(
        self, weights: Mapping[str, Tensor], permutation: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of each stack, permuted together; each in memory of its own."""
        for pattern, value in stacked(self.stacks, weights):
            moved = self.moved(pattern, value, permutation)
            yield from ((name, part.clone()) for name, part in zip(self.stacks[pattern], moved, strict=True))

    def move_members_(self, weights: Mapping[str, Tensor], permutation: Mapping[str, Tensor]) -> None:
        """Permute the tensors of each stack in place; those that have slots by themselves are left as they are."""
        for name, moved in self._moved_members(weights, permutation):
            weights[name].copy_(moved)

    def moved(self, name: str, value: Tensor, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return one tensor permuted; the permutation is taken to be a checked one.

        Raises SymmetryError when the tensor's shape does not fit the spec.
        """
        for dim, index in self._steps(name, value, permutation):
            value = _taken(value, dim, index)
        return value

    def move_(self, name: str, value: Tensor, permutation: Mapping[str, Tensor]) -> None:
        """Permute one tensor in place, a slice at a time, so that a large one needs no second copy."""
        for dim, index in self._steps(name, value, permutation):
            along = max((d for d in range(value.ndim) if d != dim), key=lambda d: value.shape[d], default=dim)
            if index.ndim > 1 or along == dim:
                value.copy_(_taken(value, dim, index))
                continue
            rows = max(1, _AT_ONCE * value.shape[along] // max(value.numel(), 1))
            for part in value.split(rows, along):  # type: ignore[no-untyped-call]  # torch leaves it without types
                part.copy_(_taken(part, dim, index))

    def _steps(self, name: str, value: Tensor, permutation: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yield the dimensions to permute, in order, each with the positions its content comes from.

        An index of one dimension holds for all of the tensor; one of as many as the tensor depends on where in the
        other dimensions, already permuted, a position is.
        """
        canonical = self.tied.get(name, name)
        layout = self.layouts.get(canonical, {})
        expected = self.shapes.get(canonical, tuple(value.shape))
        if tuple(value.shape) != expected:
            raise SymmetryError(f"tensor {name}: shape {tuple(value.shape)}, the spec expects {expected}")
        across = {dim: self._across(canonical, dim) for dim in layout}
        waiting = list(layout)
        while waiting:  # a dimension comes after those in which the containing groups of its units lie
            dim = next(d for d in waiting if not any(place.dim in waiting for place in across[d].values()))
            waiting.remove(dim)
            if across[dim]:
                index = self._crossing(expected, dim, layout[dim], across[dim], permutation)
            else:
                index = self.source(layout[dim], expected[dim], permutation)
            yield dim, index.to(value.device)

    def _across(self, tensor: str, dim: int) -> dict[str, Place]:
        """Return the groups in other dimensions of a tensor that contain groups of this one."""
        found: dict[str, Place] = {}
        for slot in self._slots_at.get((tensor, dim), ()):
            found.update(slot.across)
        return found

    @cached_property
    def _slots_at(self) -> dict[tuple[str, int], list[Slot]]:
        table: dict[tuple[str, int], list[Slot]] = {}
        for group in self.groups:
            for slot in group.slots:
                table.setdefault((slot.tensor, slot.dim), []).append(slot)
        return table

    def _crossing(
        self,
        shape: Sequence[int],
        dim: int,
        pieces: tuple[Piece, ...],
        across: Mapping[str, Place],
        permutation: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the index of a dimension whose order depends on the position in other dimensions."""
        others = sorted({place.dim for place in across.values()})
        grids = torch.meshgrid(*(torch.arange(shape[d]) for d in others), indexing="ij")
        unit = {name: _unit_at(place, shape[place.dim]) for name, place in across.items()}
        seen: dict[tuple[int, ...], Tensor] = {}
        rows = []
        for at in zip(*(grid.reshape(-1).tolist() for grid in grids), strict=True):
            position = dict(zip(others, at, strict=True))
            fixed = {name: unit[name][position[place.dim]] for name, place in across.items()}
            key = tuple(fixed.values())
            if key not in seen:
                seen[key] = self.source(pieces, shape[dim], permutation, fixed)
            rows.append(seen[key])
        index = torch.stack(rows).reshape(*(shape[d] for d in others), shape[dim])
        order = [*others, dim]
        index = index.permute([order.index(d) for d in sorted(order)])
        return index.reshape([shape[d] if d in order else 1 for d in range(len(shape))])

    def source(
        self,
        pieces: tuple[Piece, ...],
        size: int,
        permutation: Mapping[str, Tensor],
        fixed: Mapping[str, int] | None = None,
    ) -> Tensor:
        """Return, for each of ``size`` positions along a dimension, the position its content comes from (int64).

        ``fixed`` gives the unit of containing groups that lie in other dimensions.
        """
        if len(pieces) == 1 and pieces[0].covers(size):
            group = self.by_name.get(pieces[0].parts[0].group or "")
            if group is not None and not group.within:
                return permutation[group.name].to("cpu", torch.int64)
        index = torch.arange(size)
        for piece in pieces:
            if not any(part.group for part in piece.parts):
                continue
            by_group: dict[str, Any] = {
                **(fixed or {}),
                **{part.group: c for part, c in zip(piece.parts, piece.coordinates, strict=True) if part.group},
            }
            origin = torch.full([part.size for part in piece.parts], piece.start)
            for part, coordinate in zip(piece.parts, piece.coordinates, strict=True):
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
        return deviation(self, module, example_inputs, weights=weights, trials=trials, seed=seed)


def _taken(value: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``value`` with the positions of a dimension taken from ``index``, of one dimension or of all."""
    return value.index_select(dim, index) if index.ndim == 1 else torch.take_along_dim(value, index, dim)


def _unit_at(place: Place, size: int) -> list[int]:
    """Return, for each of ``size`` positions of a dimension, which unit of the part it belongs to (0 where none)."""
    units = torch.zeros(size, dtype=torch.int64)
    grid = place.piece.positions().movedim(place.at, 0)
    for unit, positions in enumerate(grid.reshape(grid.shape[0], -1)):
        units[positions] = unit
    return list(map(int, units))
