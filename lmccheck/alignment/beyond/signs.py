"""Signs and scales before matching: θ_B's odd units flipped to θ_A's signs, both networks balanced to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lmccheck.alignment.beyond.fit import balance
from lmccheck.alignment.beyond.freedoms import Freedom
from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe
from lmccheck.alignment.matching.norms import counted, float64
from lmccheck.alignment.matching.reassign import in_turn, reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.symmetry.spec import Permutation

SAMPLES = 1024


def flipped(problem: Problem, freedoms: list[Freedom]) -> dict[str, Tensor]:
    """Return θ_B with units of odd activation flipped to the sign of the units of θ_A they would be matched with.

    Matched by |correlation| of activations on calibration data, or by |weight similarity| layer by layer without.
    """
    odd = {freedom.group: freedom for freedom in freedoms if freedom.kind == "sign-flips"}
    if not odd:
        return dict(problem.pair.theta_b)
    return _by_activations(problem, odd) if problem.pair.calibration is not None else _by_weights(problem, odd)


def _flip(problem: Problem, freedom: Freedom, weights: Mapping[str, Tensor], signs: Tensor) -> dict[str, Tensor]:
    group = problem.spec.by_name[freedom.group]
    return mix_group(problem.spec, group, weights, freedom.forward, freedom.backward, signs.reshape(group.copies, -1))


def _signs(similarity: Tensor, order: Tensor) -> Tensor:
    """Return, per unit of B, the sign of its similarity with the unit it is matched with; (copies, size)."""
    chosen = similarity.gather(2, order.unsqueeze(-1)).squeeze(-1)
    signs = torch.where(chosen < 0, -1.0, 1.0).double()
    return torch.empty_like(signs).scatter_(1, order, signs)


def _by_activations(problem: Problem, odd: Mapping[str, Freedom]) -> dict[str, Tensor]:
    moments = observe(problem, "sign-flips", SAMPLES)
    alike = ActivationSimilarity.instead(problem.spec, problem.traced("sign-flips").sites, moments, "correlation")
    result = dict(problem.pair.theta_b)
    identity = problem.spec.identity()
    for name, freedom in odd.items():
        group = problem.spec.by_name[name]
        if group.within:  # its units cannot be compared before those they lie in are matched; fit() gives their signs
            continue
        similarity = alike.units(group, identity)
        step = reassign(problem.spec, group, identity, similarity.abs(), {})
        result = _flip(problem, freedom, result, _signs(similarity, step.relative))
    return result


def _by_weights(problem: Problem, odd: Mapping[str, Freedom]) -> dict[str, Tensor]:
    """Match groups in the network's order by incoming weights, flipping each before the next is looked at."""
    spec = problem.spec
    result = dict(problem.pair.theta_b)
    a, permutation = counted(spec, problem.pair.theta_a), spec.identity()
    for group, _ in in_turn(spec):
        state = WeightSimilarity(spec, a, counted(spec, result), permutation)
        similarity = state.units(group, lambda slot: slot.role == "producer")
        blocks = state.blocks(group, lambda slot: slot.role == "producer")
        free = group.name in odd and not blocks and not group.within
        if free:  # of a gated unit one half may flip alone
            turning = state.units(group, odd[group.name].forward.__contains__)
            similarity = similarity - turning + turning.abs()
        step = reassign(spec, group, permutation, similarity, blocks)
        if free:
            signs = _signs(turning, step.relative)[0]
            back: Permutation = {**spec.identity(), group.name: torch.argsort(permutation[group.name])}
            result = _flip(problem, odd[group.name], result, signs[back[group.name]])
        permutation = step.permutation
    return result


def balanced(problem: Problem, freedoms: list[Freedom]) -> Problem:
    """Return the problem with both networks' rescalable units balanced; what they compute is the same."""
    if not any(freedom.kind == "rescaling" for freedom in freedoms):
        return problem
    pair = problem.pair

    def scaled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wide = balance(problem.spec, freedoms, float64(weights))
        return {name: t.to(weights[name].dtype) for name, t in wide.items()}

    return replace(problem, pair=pair.with_weights(scaled(pair.theta_a), scaled(pair.theta_b)))
