"""Tensors on their way from one network's units to another's, of other widths, axis by axis."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

import torch
from torch import Tensor

from lmccheck.alignment.matching.reassign import nested_names
from lmccheck.fusion.widths import require_alike, unheld
from lmccheck.symmetry.slots import Piece, Slot
from lmccheck.symmetry.spec import PermutationSpec


class Carrier:
    """θ_B's tensors on their way into A's coordinates, axis by axis, as far as its groups have been placed.

    Plain groups are placed by a transport plan; ``nested`` ones (inside units, or around others) by a permutation.
    Raises UnsupportedArchitecture unless the specs agree in everything but the sizes of plain groups.
    """

    def __init__(self, a: PermutationSpec, b: PermutationSpec) -> None:
        self.a, self.b = a, b
        self.nested = nested_names(a) | nested_names(b)
        require_alike(a, b, self.nested)
        self.permutation = b.identity()  # only nested groups ever leave it
        self.masses: dict[str, Tensor] = {}  # plans times the least common multiple of both sizes: whole numbers
        self._roles = {(slot.tensor, slot.dim): slot.role for group in b.groups for slot in group.slots}

    def place(self, group: str, plan: Tensor) -> None:
        """Take a plain group's transport plan, (n_A, n_B) with equal masses on either side."""
        exact = plan.double() * lcm(*plan.shape)
        whole = exact.round()  # so are the corners of the polytope, up to rounding
        self.masses[group] = whole if torch.allclose(exact, whole, rtol=0.0, atol=1e-6) else exact

    def plan(self, group: str) -> Tensor:
        """Return a plain group's plan, (n_A, n_B) float64, total mass 1."""
        return self.masses[group] / lcm(*self.masses[group].shape)

    def matrix(self, group: str, role: str) -> Tensor:
        """Return what takes B's units to A's, (n_A, n_B): rows sum to 1 for a producer, columns for a consumer."""
        masses = self.masses[group]
        return masses / (lcm(*masses.shape) // masses.shape[0 if role == "producer" else 1])

    def permuted(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor of θ_B with its nested groups permuted."""
        return self.b.moved(name, value, self.permutation) if self.nested else value

    def along(self, name: str, value: Tensor, dim: int) -> Tensor:
        """Return a float64 tensor of θ_B with one dimension brought to A's coordinates."""
        canonical = self.b.tied.get(name, name)
        pieces = [spec.layouts.get(canonical, {}).get(dim, ()) for spec in (self.a, self.b)]
        if not pieces[1]:
            return value
        sizes = [spec.shapes[canonical][dim] for spec in (self.a, self.b)]
        rest_a, rest_b = (unheld(found, size) for found, size in zip(pieces, sizes, strict=True))
        shape = list(value.shape)
        shape[dim] = sizes[0]
        result = value.new_zeros(shape)
        result.index_copy_(dim, rest_a, value.index_select(dim, rest_b))
        for to, source in zip(*pieces, strict=True):
            block = self.moved(_unfolded(value, dim, source), dim, source, self._roles[canonical, dim])
            result.index_copy_(dim, to.positions().reshape(-1), block.flatten(dim, dim + len(to.parts) - 1))
        return result

    def carried(self, name: str, value: Tensor, but: int | None = None) -> Tensor:
        """Return a float64 tensor of θ_B with all its dimensions, save one, brought to A's coordinates."""
        for dim in range(value.ndim):
            value = value if dim == but else self.along(name, value, dim)
        return value

    def moved(self, block: Tensor, dim: int, piece: Piece, role: str) -> Tensor:
        """Return a piece, one axis per part from ``dim`` on, with the groups that are placed in A's coordinates."""
        for axis, part in enumerate(piece.parts, start=dim):
            if part.group in self.masses:
                block = torch.tensordot(self.matrix(part.group, role), block, ([1], [axis])).movedim(0, axis)
        return block

    def rows(self, name: str, value: Tensor, slot: Slot, *, of_b: bool) -> Tensor:
        """Return what the units of a slot own of a float64 tensor, (n, everything else), the rest in A's coordinates.

        Of θ_B's tensor every other dimension must have been brought there; other groups of the same one are, here.
        """
        block = _unfolded(value, slot.dim, slot.piece)
        if of_b:
            block = self.moved(block, slot.dim, slot.piece, self._roles[name, slot.dim])
        return block.movedim(slot.dim + slot.at, 0).flatten(1) if block.ndim > 1 else block[:, None]

    def carry(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all of θ_B in A's coordinates, in θ_B's dtypes; tied names share one tensor."""
        done: dict[str, Tensor] = {}
        for name, value in weights.items():
            canonical = self.b.tied.get(name, name)
            if canonical in done:
                continue
            done[canonical] = value
            if self.b.layouts.get(canonical):
                done[canonical] = self.carried(canonical, self.permuted(name, value).double()).to(value.dtype)
        return {name: done[self.b.tied.get(name, name)] for name in weights}


def _unfolded(value: Tensor, dim: int, piece: Piece) -> Tensor:
    """Return a piece of a dimension of ``value``, with one axis per part in that dimension's place."""
    positions = piece.positions()
    taken = value.index_select(dim, positions.reshape(-1))
    return taken.reshape(*value.shape[:dim], *positions.shape, *value.shape[dim + 1 :])
