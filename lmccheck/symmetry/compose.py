"""Composition and inverse of permutations, also where units lie within units: the group a spec describes, as a group.

A position of a group within others is a row, one per containing position, and a place in it. What a permutation puts
there comes from the row the *containing* units came from: in a product of two, the outer one is asked first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec


def compose(spec: PermutationSpec, first: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> Permutation:
    """Return the permutation that does ``first`` and then ``then``; int64 tensors of each group's shape, on the CPU.

    ``spec.apply(spec.apply(w, first), then)`` equals ``spec.apply(w, compose(spec, first, then))`` for all weights w.
    Raises SymmetryError when one of the two does not fit the spec.
    """
    spec.check(first)
    spec.check(then)
    result = {}
    for group in spec.groups:
        early, late = _rows(group, first), _rows(group, then)
        result[group.name] = early[_origin(spec, group, then)].gather(1, late).reshape(group.shape)
    return result


def inverse(spec: PermutationSpec, permutation: Mapping[str, Tensor]) -> Permutation:
    """Return the permutation that undoes ``permutation``: composed with it, on either side, nothing moves.

    int64 tensors of each group's shape, on the CPU. Raises SymmetryError when the permutation does not fit the spec.
    """
    spec.check(permutation)
    result = {}
    for group in spec.groups:
        rows = _rows(group, permutation)
        back = torch.empty_like(rows)
        back[_origin(spec, group, permutation).unsqueeze(1), rows] = torch.arange(group.size).expand_as(rows)
        result[group.name] = back.reshape(group.shape)
    return result


def _rows(group: UnitGroup, permutation: Mapping[str, Tensor]) -> Tensor:
    """Return a group's permutation as (copies, size), one row also where nothing contains it."""
    return permutation[group.name].to("cpu", torch.int64).reshape(group.copies, group.size)


def _origin(spec: PermutationSpec, group: UnitGroup, permutation: Mapping[str, Tensor]) -> Tensor:
    """Return, for each row of a group, the row its units come from (copies,), by where their containers come from.

    A spec lists containers of containers in ``within`` too, so that the row of a containing group is known as well.
    """
    sizes = [spec.by_name[name].size for name in group.within]
    if not sizes:
        return torch.zeros(1, dtype=torch.int64)
    grids = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    position = {name: grid.reshape(-1) for name, grid in zip(group.within, grids, strict=True)}
    came = {}
    for name in group.within:
        outer = spec.by_name[name]
        came[name] = _rows(outer, permutation)[_row(spec, outer, position), position[name]]
    return _row(spec, group, came)


def _row(spec: PermutationSpec, group: UnitGroup, position: Mapping[str, Tensor]) -> Tensor:
    """Return which row of a group belongs to the given positions of the groups that contain it."""
    row = torch.zeros_like(next(iter(position.values())))
    for name in group.within:
        row = row * spec.by_name[name].size + position[name]
    return row
