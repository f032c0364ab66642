"""Soft transport between widths: θ_B brought into the coordinates of a θ_A that has other hidden widths.

Layer by layer the units of B are assigned to those of A by optimal transport between equal masses, B's inputs already
in A's coordinates (Singh & Jaggi 2020, OT fusion), by default in the norm of the activations that A's layers read
(Ferbach et al. 2024). What makes a unit is averaged over the plan, what reads it is summed, so that the mass of every
unit's outgoing weights is kept. Where the plan splits units, or permutes them, the function stays exactly as it was;
where it merges them it does not. Differs from Singh & Jaggi in that biases count, BatchNorm is taken with its layer,
and outgoing weights are summed instead of averaged.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm, prod
from pathlib import Path
from typing import Any

import numpy as np
import ot  # type: ignore[import-untyped]  # POT ships without types
import torch
from torch import Tensor, fx

from lmccheck.align.assignment import assign
from lmccheck.align.method import Problem
from lmccheck.align.norms import counted, merged_norms
from lmccheck.align.reassign import nested_groups, reassign
from lmccheck.align.similarity import WeightSimilarity
from lmccheck.align.transport import by_transport, second_moments
from lmccheck.errors import CheckpointError, LmcError, SourceError, UnsupportedArchitecture, nearest
from lmccheck.evaluate.curve import Evaluator, Measured, first_outputs, relative_deviation
from lmccheck.pair import ModelPair, StateDict, load_pair
from lmccheck.symmetry.discover import Derived, derive
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.spec import Permutation, PermutationSpec, Piece, Slot, UnitGroup
from lmccheck.symmetry.trace import op_name
from lmccheck.symmetry.verify import TOLERANCE, require

Given = str | os.PathLike[str] | StateDict
NORMS = ("activations", "weights")


@dataclass(frozen=True)
class Fusion:
    """θ_B at θ_A's widths.

    ``weights`` have θ_A's shapes and θ_B's dtypes. ``plans``: per group the transport plan, (n_A, n_B) float64, rows
    summing to 1/n_A and columns to 1/n_B; ``costs``: W₂² between the units' incoming weights under it.
    ``permutations``: of attention heads and groups inside them, which are permuted, int64 (copies, n) or (n,).
    ``function_deviation`` is max |f_fused − f_B| / (1 + max |f_B|) in float64 on evaluation data, f_B by B's own
    network; ``function_preserving`` is True only where it is at most 1e-9. ``loss_b`` and ``loss_fused`` are mean
    losses on evaluation data, BatchNorm statistics as they are (those of the fused network are means over the plan).
    """

    weights: dict[str, Tensor] = field(repr=False)
    plans: dict[str, Tensor] = field(repr=False)
    permutations: Permutation = field(repr=False)
    costs: dict[str, float]
    function_preserving: bool
    function_deviation: float
    loss_b: float
    loss_fused: float
    norm: str
    seed: int
    facts: dict[str, Any] = field(repr=False)
    metadata: dict[str, str] = field(repr=False)

    @property
    def statement(self) -> str:
        """What may be said of the function, in words."""
        measured = f"deviation {self.function_deviation:.2e} (relative, float64)"
        if self.function_preserving:
            return f"θ_B was transported softly to θ_A's widths; its function was kept: {measured}"
        return (
            f"θ_B was transported softly to θ_A's widths and is not the same function any more (the map is not "
            f"function-preserving): {measured}; loss {self.loss_b:.4g} before, {self.loss_fused:.4g} after"
        )

    def summary(self) -> dict[str, Any]:
        """Return what a report says about this fusion; JSON-able."""
        return {
            "method": "soft transport",
            "statement": self.statement,
            "function_preserving": self.function_preserving,
            "function_deviation": self.function_deviation,
            "loss_b": self.loss_b,
            "loss_fused": self.loss_fused,
            "norm": self.norm,
            "seed": self.seed,
            "costs": dict(self.costs),
            **self.facts,
        }


def fuse(
    a: Given,
    b: Given,
    *,
    model_a: Any,
    model_b: Any,
    data: Any,
    calibration: Any = None,
    loss: Any = "cross_entropy",
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    norm: str = "activations",
    seed: int = 0,
) -> Fusion:
    """Bring θ_B to the hidden widths of θ_A by soft optimal transport, layer by layer, and return the Fusion.

    ``a``, ``b``: .safetensors file or state dict, of ``model_a`` and ``model_b``, two networks that differ in nothing
    but hidden widths; these, ``data``, ``calibration``, ``loss``, ``device`` and ``base`` as for ``load_pair``.
    ``norm``: ``activations`` compares incoming weights in the norm of the second moments of what A's layers read on
    calibration data, ``weights`` in the plain one. ``seed``: of the verification of both permutation specs.

    Unless B's width divides A's in every group (units are then split), or the widths are equal (permuted), the result
    is not the same function as θ_B; how far it is from it is measured and said. Heads and groups inside units are
    permuted and must be of equal size. Raises LmcError: CheckpointError and SourceError for what cannot be used,
    UnsupportedArchitecture where the networks differ in more than widths, SymmetryError where a spec is wrong.
    Source: Singh & Jaggi 2020, Ferbach et al. 2024.
    """
    pair_a, pair_b = load_both(
        a, b, model_a=model_a, model_b=model_b, data=data, calibration=calibration, loss=loss, device=device, base=base
    )
    return fuse_pairs(pair_a, pair_b, norm=norm, seed=seed)


def load_both(a: Given, b: Given, *, model_a: Any, model_b: Any, data: Any, **options: Any) -> tuple[ModelPair, ...]:
    """Load and check each endpoint with its own network, on the same data; raises as ``load_pair`` does."""
    options["name"] = "-".join(
        Path(given).stem if isinstance(given, (str, os.PathLike)) else f"state dict {key}"
        for key, given in (("a", a), ("b", b))
    )
    pair_a = load_pair(a, a, model=model_a, data=data, **options)
    held = {**options, "calibration": pair_a.calibration, "loss": pair_a.loss}  # batches may come only once
    try:
        return pair_a, load_pair(b, b, model=model_b, data=pair_a.data, **held)
    except CheckpointError as error:  # which calls the first of its two state dicts a
        raise CheckpointError(str(error).replace("state dict a", "state dict b")) from None


def fuse_pairs(pair_a: ModelPair, pair_b: ModelPair, *, norm: str = "activations", seed: int = 0) -> Fusion:
    """Return ``fuse`` of two loaded endpoints: ``theta_a`` of each pair."""
    if norm not in NORMS:
        near = nearest(norm, NORMS) if isinstance(norm, str) else ""
        raise LmcError(f"fuse: norm = {norm!r}{near}; expected one of {list(NORMS)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"fuse: seed = {seed!r}; expected an integer")
    if norm == "activations" and pair_a.calibration is None:
        raise SourceError(
            "fuse: norm = 'activations' needs calibration data and none is given; mend: give `calibration`, for "
            "example the training data, or use norm = 'weights'"
        )
    (derived_a, deviation_a), (derived_b, deviation_b) = (_derived(pair, seed) for pair in (pair_a, pair_b))
    carrier = Carrier(derived_a.spec, derived_b.spec)
    twofold = _twofold(derived_b)
    _require_same_use(carrier, twofold)
    moments = second_moments(Problem(pair_a, derived_a.spec, seed, derived_a), "fuse") if norm == "activations" else {}
    recursion = _Recursion(carrier, derived_a, pair_a.theta_a, pair_b.theta_a, moments, twofold)
    recursion.run()
    weights = carrier.carry(pair_b.theta_a)
    deviation = _deviation(pair_a, pair_b, weights)
    evaluator = Evaluator(replace(pair_a, theta_b=weights, cache={}))
    own = Evaluator(pair_b)
    of_b = _measured(own, pair_b.theta_a, "b")
    of_fused = _measured(evaluator, weights, "b at a's widths")
    facts: dict[str, Any] = {
        "groups": {
            group.name: {"size_a": group.size, "size_b": carrier.b.by_name[group.name].size}
            for group in carrier.a.groups
        },
        "order": recursion.placed,
        "left_in_order": recursion.left,
        "plain_norm": recursion.plain(),
        "errors": {"b": of_b.error, "fused": of_fused.error},
        "spec_deviation": {"a": deviation_a, "b": deviation_b},
        "batchnorm": None,
    }
    if evaluator.batchnorms:
        facts["batchnorm"] = _batchnorm_facts(evaluator, weights)
    facts["evaluations"] = own.evaluations + evaluator.evaluations
    return Fusion(
        weights,
        {name: carrier.plan(name) for name in carrier.masses},
        {name: carrier.permutation[name] for name in carrier.a.by_name if name in carrier.nested},
        recursion.costs,
        deviation <= TOLERANCE,
        deviation,
        of_b.loss,
        of_fused.loss,
        norm,
        seed,
        facts,
        dict(pair_b.origins[0].metadata),
    )


class Carrier:
    """θ_B's tensors on their way into A's coordinates, axis by axis, as far as its groups have been placed.

    Plain groups are placed by a transport plan; ``nested`` ones (inside units, or around others) by a permutation.
    Raises UnsupportedArchitecture unless the specs agree in everything but the sizes of plain groups.
    """

    def __init__(self, a: PermutationSpec, b: PermutationSpec) -> None:
        self.a, self.b = a, b
        self.nested = {name for spec in (a, b) for g in spec.groups if g.within for name in (g.name, *g.within)}
        _require_alike(a, b, self.nested)
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
        rest_a, rest_b = (_rest(found, size) for found, size in zip(pieces, sizes, strict=True))
        shape = list(value.shape)
        shape[dim] = sizes[0]
        result = value.new_zeros(shape)
        result.index_copy_(dim, rest_a, value.index_select(dim, rest_b))
        for to, source in zip(*pieces, strict=True):
            block = self.moved(_unfolded(value, dim, source), dim, source, self._roles[canonical, dim])
            result.index_copy_(dim, to.positions().reshape(-1), block.flatten(dim, dim + len(to.parts) - 1))
        return result

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
                moved = self.permuted(name, value).double()
                for dim in range(moved.ndim):
                    moved = self.along(canonical, moved, dim)
                done[canonical] = moved.to(value.dtype)
        return {name: done[self.b.tied.get(name, name)] for name in weights}


def _unfolded(value: Tensor, dim: int, piece: Piece) -> Tensor:
    """Return a piece of a dimension of ``value``, with one axis per part in that dimension's place."""
    positions = piece.positions()
    taken = value.index_select(dim, positions.reshape(-1))
    return taken.reshape(*value.shape[:dim], *positions.shape, *value.shape[dim + 1 :])


def _rest(pieces: Sequence[Piece], size: int) -> Tensor:
    """Return the positions of a dimension that no piece holds, in order."""
    free = torch.ones(size, dtype=torch.bool)
    for piece in pieces:
        free[piece.positions().reshape(-1)] = False
    return free.nonzero()[:, 0]


class _Recursion:
    """Places B's groups one after the other, by their incoming weights; fills the carrier and the costs.

    ``twofold``: tensors that both make and read units, whose rows count as incoming weights too.
    """

    def __init__(
        self,
        carrier: Carrier,
        derived: Derived,
        theta_a: Mapping[str, Tensor],
        theta_b: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        twofold: set[str],
    ) -> None:
        self.carrier = carrier
        self.layers = derived.layers
        self.moments = moments
        self.twofold = twofold
        self.placed: list[str] = []
        self.left: list[str] = []
        self.costs: dict[str, float] = {}
        self._a = _comparable(carrier.a, theta_a, derived.layers)
        self._b = _comparable(carrier.b, theta_b, derived.layers)
        self._layer_of = {
            name: layer
            for layer in derived.layers
            for name in (layer.bias, *((layer.norm.weight, layer.norm.bias) if layer.norm else ()))
            if name is not None
        }

    def run(self) -> None:
        """Place every group: in the network's order, those first whose incoming weights can be compared by now."""
        pending = list(self.carrier.a.groups)
        while pending:
            # the first of the best; where there is none, first those that may stay in the order they have
            group = max(pending, key=lambda group: self._evidence(group) or 0.5 * self._may_stay(group))
            if not self._evidence(group):
                self._leave(group)
                pending.remove(group)
                continue
            names = self._place_nested(group) if group.name in self.carrier.nested else self._place(group)
            self.placed += [other.name for other in pending if other.name in names]
            pending = [other for other in pending if other.name not in names]

    def _may_stay(self, group: UnitGroup) -> bool:
        return group.size == self.carrier.b.by_name[group.name].size

    def _leave(self, group: UnitGroup) -> None:
        """Leave units in order that cannot be compared: recurrent ones, or two groups known only together."""
        if not self._may_stay(group):
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has no incoming weights that can be compared before other groups are "
                "placed which wait for it, expected a layer that reads inputs or earlier units; mend: fuse networks "
                "of one width there"
            )
        if group.name not in self.carrier.nested:
            self.carrier.place(group.name, torch.eye(group.size, dtype=torch.float64) / group.size)
        self.left.append(group.name)
        self.placed.append(group.name)

    def plain(self) -> list[str]:
        """Return the matrices that were compared in the plain norm."""
        weighed = {layer.weight for layer in self._weighed_layers()}
        incoming = {s.tensor for g in self.carrier.a.groups for s in g.slots if self._incoming(s)}
        return sorted(name for name in incoming & set(self._a) if self._a[name].ndim > 1 and name not in weighed)

    def _place(self, group: UnitGroup) -> set[str]:
        """Place a plain group by its transport plan."""
        cost = self._cost(group)
        plan = transport_plan(cost)
        self.carrier.place(group.name, plan)
        self.costs[group.name] = float((self.carrier.plan(group.name) * cost).sum())
        return {group.name}

    def _place_nested(self, group: UnitGroup) -> set[str]:
        """Permute a group of heads, or inside units, and what is directly inside it; return their names."""
        carrier = self.carrier
        family = [group, *nested_groups(carrier.a, group)]
        slots = [slot for member in family for slot in member.slots if self._comparable(slot, member)]
        tensors = {}
        for slot in slots:
            moved = self._b[slot.tensor]
            for dim in range(moved.ndim):
                moved = carrier.along(slot.tensor, moved, dim)
            tensors[slot.tensor] = moved
        weighed = self._weighed({name: self._a[name] for name in tensors}, {slot.tensor: slot.dim for slot in slots})
        start = {**carrier.a.identity(), **{name: carrier.permutation[name] for name in carrier.nested}}
        state = WeightSimilarity(carrier.a, weighed, tensors, start)
        step = reassign(
            carrier.a,
            group,
            state.permutation,
            state.units(group, self._incoming),
            state.blocks(group, self._incoming),
            by_transport,
        )
        carrier.permutation.update({name: step.permutation[name] for name in carrier.nested})
        return {member.name for member in family}

    def _cost(self, group: UnitGroup) -> Tensor:
        """Return the squared distance of A's and B's units, (n_A, n_B) float64, B's inputs in A's coordinates."""
        carrier = self.carrier
        twins = dict(_numbered(carrier.b.by_name[group.name]))
        pairs = [(slot, twins[key]) for key, slot in _numbered(group) if self._comparable(slot, group)]
        keep = {slot.tensor: slot.dim for slot, _ in pairs}
        left = {name: self._a[name] for name in keep}
        right = {}
        for name, kept in keep.items():
            value = carrier.permuted(name, self._b[name])
            for dim in range(value.ndim):
                value = value if dim == kept else carrier.along(name, value, dim)
            right[name] = value
        left_weighed, right_weighed = self._weighed(left, keep), self._weighed(right, keep)
        total = torch.zeros(group.size, carrier.b.by_name[group.name].size, dtype=torch.float64)
        for slot_a, slot_b in pairs:
            name = slot_a.tensor
            x, x_weighed = (carrier.rows(name, v[name], slot_a, of_b=False) for v in (left, left_weighed))
            y, y_weighed = (carrier.rows(name, v[name], slot_b, of_b=True) for v in (right, right_weighed))
            total += (x * x_weighed).sum(1)[:, None] + (y * y_weighed).sum(1) - 2 * x_weighed @ y.T
        return total.clamp(min=0.0)

    def _weighed(self, tensors: Mapping[str, Tensor], keep: Mapping[str, int]) -> dict[str, Tensor]:
        """Return W·Σ for the layers with second moments; else the mean over what a unit owns, if Σ is asked for."""
        result = dict(tensors)
        if not self.moments:
            return result
        for name, tensor in tensors.items():
            if tensor.ndim > 1:
                result[name] = tensor / max(1, prod(n for dim, n in enumerate(tensor.shape) if dim != keep[name]))
        for layer in self._weighed_layers():
            if layer.weight not in tensors:
                continue
            weight = tensors[layer.weight].movedim(layer.out, 0)
            shift = self._shift(layer)
            bias = tensors[shift] if shift in tensors else weight.new_zeros(len(weight))
            product = torch.cat([weight.flatten(1), bias[:, None]], 1) @ self.moments[layer.node]
            result[layer.weight] = product[:, :-1].reshape(weight.shape).movedim(0, layer.out)
            if shift in tensors:
                result[shift] = product[:, -1]
        return result

    def _weighed_layers(self) -> Iterator[Layer]:
        return (layer for layer in self.layers if layer.node in self.moments)

    def _shift(self, layer: Layer) -> str:
        """Return the name under which a layer's bias counts: its own, or that of the BatchNorm taken with it."""
        norm = layer.norm.bias if layer.norm is not None else None
        return norm if norm is not None and norm in self._a else layer.bias or ""

    def _incoming(self, slot: Slot) -> bool:
        return slot.role == "producer" or slot.tensor in self.twofold

    def _evidence(self, group: UnitGroup) -> int:
        """Return 2 where a matrix of incoming weights can be compared by now, 1 where a vector can, else 0."""
        return max((1 + (not slot.vector) for slot in group.slots if self._comparable(slot, group)), default=0)

    def _comparable(self, slot: Slot, group: UnitGroup) -> bool:
        """Whether a slot holds incoming weights of which all but the group itself is in A's coordinates by now."""
        if slot.tensor not in self._a or not self._incoming(slot):
            return False
        layer = self._layer_of.get(slot.tensor)  # a bias alone says little: it waits for its layer
        tensor, kept = (layer.weight, layer.out) if layer and layer.weight in self._a else (slot.tensor, slot.dim)
        layout = self.carrier.a.layouts.get(tensor, {})
        if group.name in self.carrier.nested:  # others of its kind are only out of order until they are placed
            return self._settled(layout, {*layout}, self.carrier.nested)
        beside = {part.group for at, part in enumerate(slot.piece.parts) if at != slot.at} - {None}
        return beside <= {*self.placed} and self._settled(layout, {*layout} - {kept}, set())

    def _settled(self, layout: Mapping[int, Sequence[Piece]], dims: set[int], free: set[str]) -> bool:
        """Whether every group in some dimensions of a tensor is placed, or ``free`` not to be."""
        groups = {part.group for dim in dims for piece in layout[dim] for part in piece.parts} - {None}
        return groups <= {*self.placed, *free}


def _numbered(group: UnitGroup) -> Iterator[tuple[tuple[str, int, int, int], Slot]]:
    """Yield a group's slots, each with its place and its number among those in that place: the same in both specs."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for slot in group.slots:
        place = slot.tensor, slot.dim, slot.at
        yield (*place, seen[place]), slot
        seen[place] += 1


def transport_plan(cost: Tensor) -> Tensor:
    """Return the optimal transport plan between equal masses, (n_A, n_B) float64 with total mass 1.

    ``cost``: (n_A, n_B), at least 0. Between equally many it is a permutation, divided by their number.
    """
    table = cost.double().cpu().numpy()
    rows, columns = table.shape
    plan = torch.from_numpy(
        ot.emd(np.full(rows, 1 / rows), np.full(columns, 1 / columns), table / max(table.max(), 1e-300), 10_000_000)
    )
    if rows == columns and not torch.equal((plan * rows).round().sum(0), torch.ones(columns, dtype=torch.float64)):
        plan = torch.zeros_like(plan)  # ties may be returned as a mixture of permutations
        plan[torch.arange(rows), assign(-cost).permutation] = 1 / rows
    return plan


def _comparable(spec: PermutationSpec, theta: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the tensors units are compared by, float64, every BatchNorm merged with its layer."""
    wide = {name: tensor.detach().double() for name, tensor in theta.items() if tensor.is_floating_point()}
    return merged_norms(counted(spec, wide), wide, layers)


def _derived(pair: ModelPair, seed: int) -> tuple[Derived, float]:
    """Trace a pair's network; return it, and by how much its permutation spec was seen to deviate."""
    inputs = pair.example_inputs()
    derived = derive(pair.module, inputs)
    return derived, require(derived.spec, pair.module, inputs, seed=seed)


_MEND = "mend: fuse networks that differ in nothing but hidden widths"


def _require_alike(a: PermutationSpec, b: PermutationSpec, nested: set[str]) -> None:
    """Raise UnsupportedArchitecture unless two specs agree in everything but the sizes of groups not nested."""
    for mine, other, whose, others in ((a, b, "a", "b"), (b, a, "b", "a")):
        for name in mine.shapes:
            if name not in other.shapes:
                raise UnsupportedArchitecture(
                    f"fuse: tensor {name!r} is in {whose} and not in {others}, expected the same tensors; {_MEND}"
                )
        for group in mine.groups:
            if group.name not in other.by_name:
                raise UnsupportedArchitecture(
                    f"fuse: group {group.name!r} ({group.size} units) of {whose} is none in {others}, expected the "
                    f"same groups (a width of one has none); {_MEND}"
                )
    for name in a.tied:
        if a.tied[name] != b.tied.get(name):
            raise UnsupportedArchitecture(
                f"fuse: tensor {name!r} is one with {a.tied[name]!r} in a and with {b.tied.get(name)!r} in b, expected "
                f"the same ties; {_MEND}"
            )
    for group in a.groups:
        twin = b.by_name[group.name]
        if group.within != twin.within:
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} lies within {list(group.within)} in a and {list(twin.within)} in b, "
                f"expected the same nesting; {_MEND}"
            )
        if group.name in nested and (group.size, group.copies) != (twin.size, twin.copies):
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has {group.copies} × {group.size} units in a and {twin.copies} × "
                f"{twin.size} in b; heads and groups inside units are only permuted, expected equal sizes; mend: fuse "
                "networks with equally many heads of equal width"
            )
        if (used := _uses(group)) != (used_b := _uses(twin)):
            tensor, dim, _ = sorted((used - used_b) or (used_b - used))[0]
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} uses dimension {dim} of tensor {tensor!r} otherwise in a than in b, "
                f"expected the same slots; {_MEND}"
            )
    for name, shape in a.shapes.items():
        _require_same_layout(name, shape, b.shapes[name], a.layouts.get(name, {}), b.layouts.get(name, {}))


def _uses(group: UnitGroup) -> Counter[tuple[str, int, str]]:
    return Counter((slot.tensor, slot.dim, slot.role) for slot in group.slots)


def _require_same_layout(
    name: str,
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    layout_a: Mapping[int, tuple[Piece, ...]],
    layout_b: Mapping[int, tuple[Piece, ...]],
) -> None:
    """Raise UnsupportedArchitecture unless a tensor differs in nothing but the sizes of the groups in it."""
    if len(shape_a) != len(shape_b):
        raise UnsupportedArchitecture(
            f"fuse: tensor {name!r} has shape {shape_a} in a and {shape_b} in b, expected equally many dimensions; "
            f"{_MEND}"
        )
    for dim, sizes in enumerate(zip(shape_a, shape_b, strict=True)):
        pieces_a, pieces_b = layout_a.get(dim, ()), layout_b.get(dim, ())
        if _kinds(pieces_a) != _kinds(pieces_b):
            raise UnsupportedArchitecture(
                f"fuse: dimension {dim} of tensor {name!r} holds other groups, or holds them otherwise, in a "
                f"({sizes[0]}) than in b ({sizes[1]}), expected one layout; {_MEND}"
            )
        rest = [len(_rest(pieces, size)) for pieces, size in zip((pieces_a, pieces_b), sizes, strict=True)]
        if rest[0] != rest[1]:
            raise UnsupportedArchitecture(
                f"fuse: dimension {dim} of tensor {name!r} has {rest[0]} positions in a and {rest[1]} in b that belong "
                f"to no group of hidden units, expected equally many; {_MEND}, inputs and outputs alike"
            )


def _kinds(pieces: Sequence[Piece]) -> list[list[str | int]]:
    """Return what the pieces of a dimension are made of: names of groups, sizes of what no group moves."""
    return [[part.group or part.size for part in piece.parts] for piece in pieces]


def _twofold(derived: Derived) -> set[str]:
    """Return the stored tensors that the graph reads in two ways, as tied weights are: a table, and a layer."""
    traced = derived.trace
    uses: dict[str, set[tuple[str, int]]] = {}
    for node in traced.graph.nodes:
        for place, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.op == "placeholder":
                holder = traced.placeholders[argument.name]
                if holder.stored and node.op != "output":
                    name = traced.tied.get(holder.target, holder.target)
                    uses.setdefault(name, set()).add((op_name(node.target), place))
    return {name for name, found in uses.items() if len(found) > 1}


def _require_same_use(carrier: Carrier, twofold: set[str]) -> None:
    """Raise UnsupportedArchitecture where a tensor would have to be averaged and summed at once."""
    for group in carrier.a.groups:
        twin = carrier.b.by_name[group.name]
        tied = next((s.tensor for s in group.slots if s.role == "consumer" and s.tensor in twofold), None)
        if tied is not None and group.size != twin.size:
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has {group.size} units in a and {twin.size} in b, and tensor {tied!r} "
                "both makes and reads them (tied weights): it cannot be averaged and summed at once; expected equal "
                "sizes; mend: untie the weights"
            )


def _measured(evaluator: Evaluator, weights: Mapping[str, Tensor], name: str) -> Measured:
    """Measure weights with their own statistics. Raises SourceError when the loss is not finite."""
    found = evaluator.measure(evaluator.weights(weights), reestimate=False, label=name)
    bad = (~found.losses.isfinite()).nonzero()
    if len(bad):
        k, pair = int(bad[0]), evaluator.pair
        raise SourceError(
            f"fuse: {name}: its {pair.loss.name} on {pair.data.origin} is {float(found.losses[k])} at sample {k} "
            f"({len(bad)} of {len(found.losses)} samples), expected finite losses; mend: check the checkpoint and the "
            "loss"
        )
    return found


def _batchnorm_facts(evaluator: Evaluator, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a report says of the fused network's BatchNorm; JSON-able."""
    known = bool(evaluator.calibration)
    again = evaluator.measure(evaluator.weights(weights), reestimate=True, label="b at a's widths") if known else None
    return {
        "layers": evaluator.batchnorms,
        "note": "running statistics are means over the plan, wrong where units are merged: re-estimate them",
        "loss_fused_reestimated": again.loss if again is not None else None,
    }


def _deviation(pair_a: ModelPair, pair_b: ModelPair, weights: Mapping[str, Tensor]) -> float:
    """Return max |f_A(weights) − f_B(θ_B)| / (1 + max |f_B|) on the first evaluation samples, in float64."""
    where = f"{pair_b.data.origin}, comparing b before and after fusion"
    before, after = (first_outputs(pair, state, where) for pair, state in ((pair_b, pair_b.theta_a), (pair_a, weights)))
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1] or not any(tensor.numel() for tensor in before):
        raise UnsupportedArchitecture(
            f"fuse: on {where} a's network returns {shapes[1][:3]} and b's {shapes[0][:3]}, expected floating tensors "
            f"of one shape; {_MEND}, which return no hidden states"
        )
    return relative_deviation(before, after)
