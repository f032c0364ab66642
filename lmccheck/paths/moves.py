"""The elementary moves and what each may change: checked on the weights alone, without running anything.

a  head only: f is affine in t.      b  incoming weights of units that reach nothing: f is constant.
c  outgoing weights between units that compute the same: f is constant.      d  anything: nothing is claimed.
Source: Kuditipudi et al. 2019, Lemmas 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.dropping.edit import changed
from lmccheck.paths.path import Segment
from lmccheck.symmetry.structure import Block, State, Structure


def violation(structure: Structure, segment: Segment, first: State, second: State) -> str | None:
    """Return what a segment changes that its kind does not allow, as one clause; None where the claim holds."""
    both = {*first, *second}
    if missing := [name for name in both if name not in first or name not in second]:
        return f"tensor {missing[0]!r} is only at one end"
    for state in (first, second):
        bad = next((n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
        if bad is not None:
            return f"tensor {bad!r} is not finite"
        below = next((n for n in structure.variances if n in state and bool((state[n] < 0).any())), None)
        if below is not None:
            return f"running variance {below!r} is negative"
    names = changed(sorted(both), first, second)
    if segment.kind == "a":
        wrong = [name for name in names if name not in structure.head and name not in structure.inert]
        return f"tensor {wrong[0]!r} changes, only the head may" if wrong else None
    if segment.kind == "b":
        return _b(structure, names, first, second)
    if segment.kind == "c":
        return _c(structure, segment.twins, names, first, second)
    return None


def _b(structure: Structure, names: list[str], first: State, second: State) -> str | None:
    alive = alive_units(structure, first, second)
    for name in names:
        if name in structure.inert:
            continue
        blocks = structure.rows.get(name)
        if not blocks:
            return f"tensor {name!r} changes, only incoming weights of units without outgoing ones may"
        moved = _lines(first[name] != second[name], blocks[0].dim)
        allowed = torch.zeros_like(moved)
        for block in blocks:
            allowed[block.of((~alive[block.group]).nonzero().flatten())] = True
        if bool((moved & ~allowed).any()):
            at = int((moved & ~allowed).nonzero()[0])
            return f"tensor {name!r} changes at position {at} of dimension {blocks[0].dim}, whose unit is read"
    return None


def alive_units(structure: Structure, *states: State) -> dict[str, Tensor]:
    """Return, per group, which units reach the output through weights that are not zero in any of the states.

    A unit is alive when the head, or an alive unit's row, reads it with a weight other than zero at one of the states;
    on the straight line between two states no other unit is read.
    """
    alive = {group: torch.zeros(structure.sizes[group], dtype=torch.bool) for group in structure.groups}
    reads = {}
    for name, blocks in structure.columns.items():
        used = states[0][name] != 0
        for state in states[1:]:
            used |= state[name] != 0
        reads[name] = _matrix(used, 1 - blocks[0].dim, blocks[0].dim)  # (outputs, inputs)
    while True:
        before = sum(int(units.sum()) for units in alive.values())
        for name, used in reads.items():
            by_alive = used[_read_rows(structure, name, len(used), alive)].any(0)
            for block in structure.columns[name]:
                alive[block.group] |= by_alive[block.positions].any(1)
        if sum(int(units.sum()) for units in alive.values()) == before:
            return alive


def _read_rows(structure: Structure, name: str, size: int, alive: Mapping[str, Tensor]) -> Tensor:
    """Return which outputs of a layer matter: those of alive units, and those that are no unit's."""
    matter = torch.ones(size, dtype=torch.bool)
    for block in structure.rows.get(name, ()):
        matter[block.of((~alive[block.group]).nonzero().flatten())] = False
    return matter


def _c(structure: Structure, twins: Mapping[str, Tensor], names: list[str], first: State, second: State) -> str | None:
    for group, pairs in twins.items():
        units = pairs.reshape(-1)
        if (
            group not in structure.sizes
            or len(units) != len(torch.unique(units))
            or not bool(((units >= 0) & (units < structure.sizes.get(group, 0))).all())
        ):
            return f"the twins of group {group!r} are no pairs of its units"
    for name in names:
        if name in structure.inert:
            continue
        folded = [folded_columns(structure, name, state[name], twins) for state in (first, second)]
        if not torch.equal(*folded):
            return f"tensor {name!r} changes by more than outgoing weights moved between twins"
    for name, blocks in structure.rows.items():
        value = folded_columns(structure, name, first[name], twins)
        for block in blocks:
            if block.group in twins:
                one, other = (block.of(units) for units in twins[block.group].unbind(1))
                if not torch.equal(value.index_select(block.dim, one), value.index_select(block.dim, other)):
                    return f"twins of group {block.group!r} differ in tensor {name!r}"
    return None


def folded_columns(structure: Structure, name: str, value: Tensor, twins: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor with the outgoing weights of every second twin added to those of the first.

    Where twins compute the same, this is all that the outputs depend on.
    """
    for block in structure.columns.get(name, ()):
        if block.group in twins and len(twins[block.group]):
            one, other = (block.of(units) for units in twins[block.group].unbind(1))
            total = value.index_select(block.dim, one) + value.index_select(block.dim, other)
            value = value.index_copy(block.dim, one, total).index_fill(block.dim, other, 0.0)
    return value


def _lines(mask: Tensor, dim: int) -> Tensor:
    """Return which positions along a dimension hold any True."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1)


def _matrix(mask: Tensor, out: int, into: int) -> Tensor:
    """Return a mask over (outputs, inputs), True where any of the remaining positions is."""
    return mask.movedim((out, into), (0, 1)).reshape(mask.shape[out], mask.shape[into], -1).any(2)


def immovable(structure: Structure, theta_a: State, theta_b: State) -> tuple[str, str] | None:
    """Return (tensor, why) of the first number that differs between two networks and that no move can change."""
    for name in changed(theta_a, theta_a, theta_b):
        if name in structure.inert or name in structure.head:
            continue
        blocks: tuple[Block, ...] = structure.rows.get(name, ())
        if not blocks:
            return name, "it is neither a unit's incoming weight nor the last layer's"
        covered = torch.zeros(theta_a[name].shape[blocks[0].dim], dtype=torch.bool)
        for block in blocks:
            covered[block.positions.reshape(-1)] = True
        moved = _lines(theta_a[name] != theta_b[name], blocks[0].dim)
        if bool((moved & ~covered).any()):
            return name, "some of its outputs belong to no unit group"
    return None
