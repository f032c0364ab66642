"""Saved dropped networks measured anew, without searching: are they what they claim to be, and is their loss low?"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SymmetryError
from lmccheck.properties.limits import read_limit
from lmccheck.properties.low_loss_path import require_common, require_covered, require_number, structure_for
from lmccheck.properties.remarks import measured_endpoint
from lmccheck.result import Result

if TYPE_CHECKING:
    from lmccheck.dropping.stability import StabilityWitness
    from lmccheck.network.pair import ModelPair

NAME = "verify_dropout"


def verify_dropout(
    pair: ModelPair,
    witness: StabilityWitness | str | os.PathLike[str],
    *,
    epsilon: float | str = 0.05,
    keep: float = 0.5,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that saved networks θ_i are dropped versions of θ_A and θ_B with L(θ_i) ≤ L(θ) + ε, for every level i.

    ``witness``: of ``dropout_stability``, or the file it was saved to. Checked are that all levels of both endpoints
    are there, that at most ⌊keep·h⌋ units of every dropped group are read, and that layers before are the endpoint's
    own; losses are measured in float64, nothing is taken from the file but weights. ``details`` hold ``epsilon`` per
    endpoint and level. Raises CheckpointError, SymmetryError where a network is not what it says.
    """
    from lmccheck.dropping.stability import StabilityWitness, dropped_violation, load_dropped, measure_dropped

    started = time.perf_counter()
    require_common(epsilon, seed, profile, NAME)
    require_number(keep, "keep", 0.0, 1.0, NAME)
    structure = structure_for(pair, NAME)
    require_covered(structure, NAME)
    if not isinstance(witness, (StabilityWitness, str, os.PathLike)):
        raise LmcError(f"{NAME}: witness = {witness!r}; expected a witness of dropout_stability, or its file")
    given = witness
    if not isinstance(given, StabilityWitness):
        given = load_dropped(pair.base / given if pair.base else given, pair, structure)

    import torch

    from lmccheck.evaluate.evaluator import Evaluator

    for side, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        missing = sorted(set(range(len(structure.levels))) - set(given.found.get(side, {})))
        if missing:
            raise SymmetryError(f"{NAME}: no network of {side} with units dropped from level {missing[0]} on")
        for level, dropped in given.found[side].items():
            wrong = dropped_violation(structure, structure.canonical(theta), dropped, keep)
            if wrong is not None or level != dropped.level:
                raise SymmetryError(f"{NAME}: level {level} of {side} is no dropped version of it: {wrong}")
    evaluator = Evaluator(pair, torch.float64)
    own, costs = {}, {}
    for side, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        own[side] = measured_endpoint(evaluator, theta, side).loss
        levels = [given.found[side][level] for level in range(len(structure.levels))]
        costs[side] = [measure_dropped(evaluator, structure, dropped, side).loss - own[side] for dropped in levels]
    flat = [(x if x == x else math.inf, side, level) for side, row in costs.items() for level, x in enumerate(row)]
    value, side, level = max(flat)
    bound = read_limit(epsilon, max(own.values()), NAME)
    details: dict[str, Any] = {
        "epsilon": costs,
        "loss_a": own["a"],
        "loss_b": own["b"],
        "levels": [list(groups) for groups in structure.levels],
        "worst_side": side,
        "worst_layer": structure.levels[level][0],
        "kept": {s: {g: len(u) for g, u in given.found[s][0].keep.items()} for s in costs},
        "limit_given": epsilon,
        "samples": pair.data.samples,
        "precision": "float64",
    }
    return Result(
        property=NAME,
        verdict="pass" if value <= bound else "fail",
        value=value,
        limit=bound,
        unit=pair.loss.unit,
        witness=given,
        evaluations=evaluator.evaluations,
        seconds=time.perf_counter() - started,
        details=details,
    )
