"""Which head of B goes with which of A: the one that gains most by the best maps of its coordinates.

Before such maps are known a head's queries, keys and values cannot be compared number by number, so that an order of
heads found by weights is half a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lmccheck.alignment.beyond.fit import polar
from lmccheck.alignment.beyond.freedoms import Freedom
from lmccheck.alignment.beyond.rotary import Planes
from lmccheck.alignment.matching.activations import ActivationSimilarity, Moments
from lmccheck.alignment.matching.assignment import assign
from lmccheck.alignment.matching.reassign import by_assignment, reassign
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

ROUNDS = 4  # of maps fitted to an order of query heads, and the order to the maps


def order_heads(
    spec: PermutationSpec,
    freedoms: list[Freedom],
    alike: ActivationSimilarity,
    moments: Mapping[Site, Moments],
    permutation: Permutation,
) -> Permutation:
    """Return ``permutation`` with heads reassigned by what their best maps would gain.

    ``permutation`` is relative to weights already permuted; a head carries its inner groups along. Heads of rotary
    attention that have head maps are compared by their planes too, and queries that share a key ordered among
    themselves.
    """
    mapped = {freedom.group for freedom in freedoms if freedom.kind == "head-maps"}
    turned = {freedom.group: freedom for freedom in freedoms if freedom.planes is not None and freedom.sites}
    result = dict(permutation)
    for group in spec.groups:
        inside = [g for g in spec.groups if g.within == (group.name,)]
        if group.name in turned:
            within = turned[group.name].units.within
            maps = [freedom for freedom in freedoms if freedom.kind == "head-maps" and freedom.units.within == within]
            sites = [
                site for freedom in maps for site in alike.sites.get(freedom.group, ()) if group.name in site.groups
            ]
            whole = bool(sites) and (bool(within) or not inside)  # where values keep their order, heads keep theirs
            heads = _Heads.of(spec, group, turned[group.name], sites, moments) if whole else None
            if heads is not None:
                result = heads.ordered(result)
                continue
        if group.within or not inside or not {g.name for g in inside} <= mapped:
            continue
        gains = torch.zeros(group.size, group.size, dtype=torch.float64)
        for blocks in alike.blocks(group, spec.identity()).values():
            norms = torch.linalg.svdvals(blocks).sum(-1)
            gains += norms / norms.max().clamp(min=1e-30)
        order = assign(gains).permutation
        result[group.name] = order
        for other in spec.groups:
            if other.within == (group.name,):
                result[other.name] = result[other.name][order]
    return result


@dataclass(frozen=True)
class _Heads:
    """How alike head u of A and v of B are, by activations, in what the best maps of both can make alike.

    Of h heads of keys s query heads share each; ``outer`` are the former, None where there is one, and ``shared`` the
    latter, None where they are the same. ``planes`` are Σ a·b̄ of queries and keys, (h, h, s, s, planes), where s is 1
    if nothing is shared, and ``values`` Σ a·bᵀ of coordinates that have head maps, (h, h, s, s, size, size), as shares
    of what the lengths allow: both are alike by 1 at most. A plane counts by its part in q·k.
    """

    spec: PermutationSpec
    outer: UnitGroup | None
    shared: UnitGroup | None
    turned: Planes
    planes: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(
        cls,
        spec: PermutationSpec,
        group: UnitGroup,
        turned: Freedom,
        sites: Sequence[Site],
        moments: Mapping[Site, Moments],
    ) -> _Heads | None:
        """Return the heads of a group; None where others lie in them than queries that share a key."""
        assert turned.planes is not None
        outer = group if turned.units.within else None
        first = int(outer is not None)
        between = {name for site in (*turned.sites, *sites) for name in site.groups[first:-1]}
        inner = [g for g in spec.groups if g.name in between]
        holds = any(g.name in other.within for g in inner for other in spec.groups)
        known = all(site.groups[:first] == (group.name,)[:first] for site in (*turned.sites, *sites))
        if len(inner) > 1 or holds or not known or all(len(site.groups) > 1 + first for site in turned.sites):
            return None
        seen = [_between_heads(site, moments[site], first) for site in turned.sites]
        lengths = [turned.planes.lengths(squares.sum(2)).sqrt().clamp(min=1e-30) for _, squares in seen]
        allowed = [torch.einsum("uj,vj->uvj", *length) for length in lengths]
        part = allowed[0] * allowed[1]
        part = part / part.sum(-1, keepdim=True)
        planes = [
            turned.planes.products(cross) * (part / most / 2)[:, :, None, None]
            for (cross, _), most in zip(seen, allowed, strict=True)
        ]
        values = []
        for site in sites:
            cross, squares = _between_heads(site, moments[site], first)
            most = torch.outer(*squares.sum((2, 3)).sqrt().clamp(min=1e-30))
            values.append(cross / most[:, :, None, None, None, None] / len(sites))
        return cls(spec, outer, next(iter(inner), None), turned.planes, planes, values)

    def ordered(self, permutation: Permutation) -> Permutation:
        """Return ``permutation`` with the heads, and queries that share a key, in the order that gains most."""
        size = 1 if self.shared is None else self.shared.size
        turns = self._turns([table for table in self.planes if table.shape[2] == 1], torch.ones(1, 1))
        rotations: list[Tensor] = []  # not known before an order is
        blocks: dict[str, Tensor] = {}
        for _ in range(ROUNDS if self.shared is not None else 0):
            gains = self._gains(turns, rotations, size)
            chosen = torch.stack([by_assignment(one).permutation for one in gains.flatten(0, 1)])
            order = torch.nn.functional.one_hot(chosen, size).reshape(gains.shape)
            turns = self._turns(self.planes, order)
            rotations = [polar(_chosen(table, order)) for table in self.values]
        alike = self._gains(turns, rotations, size)
        if self.outer is None:
            return (
                permutation
                if self.shared is None
                else reassign(self.spec, self.shared, permutation, alike[0], {}).permutation
            )
        if self.shared is not None:
            blocks[self.shared.name], alike = alike, self._gains(turns, rotations, 1)
        return reassign(self.spec, self.outer, permutation, alike[None, :, :, 0, 0], blocks).permutation

    def _turns(self, tables: list[Tensor], order: Tensor) -> Tensor:
        """Return the angle of every plane that makes most alike, as a number of length 1: (h, h, planes)."""
        together = torch.stack([_chosen(table, order) for table in tables]).sum(0)
        return self.turned.nearest(torch.ones_like(together.real), together)

    def _gains(self, turns: Tensor, rotations: list[Tensor], size: int) -> Tensor:
        """Return what maps make alike of queries that share keys, or of what is not shared: (h, h, size, size)."""
        heads = 1 if self.outer is None else self.outer.size
        total = torch.zeros(heads, heads, size, size, dtype=torch.float64)
        for table in self.planes:
            if table.shape[2] == size:
                total += (table * turns.conj()[:, :, None, None]).real.sum(-1)
        for k, table in enumerate(self.values):
            if table.shape[2] == size and not rotations:
                total += torch.linalg.svdvals(table).sum(-1)
            elif table.shape[2] == size:
                total += (table * rotations[k][:, :, None, None]).sum((-2, -1))
        return total


def _between_heads(site: Site, found: Moments, outer: int) -> tuple[Tensor, Tensor]:
    """Return Σ a·bᵀ between heads, (h, h, s, s, size, size), and Σ a² and Σ b², (2, h, s, size).

    ``outer`` is 1 where the first group of the site is h heads, 0 where h is 1.
    """
    *heads, size = (part.size for part in site.piece.parts if part.group)
    shape = (prod(heads[:outer]), prod(heads[outer:]), size)
    return found.cross.reshape(*shape, *shape).permute(0, 3, 1, 4, 2, 5), found.squares.reshape(2, *shape)


def _chosen(table: Tensor, order: Tensor) -> Tensor:
    """Return the sum over query heads that ``order``, (h, h, s, s) of 0 and 1, puts together."""
    if table.shape[2] == 1:
        return table[:, :, 0, 0]
    return (table * order.reshape(*order.shape, *[1] * (table.ndim - 4))).sum((2, 3))
