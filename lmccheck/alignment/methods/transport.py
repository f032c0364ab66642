"""Transport: optimal transport between the neurons of each layer, in the norm of the activations they read.

Ferbach et al. 2024: layer by layer, Π_ℓ = argmin ‖W_A − Π·W_B·Π_{ℓ−1}ᵀ‖² with ‖W‖² = tr(W·Σ_{ℓ−1}·Wᵀ) and
Σ_{ℓ−1} = E[φφᵀ] the uncentred second moment of what the layer reads in A; biases by the constant 1 among the inputs.
This is the empirical W₂² between both layers' neurons in that norm, and with equally many of them its optimal plan is a
permutation. Solved with POT. Differs from the authors' code in that biases count, BatchNorm is taken with its layer,
and groups inside units (head dimensions) are assigned along with them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.dimension import dimension_facts
from lmccheck.alignment.matching.activation_norm import ActivationNorm, second_moments
from lmccheck.alignment.matching.descent import descend
from lmccheck.alignment.matching.layerwise import IncomingWeights, by_transport
from lmccheck.alignment.matching.norms import counted, merged_norms
from lmccheck.alignment.matching.reassign import in_turn, nested_groups
from lmccheck.alignment.matching.similarity import Counts, WeightSimilarity
from lmccheck.alignment.methods import method
from lmccheck.symmetry.slots import UnitGroup

NEEDS = ("calibration", "traced")


@method("transport", needs=NEEDS, source="Ferbach et al. 2024", start=4)
def match_transport(problem: Problem) -> Found:
    """Return the permutation that the layerwise recursion finds.

    ``facts`` hold, per group, the transport cost W₂² per unit, and how many calibration samples each layer's Σ is of.
    """
    return transported(problem, "transport", outgoing=False)


def transported(problem: Problem, name: str, *, outgoing: bool) -> Found:
    """Return what both transports find: layer by layer, and with ``outgoing`` in turn from there."""
    pair, spec = problem.pair, problem.spec
    traced = problem.traced(name)
    layers = traced.layers
    data = problem.calibration(name)
    seen = second_moments(pair.a, traced, data)
    norm = ActivationNorm.of(layers, seen.moments)
    a, b = (merged_norms(counted(spec, w), w, layers) for w in (pair.theta_a, pair.theta_b))
    weighed = norm.weigh(a)
    state = WeightSimilarity(spec, weighed, b, spec.identity())
    costs = _layer_by_layer(state, a, norm)
    permutation, objective = state.permutation, state.objective()
    if outgoing:
        best = descend(spec, weighed, b, permutation, name, torch.Generator().manual_seed(problem.seed))
        permutation, objective = best.permutation, best.objective
    facts = {
        "transport_cost": costs,
        **dimension_facts(pair),
        "plain_norm": norm.plain(a),
        "outgoing": outgoing,
        "calibration_samples": {"of": data.samples, **seen.facts()},
    }
    return Found(permutation, objective, facts)


def _layer_by_layer(state: WeightSimilarity, a: Mapping[str, Tensor], norm: ActivationNorm) -> dict[str, float]:
    """Place groups in the network's order by their incoming weights; return the transport cost of each."""
    incoming = IncomingWeights(state.spec, a)
    costs: dict[str, float] = {}
    for group, placed in in_turn(state.spec):
        counts = incoming.counts(group, placed)
        state.place(group, counts, by_transport)
        if not nested_groups(state.spec, group):
            moved = {slot.tensor: state.current(slot.tensor) for slot in group.slots if counts(slot)}
            rows = zip((a, moved, a), (state.a, (again := norm.weigh(moved)), again), (1, 1, -2), strict=True)
            costs[group.name] = sum(factor * _product(group, counts, x, y) for x, y, factor in rows)
    return costs


def _product(group: UnitGroup, counts: Counts, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    """Return Σ ⟨x, y⟩ over the slots of a group that count, a unit's mean."""
    total = sum(
        float((slot.units(x[slot.tensor]).double() * slot.units(y[slot.tensor])).sum())
        for slot in group.slots
        if counts(slot) and slot.tensor in x
    )
    return total / (group.size * group.copies)
