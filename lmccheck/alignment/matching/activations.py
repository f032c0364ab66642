"""How alike the units of two networks respond to the same data: joint moments of what they do, seen in one pass.

All groups are seen at once, at the nodes of the traced graph that outgoing weights read; where a group has no such node
(the query and key dimensions of attention) at those that its incoming weights make.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from itertools import chain
from math import prod

import torch
from torch import Tensor

from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching.reassign import in_turn, nested_groups, reassign
from lmccheck.data.load import Batch
from lmccheck.evaluate.graph import HELD, GraphRunner, even_batches, finite
from lmccheck.evaluate.points import working_dtype
from lmccheck.evaluate.sensitivity import sensitivities
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Part, Piece, UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

# a unit whose deviation is a smaller share of its root mean square never varies, as far as squares of the dtype can say
STILL = {torch.float64: 1e-7, torch.float32: 1e-3}
_COLUMNS = 1 << 16  # samples multiplied at a time, in the working dtype, before they are added up in float64


class Moments:
    """Joint first and second moments of what two networks' units do at one site, over all samples and positions."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._still = 0.0
        self.cross = torch.zeros(width, width, dtype=torch.float64)  # Σ a·bᵀ
        self.sums = torch.zeros(2, width, dtype=torch.float64)
        self.squares = torch.zeros(2, width, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor, where: str = "activations") -> None:
        """Take two (width, samples) matrices in. Raises SourceError, beginning with ``where``, if they are not finite.

        Products are taken in their dtype, in float64 where they overflow.
        """
        self.count += a.shape[1]
        self._still = max(self._still, STILL[a.dtype])
        for left, right in zip(a.split(_COLUMNS, 1), b.split(_COLUMNS, 1), strict=True):  # type: ignore[no-untyped-call]  # torch leaves it without types
            found = _products(left, right)
            if not all(bool(part.isfinite().all()) for part in found):
                found = _products(finite(left, where).double(), finite(right, where).double())
            self.cross += found[0]
            self.sums += torch.stack(found[1:3])
            self.squares += torch.stack(found[3:])

    def similarity(self, kind: str) -> Tensor:
        """Return the (width, width) ``correlation`` (0 where a unit never varies), ``cosine`` or ``cross-moment``."""
        if kind == "cross-moment":
            return self.cross / self.count
        if kind == "cosine":
            return self.cross / torch.outer(*self.squares.sqrt().clamp(min=1e-150))
        means = self.sums / self.count
        deviations = (self.squares / self.count - means**2).clamp(min=0).sqrt()
        scale = torch.where(deviations > self._still * (self.squares / self.count).sqrt(), 1 / deviations, 0.0)
        return (self.cross / self.count - torch.outer(*means)) * torch.outer(*scale)


def _products(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Return a·bᵀ, the sums of both and those of their squares, in float64 on the CPU."""
    return tuple(part.double().cpu() for part in (a @ b.T, a.sum(1), b.sum(1), (a * a).sum(1), (b * b).sum(1)))


def matrix(site: Site, value: Tensor) -> Tensor:
    """Return a site's value as (units of all its groups, samples and everything else)."""
    parts = site.piece.parts
    if all(part.group for part in parts) and value.shape[site.dim] == prod(part.size for part in parts):
        return value.movedim(site.dim, 0).reshape(value.shape[site.dim], -1)
    grid = site.piece.positions()
    lead = [k for k, part in enumerate(parts) if part.group]
    rest = [k for k, part in enumerate(parts) if not part.group]
    index = grid.permute(*lead, *rest).reshape(prod(parts[k].size for k in lead), -1)
    picked = value.index_select(site.dim, index.reshape(-1).to(value.device)).movedim(site.dim, 0)
    return picked.reshape(index.shape[0], -1)


class _BothNetworks:
    """Both networks' traced graphs and weights, and empty moments at sites of the groups."""

    def __init__(self, problem: Problem, method: str, sites: Iterable[Site]) -> None:
        pair = problem.pair
        self.data, self.trace = problem.calibration(method), problem.traced(method).trace
        self.sites = list(dict.fromkeys(sites))
        self.moments = {s: Moments(prod(part.size for part in s.piece.parts if part.group)) for s in self.sites}
        self.watched = {site.node for site in self.sites}
        self.graph = GraphRunner.of(pair.network, working_dtype(pair.theta_a, pair.theta_b), self.trace)
        self.theta_a, self.theta_b = self.graph.weights(pair.theta_a), self.graph.weights(pair.theta_b)

    def batches(self, samples: int | None, held: int | None = None) -> tuple[Batch, ...]:
        """Return the first ``samples`` of the calibration data, at most ``held`` watched numbers a batch."""
        return even_batches(self.data, self.trace, self.watched, samples, held)

    def add(self, node: str, of_a: Tensor, of_b: Tensor) -> None:
        """Take in what a node gave, at every site there."""
        for site in self.sites:
            if site.node == node:
                where = f"{self.data.origin}, activations at {node}"
                self.moments[site].add(matrix(site, of_a), matrix(site, of_b), where)


def observe(
    problem: Problem, method: str, samples: int | None = None, more: Iterable[Site] = ()
) -> dict[Site, Moments]:
    """Return the joint moments of both networks at every site, and ``more``, from one pass over calibration data."""
    both = _BothNetworks(problem, method, chain(*problem.traced(method).sites.values(), more))
    graph, origin = both.graph, both.data.origin
    for batch in both.batches(samples):
        held: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor, held: dict[str, Tensor] = held) -> None:
            held[name] = value

        def add(name: str, value: Tensor, held: dict[str, Tensor] = held) -> None:
            both.add(name, value, held.pop(name))

        graph.run(both.theta_b, batch.inputs, both.watched, keep, f"{origin}, activations of b")
        graph.run(both.theta_a, batch.inputs, both.watched, add, f"{origin}, activations of a")
    return both.moments


def observe_sensitivities(problem: Problem, method: str, samples: int | None = None) -> dict[Site, Moments]:
    """Return the joint moments of what both networks' outputs feel of every unit, where layers give it.

    Outputs are followed in one random direction per sample, the same for both networks; see ``sensitivities``.
    Batches are small, since autograd holds what lies between the values looked at as well.
    """
    both = _BothNetworks(problem, method, chain(*problem.traced(method).made.values()))
    for number, batch in enumerate(both.batches(samples, HELD // 8)):
        felt_a, felt_b = (
            sensitivities(
                both.graph,
                theta,
                batch.inputs,
                both.watched,
                problem.seed + number,
                f"{both.data.origin}, sensitivities of {name}",
            )
            for theta, name in ((both.theta_a, "a"), (both.theta_b, "b"))
        )
        for node in felt_a.keys() & felt_b.keys():
            both.add(node, felt_a[node], felt_b[node])
    return both.moments


class ActivationSimilarity:
    """How alike units respond, for any group, with θ_B's units under a permutation."""

    def __init__(
        self, spec: PermutationSpec, sites: Mapping[str, tuple[Site, ...]], tables: Mapping[Site, Tensor]
    ) -> None:
        self.spec, self.sites, self.tables = spec, sites, tables

    @classmethod
    def of(
        cls, spec: PermutationSpec, sites: Mapping[str, tuple[Site, ...]], moments: Mapping[Site, Moments], kind: str
    ) -> ActivationSimilarity:
        """Return the similarity of a ``kind`` that joint moments at sites give; see ``Moments.similarity``."""
        return cls.instead(spec, sites, dict(moments), kind)

    @classmethod
    def instead(
        cls, spec: PermutationSpec, sites: Mapping[str, tuple[Site, ...]], moments: dict[Site, Moments], kind: str
    ) -> ActivationSimilarity:
        """Return the same; every table takes the place of its ``moments``, which are removed."""
        return cls(spec, sites, {site: moments.pop(site).similarity(kind) for site in [*moments]})

    def units(self, group: UnitGroup, permutation: Permutation) -> Tensor:
        """Return (copies, size, size), the mean over the group's sites; groups inside its units are left out."""
        inside = {child.name for child in nested_groups(self.spec, group)}
        several = [site for site in self.sites.get(group.name, ()) if not inside & set(site.groups)]
        total = torch.zeros(group.copies, group.size, group.size, dtype=torch.float64)
        for site in several:
            total += self._reduced(site, permutation, group.within, [group.name]).reshape(total.shape) / len(several)
        return total

    def blocks(self, group: UnitGroup, permutation: Permutation) -> dict[str, Tensor]:
        """Return, per group directly inside, (size, size, inner, inner)."""
        found = {}
        for child in nested_groups(self.spec, group):
            several = self.sites.get(child.name, ())
            total = torch.zeros(group.size, group.size, child.size, child.size, dtype=torch.float64)
            for site in several:
                total += self._reduced(site, permutation, (), [group.name, child.name]) / len(several)
            found[child.name] = total
        return found

    def _reduced(self, site: Site, permutation: Permutation, kept: tuple[str, ...], matched: list[str]) -> Tensor:
        """Return the site's table with ``kept`` groups as diagonals, ``matched`` ones crossed, others summed over."""
        names = site.groups
        sizes = [self.spec.by_name[name].size for name in names]
        strides = [prod(sizes[k + 1 :]) for k in range(len(sizes))]
        whole = Piece(0, tuple(Part(n, size, stride) for n, size, stride in zip(names, sizes, strides, strict=True)))
        index = self.spec.source((whole,), prod(sizes), permutation)
        table = self.tables[site][:, index].reshape(*sizes, *sizes)
        left = string.ascii_lowercase[: len(names)]
        right = "".join(c.upper() if name in matched else c for c, name in zip(left, names, strict=True))
        at = {name: left[k] for k, name in enumerate(names)}
        out = "".join(at[n] for n in kept) + "".join(at[n] for n in matched) + "".join(at[n].upper() for n in matched)
        # matched = [outer, inner] gives (outer, inner, OUTER, INNER): put the two outer axes first
        reduced = torch.einsum(f"{left}{right}->{out}", table)
        return reduced.transpose(1, 2) if len(matched) == 2 else reduced


def assign_once(spec: PermutationSpec, alike: ActivationSimilarity) -> tuple[Permutation, float]:
    """Assign every group once, containing groups before those inside them; return the summed similarity as well."""
    permutation = spec.identity()
    for group, _ in in_turn(spec):
        step = reassign(spec, group, permutation, alike.units(group, permutation), alike.blocks(group, permutation))
        permutation = step.permutation
    total = sum(float(alike.units(g, permutation).diagonal(dim1=1, dim2=2).sum()) for g in spec.groups)
    return permutation, total
