"""Experts of θ_B in the order of θ_A's, found by weights, before a method looks at the units inside them.

Whether two experts go together shows in all that they store and in their rows of the router: weight matching decides it
for all groups at once. A method then sees θ_B with its experts in that order, and the network as it was traced. Where
experts are stacked in tensors of the module's own, the trace knows one order of units for all of them: what weight
matching found of each one's units is kept, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmccheck.alignment.methods.weight_matching import match
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.freed import WHOLE
from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec


@dataclass(frozen=True)
class Ordered:
    """A pair with θ_B's experts put in order, and by which permutation of the whole spec; None where nothing is."""

    pair: ModelPair = field(repr=False)
    order: Permutation | None = field(repr=False)

    def in_all(self, permutation: Permutation) -> Permutation:
        """Return a permutation of the network's own spec, found for ``pair``, as one of its whole spec for θ_B."""
        network = self.pair.network
        if self.order is None:
            return permutation
        return compose(network.whole_spec, self.order, lifted(network.whole_spec, network.spec, permutation))


def ordered(pair: ModelPair, seed: int) -> Ordered:
    """Return a pair with the experts of θ_B in the order of those of θ_A, where the network has any that may move."""
    network = pair.network
    if network.given is not None or all(group.bound != WHOLE for group in network.whole_spec.groups):
        return Ordered(pair, None)
    whole = network.whole_spec
    layers = network.traced.layers if network.traced is not None else ()
    found = match(whole, pair.theta_a, pair.theta_b, seed=seed, layers=layers).permutation
    still = whole.identity()
    kept = {g.name for g in whole.groups if g.bound == WHOLE or _stacked_by_itself(whole, g)}
    order = {name: found[name] if name in kept else unmoved for name, unmoved in still.items()}
    return Ordered(pair.with_weights(pair.theta_a, whole.apply(pair.theta_b, order)), order)


def _stacked_by_itself(whole: PermutationSpec, group: UnitGroup) -> bool:
    """Whether units lie inside experts that are stacked in tensors of a module's own."""
    inside = any(whole.by_name[outer].bound == WHOLE for outer in group.within)
    return inside and not any(slot.tensor in whole.stacks for slot in group.slots)


def orders(spec: PermutationSpec, permutation: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return which expert of θ_B each expert is, by group of whole experts."""
    return {group.name: permutation[group.name].tolist() for group in spec.groups if group.bound == WHOLE}


def lifted(whole: PermutationSpec, plain: PermutationSpec, permutation: Mapping[str, Tensor]) -> Permutation:
    """Return a permutation of ``plain``, in which experts stay, as one of ``whole``: a row for each expert's units."""
    at = {(s.tensor, s.dim, s.start, s.at): group.name for group in plain.groups for s in group.slots}
    result = whole.identity()
    for group in whole.groups:
        if group.bound == WHOLE:
            continue
        if group.shape == tuple(permutation.get(group.name, torch.empty(0)).shape):
            result[group.name] = permutation[group.name]
            continue
        listed = next((slot for slot in group.slots if slot.tensor in whole.stacks), None)
        if listed is None:  # stacked in tensors of the module's own: one order for all experts
            rows = permutation[group.name].reshape(-1, group.size)
            result[group.name] = rows.repeat(group.copies // len(rows), 1)
            continue
        members = whole.stacks[listed.tensor]
        names = [at[member, listed.dim - 1, listed.start, listed.at] for member in members]
        result[group.name] = torch.cat([permutation[name].reshape(-1, group.size) for name in names])
    return result
