"""Dropout stability: does the loss stay low when only half of the units of all layers from some layer on are read?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmccheck.finding import Endpoint, Failure, Finding, Seen, Where
from lmccheck.properties.low_loss_path import covered_structure, require_calibration, search_both
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import data_remarks, measured_endpoints, measured_on, precision_of
from lmccheck.properties.settings import Limit, Profile, Seed, Shares

if TYPE_CHECKING:
    from lmccheck.dropping.search import Search
    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.network.pair import ModelPair
    from lmccheck.symmetry.structure import Structure

NAME = "dropout_stability"
DEFINITION = "ε = max over i of L(θ_i) − L(θ), θ_i reads a share `keep` of the units of the levels from i on"


@check(
    of="pair",
    claim="L(θ_i) − L(θ) ≤ ε, θ_i with half of the units from layer i on (Kuditipudi et al. 2019, Def. 1)",
    quantifier="for all i there are units",
    certifies="exactly this, for the units and refits in the witness",
)
def dropout_stability(
    pair: ModelPair,
    *,
    epsilon: Limit = 0.05,
    keep: Shares = 0.5,
    refit: bool = True,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that both endpoints lose at most ``epsilon`` when only a share of their units is read.

    ε_i = L(θ_i) − L(θ) with L the mean loss on the evaluation data; θ_i is θ with exactly ⌊keep·h⌋ units left in every
    unit group of the levels from i on: the outgoing weights of all others are zero. ``value`` is the largest ε_i of
    both endpoints. Which units stay is searched for on calibration data (``find_dropped``); with ``refit`` their
    outgoing weights are fitted too, which all that Theorem 1 needs of θ_i allows. ``epsilon``: in the loss's unit, or
    ``"5%"`` of the worse endpoint's loss. ``keep``: a share, or one per unit group. ``profile``: ``dev``, ``ci`` or
    ``thorough``: 10, 20 or 200 random subsets per level.

    ``details`` hold, per endpoint and level, ``epsilon`` and ``epsilon_plain`` (without refit), ``losses``, ``errors``
    and ``found`` (units kept, how they were found, scale, calibration losses, budget); ``levels`` and ``worst`` too.
    The witness (StabilityWitness) has every θ_i; ``save`` writes it. A pass is exact about this data: the subsets
    exist. A fail says that none was found within the budget, not that there is none. BatchNorms of θ_i have their own
    statistics, those of θ or taken on calibration data. Raises LmcError (SourceError, UnsupportedArchitecture) when
    nothing sound can be said.
    Source: Definition 1 of Kuditipudi et al. 2019; refits: the condition of Nguyen et al. 2021.
    """
    import torch

    from lmccheck.dropping.stability import StabilityWitness
    from lmccheck.evaluate.evaluator import Evaluator

    require_calibration(pair, NAME)
    structure = covered_structure(pair, NAME)
    settings = {"keep": keep, "refit": refit, "seed": seed, "profile": profile}
    evaluator = Evaluator(pair.network, pair.theta_a, dtype=torch.float64)
    ends = measured_endpoints(pair, evaluator)
    searches = search_both(pair, structure, range(len(structure.levels)), **settings)
    sides = [_measured(evaluator, structure, end, searches[end.name]) for end in ends]
    worst = max((cost for side in sides for cost in side.costs), key=lambda cost: cost.height)
    value, side, level = worst.height, worst.side, worst.level
    groups = structure.levels[level]
    found = Finding(
        value,
        epsilon,
        pair.loss.unit,
        endpoints=ends,
        where=Where(side=side, layer=groups[0]),
        notes=[*_notes(pair, evaluator, sides, refit), *_unit_notes(structure, sides, keep)],
        witness=StabilityWitness(
            {s: search.best for s, search in searches.items()},
            {"a": structure.canonical(pair.theta_a), "b": structure.canonical(pair.theta_b)},
        ),
        evaluations=evaluator.evaluations,
        facts={
            "definition": DEFINITION,
            **settings,
            "keep": dict(keep) if isinstance(keep, Mapping) else keep,
            "levels": [list(level) for level in structure.levels],
            "worst": {"side": side, "level": level, "groups": list(groups), "epsilon": value},
            "random_subsets": searches["a"].facts["random_subsets"],
            "samples": pair.data.samples,
            "precision": precision_of(evaluator),
            **_facts(sides),
        },
    )
    return found if found.judged == "pass" else replace(found, failure=_failure(pair, found, sides))


@dataclass(frozen=True)
class Cost:
    """What dropping units of one endpoint from a level on costs."""

    height: float
    side: str
    level: int

    @property
    def seen(self) -> Seen:
        return Seen(self.height, f"at level {self.level} of {self.side}")


def costs_of(end: Endpoint, measured: list[Measured]) -> list[Cost]:
    """Return ε_i per level, infinite where the loss is no number."""
    return [
        Cost(found.loss - end.loss if found.loss == found.loss else float("inf"), end.name, level)
        for level, found in enumerate(measured)
    ]


@dataclass(frozen=True)
class _Side:
    """One endpoint, what was found for it, and θ_i measured: of the whole search, and of what refits nothing."""

    end: Endpoint
    search: Search
    best: list[Measured]
    plain: list[Measured]

    @property
    def costs(self) -> list[Cost]:
        return costs_of(self.end, self.best)

    @property
    def plain_costs(self) -> list[float]:
        return [cost.height for cost in costs_of(self.end, self.plain)]


def _measured(evaluator: Evaluator, structure: Structure, end: Endpoint, search: Search) -> _Side:
    from lmccheck.dropping.stability import measure_dropped

    best = {i: measure_dropped(evaluator, structure, dropped, end.name) for i, dropped in search.best.items()}
    plain = {
        i: best[i] if dropped is search.best[i] else measure_dropped(evaluator, structure, dropped, end.name)
        for i, dropped in search.plain.items()
    }
    return _Side(end, search, list(best.values()), list(plain.values()))


def _facts(sides: list[_Side]) -> dict[str, Any]:
    """Return what a report says of every θ_i; JSON-able."""
    return {
        "epsilon": {side.end.name: [cost.height for cost in side.costs] for side in sides},
        "epsilon_plain": {side.end.name: side.plain_costs for side in sides},
        "losses": {side.end.name: [found.loss for found in side.best] for side in sides},
        "errors": {side.end.name: [found.error for found in side.best] for side in sides},
        "found": {side.end.name: [_found(side.search, i) for i in range(len(side.best))] for side in sides},
    }


def _found(search: Search, level: int) -> dict[str, Any]:
    """Return what a report says of how one θ_i was found; JSON-able."""
    best, plain, facts = search.best[level], search.plain[level], search.facts["levels"][level]
    return {
        "level": level,
        "kept": {group: len(units) for group, units in best.keep.items()},
        "units": facts["groups"],
        "how": best.how,
        "refitted": best.refitted,
        "calibration_loss": best.loss,
        "plain_how": plain.how,
        "plain_scale": plain.facts.get("scale"),
        "plain_calibration_loss": plain.loss,
        "calibration_loss_full": facts["loss_full"],
        "candidates": facts["candidates"],
        "calibration_samples": facts["samples"],
        "calibration_evaluations": facts["evaluations"],
    }


def _notes(pair: ModelPair, evaluator: Evaluator, sides: list[_Side], refit: bool) -> list[str]:
    without = max(cost for side in sides for cost in side.plain_costs)
    notes = [f"without refit ε is {without:.4g}"] if refit else ["units are dropped and scaled, nothing is refitted"]
    notes += data_remarks(pair.network)
    if evaluator.batchnorms:
        chosen = [dropped for side in sides for dropped in side.search.best.values()]
        again = sum(dropped.facts.get("statistics") == "re-estimated" for dropped in chosen)
        notes.append(
            f"BatchNorm statistics of later levels re-estimated on calibration data in {again} of {len(chosen)} "
            "dropped networks"
        )
    return notes


def _unit_notes(structure: Structure, sides: list[_Side], keep: float | Mapping[str, float]) -> list[str]:
    """Say which units could be dropped together only, or at no cost, and where more of them stay than needed."""
    notes = []
    shares = keep if isinstance(keep, Mapping) else dict.fromkeys(structure.groups, keep)
    if above := [group for group in structure.groups if shares.get(group, 1.0) > 0.5]:
        notes.append(
            f"more than half of the units is kept in {', '.join(above)}; Definition 1 asks for at most half everywhere"
        )
    for level in structure.levels:
        if len(level) > 1:
            notes.append(
                f"groups {', '.join(level)} feed one another (as in a residual stream or a gate): they drop together"
            )
    if all(dropped.how == "twins merged" for side in sides for dropped in side.search.best.values()):
        notes.append("units have twins with the same incoming weights: half of them can be left out exactly")
    return notes


def _failure(pair: ModelPair, found: Finding, sides: list[_Side]) -> Failure:
    facts, side, level = found.facts, found.facts["worst"]["side"], found.facts["worst"]["level"]
    entry, error = facts["found"][side][level], facts["errors"][side][level]
    kept = ", ".join(f"{count} of {entry['units'][group]} in {group}" for group, count in entry["kept"].items())
    wrong = f", 0-1 error {error:.4g}" if error is not None else ""
    return Failure(
        pair.name,
        f"{side} is not dropout stable: units to keep were not found within this budget ({facts['random_subsets']} "
        f"subsets, seed {facts['seed']}), which does not prove that there are none",
        "ε",
        f"endpoint {side}, level {level} ({', '.join(facts['worst']['groups'])}) and later, {kept}, found by "
        f"'{entry['how']}', loss {facts['losses'][side][level]:.4g}{wrong}",
        measured_on(pair.data),
        [cost.seen for each in sides for cost in each.costs],
        "dropped networks",
        [f"without refit it is {facts['epsilon_plain'][side][level]:.4g}"] if facts["refit"] else [],
    )
