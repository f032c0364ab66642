"""Dropout stability: does the loss stay low when only half of the units of all layers from some layer on are read?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.properties.limits import read_limit
from lmccheck.properties.low_loss_path import require_calibration, require_choice, require_covered, structure_for
from lmccheck.properties.remarks import data_remarks, measured_endpoint
from lmccheck.result import Result

if TYPE_CHECKING:
    from lmccheck.dropping.search import Search
    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.network.pair import ModelPair
    from lmccheck.symmetry.structure import Structure

NAME = "dropout_stability"
DEFINITION = "ε = max over i of L(θ_i) − L(θ), θ_i reads a share `keep` of the units of the levels from i on"


def dropout_stability(
    pair: ModelPair,
    *,
    epsilon: float | str = 0.05,
    keep: float | Mapping[str, float] = 0.5,
    refit: bool = True,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
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
    started = time.perf_counter()
    read_limit(epsilon, 1.0, NAME)
    require_choice(profile, "profile", ("dev", "ci", "thorough"), NAME)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"{NAME}: seed = {seed!r}; expected an integer")
    require_calibration(pair, NAME)
    structure = structure_for(pair, NAME)
    require_covered(structure, NAME)
    if isinstance(keep, Mapping) and not keep:
        raise LmcError(f"{NAME}: keep = {{}}; expected a share, or one for each of some unit groups")
    if not isinstance(refit, bool):
        raise LmcError(f"{NAME}: refit = {refit!r}; expected True or False")

    import torch

    from lmccheck.dropping.choose_units import SearchSettings
    from lmccheck.dropping.search import find_dropped
    from lmccheck.dropping.stability import StabilityWitness, measure_dropped
    from lmccheck.evaluate.evaluator import Evaluator

    evaluator = Evaluator(pair, torch.float64)
    ends = {
        side: measured_endpoint(evaluator, theta, side) for side, theta in (("a", pair.theta_a), ("b", pair.theta_b))
    }
    levels = range(len(structure.levels))
    searches: dict[str, Search] = {}
    best: dict[str, list[Measured]] = {}
    plain: dict[str, list[Measured]] = {}
    for side in ends:
        search = find_dropped(pair, structure, side, levels, SearchSettings(keep, refit, seed, profile))
        searches[side] = search
        best[side] = [measure_dropped(evaluator, structure, search.best[i], side) for i in levels]
        plain[side] = [
            best[side][i]
            if search.plain[i] is search.best[i]
            else measure_dropped(evaluator, structure, search.plain[i], side)
            for i in levels
        ]
    bound = read_limit(epsilon, max(end.loss for end in ends.values()), NAME)
    costs = {side: [_excess(x.loss, ends[side].loss) for x in best[side]] for side in ends}
    plain_costs = {side: [_excess(x.loss, ends[side].loss) for x in plain[side]] for side in ends}
    side, level = max(((s, i) for s in ends for i in levels), key=lambda item: costs[item[0]][item[1]])
    value = costs[side][level]
    details: dict[str, Any] = {
        "definition": DEFINITION,
        "keep": dict(keep) if isinstance(keep, Mapping) else keep,
        "refit": refit,
        "levels": [list(groups) for groups in structure.levels],
        "epsilon": costs,
        "epsilon_plain": plain_costs,
        "losses": {s: [x.loss for x in best[s]] for s in ends},
        "errors": {s: [x.error for x in best[s]] for s in ends},
        "found": {s: [_found(searches[s], i) for i in levels] for s in ends},
        "worst_side": side,
        "worst_layer": structure.levels[level][0],
        "worst": {"side": side, "level": level, "groups": list(structure.levels[level]), "epsilon": value},
        "seed": seed,
        "profile": profile,
        "random_subsets": searches["a"].facts["random_subsets"],
        "loss_a": ends["a"].loss,
        "loss_b": ends["b"].loss,
        "error_a": ends["a"].error,
        "error_b": ends["b"].error,
        "limit_given": epsilon,
        "samples": pair.data.samples,
        "precision": str(evaluator.dtype).removeprefix("torch."),
        "notes": _notes(
            pair, evaluator, structure, searches, max(x for s in ends for x in plain_costs[s]), refit, keep
        ),
    }
    if not value <= bound:
        details["failure"] = _failure(pair, details, bound)
    return Result(
        property=NAME,
        verdict="pass" if value <= bound else "fail",
        value=value,
        limit=bound,
        unit=pair.loss.unit,
        witness=StabilityWitness(
            {s: searches[s].best for s in ends},
            {"a": structure.canonical(pair.theta_a), "b": structure.canonical(pair.theta_b)},
        ),
        evaluations=evaluator.evaluations,
        seconds=time.perf_counter() - started,
        details=details,
    )


def _excess(loss: float, own: float) -> float:
    """Return ε_i, infinite where the loss is no number."""
    return loss - own if loss == loss else math.inf


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


def _notes(
    pair: ModelPair,
    evaluator: Evaluator,
    structure: Structure,
    searches: Mapping[str, Search],
    without: float,
    refit: bool,
    keep: float | Mapping[str, float],
) -> list[str]:
    notes = [f"without refit ε is {without:.4g}"] if refit else ["units are dropped and scaled, nothing is refitted"]
    notes += data_remarks(pair)
    chosen = [dropped for search in searches.values() for dropped in search.best.values()]
    if evaluator.batchnorms:
        again = sum(dropped.facts.get("statistics") == "re-estimated" for dropped in chosen)
        notes.append(
            f"BatchNorm statistics of later levels re-estimated on calibration data in {again} of {len(chosen)} "
            "dropped networks"
        )
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
    if all(dropped.how == "twins merged" for dropped in chosen):
        notes.append("units have twins with the same incoming weights: half of them can be left out exactly")
    return notes


def _failure(pair: ModelPair, details: Mapping[str, Any], bound: float) -> list[str]:
    """Return the first five lines of a failure: what, measured, where, worst and smallest, endpoints."""
    unit, worst = pair.loss.unit, details["worst"]
    side, level = worst["side"], worst["level"]
    every = [(x, s, i) for s, row in details["epsilon"].items() for i, x in enumerate(row)]
    over = [item for item in every if not item[0] <= bound]
    smallest = min(over)
    plain = details["epsilon_plain"][side][level]
    found = details["found"][side][level]
    kept = ", ".join(f"{count} of {found['units'][group]} in {group}" for group, count in found["kept"].items())
    error = details["errors"][side][level]
    wrong = f", 0-1 error {error:.4g}" if error is not None else ""
    ends = f"a {details['loss_a']:.4g}, b {details['loss_b']:.4g} {unit}"
    if details["error_a"] is not None:
        ends += f" (0-1 error a {details['error_a']:.4g}, b {details['error_b']:.4g})"
    without = f"; without refit it is {plain:.4g}" if details["refit"] else ""
    return [
        f"{pair.name}: {side} is not dropout stable: units to keep were not found within this budget "
        f"({details['random_subsets']} subsets, seed {details['seed']}), which does not prove that there are none",
        f"ε {worst['epsilon']:.4g} {unit}, limit {bound:.4g} {unit}{without}",
        f"where: endpoint {side}, level {level} ({', '.join(worst['groups'])}) and later, {kept}, found by "
        f"'{found['how']}', loss {details['losses'][side][level]:.4g}{wrong}, on {pair.data.origin} "
        f"({pair.data.samples} samples)",
        f"worst {worst['epsilon']:.4g} at level {level} of {side}; smallest counterexample {smallest[0]:.4g} at level "
        f"{smallest[2]} of {smallest[1]}; {len(over)} of {len(every)} dropped networks above the limit",
        f"endpoint losses: {ends}",
    ]
