"""Fitting in turn: maps while all other units keep their order, that order while the maps are kept, until it settles.

A stream that is turned the right way makes weights of feed-forward units comparable, and units in the right order make
weights tell how the stream is to be turned, which activations alone say less exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.alignment.beyond.fit import BY_WEIGHTS, balance, fit, lengths
from lmccheck.alignment.beyond.freedoms import OF_HEADS
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.matching.activations import ActivationSimilarity, Moments
from lmccheck.alignment.matching.norms import counted
from lmccheck.alignment.matching.reassign import reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation

Weights = Mapping[str, Tensor]
ROUNDS = 4
CORRELATIONS = 0.5  # their share beside how alike weights are, 1 for units of mean length that are the same


@torch.no_grad()
def fit_in_turn(
    maps: Maps, a: Weights, b: Weights, sites: Mapping[str, tuple[Site, ...]], moments: Mapping[Site, Moments]
) -> Permutation:
    """Fit ``maps``, which have first values, again; return the order of θ_B ``b``'s other units that goes with them.

    θ_B is then maps·order·b. ``moments``: of activations of A and of ``b``, at the ``sites`` of each group. Nothing is
    reordered inside a unit, nor units that hold others.
    """
    spec = maps.spec
    correlated = ActivationSimilarity.of(spec, sites, moments, "correlation")
    alike = ActivationSimilarity.of(spec, sites, moments, "cross-moment")
    order = spec.identity()
    for _ in range(ROUNDS):
        step = _reordered(maps, a, maps.apply(spec.apply(b, order), a), correlated, order)
        order = compose(spec, order, step)
        for k, freedom in enumerate(maps.freedoms):
            if freedom.kind not in OF_HEADS and not freedom.units.within:
                maps.mixes[k] = maps.mixes[k][:, step[freedom.group]]  # a unit takes its scale along
        maps.reset()
        fit(maps, a, spec.apply(b, order), moments, alike, BY_WEIGHTS)
        if all(torch.equal(step[name], still) for name, still in spec.identity().items()):
            break
    return order


def _reordered(
    maps: Maps, a: Weights, now: Weights, correlated: ActivationSimilarity, order: Permutation
) -> Permutation:
    """Return the order, relative to the present one, that weights under the maps and activations agree on best."""
    spec = maps.spec
    first, second = (counted(spec, balance(spec, maps.freedoms, weights)) for weights in (a, now))
    state = WeightSimilarity(spec, first, second, spec.identity())
    for group in spec.groups:
        if _is_free(maps, group):
            slots = tuple(slot for slot in group.slots if slot.tensor in first)
            scale = lengths(group, slots, first).mean() * lengths(group, slots, second).mean()
            similarity = state.units(group) / scale.clamp(min=1e-30)
            similarity = similarity + CORRELATIONS * correlated.units(group, order)
            step = reassign(spec, group, state.permutation, similarity, {})
            state.move(group, step.permutation, step.relative)
    return state.permutation


def _is_free(maps: Maps, group: UnitGroup) -> bool:
    inside = any(group.name in other.within for other in maps.spec.groups)
    return not (group.within or inside or group.name in maps.mixed_groups)
