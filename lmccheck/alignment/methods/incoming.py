"""Incoming: each layer's units matched by the weights that make them, one layer after the other from the inputs on.

The naive weight matching of Ferbach et al. 2024: Π_ℓ = argmin ‖[W_A b_A] − Π·[W_B·Π_{ℓ−1}ᵀ b_B]‖², in the plain
Euclidean norm, sequentially, with the permutations of earlier layers applied; what reads the units has no say, and
there is no second sweep. On a perceptron it is ``scipy.optimize.linear_sum_assignment`` layer by layer. It is not Git
Re-Basin's weight matching, and usually worse: it is what ``transport``, which differs by the norm of the activations
alone, has to beat. Without data, it needs weights and nothing else.

A group may have several producers (a residual stream, a gate and its twin): its units are then compared by all of their
incoming weights together, every producer slot of the group, of which those whose own inputs are placed only later are
left out, unless there are no others. A BatchNorm is taken with the layer before it, as in ``transport``; groups inside
units (head dimensions) are assigned along with them.
"""

from __future__ import annotations

import torch

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.layerwise import IncomingWeights
from lmccheck.alignment.matching.norms import counted, merged_norms
from lmccheck.alignment.matching.reassign import in_turn, nested_groups
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods import method


@method("incoming", source="Ferbach et al. 2024, naive weight matching")
def match_incoming(problem: Problem) -> Found:
    """Return the permutation that matches every layer by its incoming weights and biases only, from the inputs on.

    The objective is −Σ of the squared distances; ``facts`` hold, per group, that distance a unit.
    """
    pair, spec = problem.pair, problem.spec
    layers = problem.derived.layers if problem.derived is not None else ()
    a, b = (merged_norms(counted(spec, w), w, layers) for w in (pair.theta_a, pair.theta_b))
    state = WeightSimilarity(spec, a, b, spec.identity(), least=torch.float64)
    incoming = IncomingWeights(spec, a)
    costs: dict[str, float] = {}
    total = 0.0
    for group, placed in in_turn(spec):
        counts = incoming.counts(group, placed)
        state.place(group, counts)
        family = [group, *nested_groups(spec, group)]
        slots = {(slot.tensor, slot.dim, slot.piece): slot for one in family for slot in one.slots if counts(slot)}
        apart = sum(state.apart(slot) for slot in slots.values())
        costs[group.name] = apart / (group.size * group.copies)
        total += apart
    return Found(state.permutation, -total, {"incoming_cost": costs})
