"""Saved dropped networks measured anew, without searching: are they what they claim to be, and is their loss low?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmccheck.errors import SymmetryError
from lmccheck.finding import Failure, Finding, Where
from lmccheck.properties.dropout_stability import excess, seen, worst_of
from lmccheck.properties.low_loss_path import covered_structure
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import measured_endpoints, measured_on, precision_of
from lmccheck.properties.settings import Limit, Profile, SavedDropout, Seed, Share

if TYPE_CHECKING:
    from lmccheck.dropping.stability import StabilityWitness
    from lmccheck.network.pair import ModelPair
    from lmccheck.symmetry.structure import Structure

NAME = "verify_dropout"


@check(
    of="pair",
    claim="L(θ_i) − L(θ) ≤ ε for saved networks θ_i",
    quantifier="for all i, these units",
    certifies="exactly this, and that every θ_i is a dropped version of θ",
)
def verify_dropout(
    pair: ModelPair,
    witness: SavedDropout,
    *,
    epsilon: Limit = 0.05,
    keep: Share = 0.5,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that saved networks θ_i are dropped versions of θ_A and θ_B with L(θ_i) ≤ L(θ) + ε, for every level i.

    ``witness``: of ``dropout_stability``, or the file it was saved to. Checked are that all levels of both endpoints
    are there, that at most ⌊keep·h⌋ units of every dropped group are read, and that layers before are the endpoint's
    own; losses are measured in float64, nothing is taken from the file but weights. ``details`` hold ``epsilon`` per
    endpoint and level. Raises CheckpointError, SymmetryError where a network is not what it says.
    """
    import torch

    from lmccheck.dropping.stability import measure_dropped
    from lmccheck.evaluate.evaluator import Evaluator

    structure = covered_structure(pair, NAME)
    given = _honest(pair, structure, witness, keep)
    evaluator = Evaluator(pair.network, pair.theta_a, dtype=torch.float64)
    ends = measured_endpoints(pair, evaluator)
    costs: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for end in ends:
        dropped = [given.found[end.name][level] for level in range(len(structure.levels))]
        measured = [measure_dropped(evaluator, structure, one, end.name) for one in dropped]
        losses[end.name] = [found.loss for found in measured]
        costs[end.name] = [excess(found, end.loss) for found in measured]
    value, side, level = worst_of(costs)
    groups = structure.levels[level]
    found = Finding(
        value,
        epsilon,
        pair.loss.unit,
        endpoints=ends,
        worst_loss=losses[side][level],
        above="own",
        where=Where(side=side, layer=groups[0]),
        witness=given,
        evaluations=evaluator.evaluations,
        facts={
            "epsilon": costs,
            "levels": [list(level) for level in structure.levels],
            "kept": {side: {g: len(u) for g, u in given.found[side][0].keep.items()} for side in costs},
            "samples": pair.data.samples,
            "precision": precision_of(evaluator),
        },
    )
    what = f"{side} is not dropout stable by these networks"
    where = f"endpoint {side}, level {level} ({', '.join(groups)})"
    on, advice = measured_on(pair.data), ["dropout_stability, which searches for other units"]
    return found.explained(
        lambda: Failure(pair.name, what, "ε", where, on, seen(costs), "dropped networks", next=advice)
    )


def _honest(pair: ModelPair, structure: Structure, witness: Any, keep: float) -> StabilityWitness:
    """Return a witness, or what its file holds. Raises SymmetryError where a network in it is not what it says."""
    from lmccheck.dropping.stability import StabilityWitness, dropped_violation, load_dropped

    given = witness
    if not isinstance(given, StabilityWitness):
        given = load_dropped(pair.base / given, pair, structure)
    for side, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        missing = sorted(set(range(len(structure.levels))) - set(given.found.get(side, {})))
        if missing:
            raise SymmetryError(f"{NAME}: no network of {side} with units dropped from level {missing[0]} on")
        for level, dropped in given.found[side].items():
            wrong = dropped_violation(structure, structure.canonical(theta), dropped, keep)
            if wrong is not None or level != dropped.level:
                raise SymmetryError(f"{NAME}: level {level} of {side} is no dropped version of it: {wrong}")
    return given
