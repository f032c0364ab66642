"""Dropout stability: does the loss stay low when only half of the units of all layers from some layer on are read?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Bars
from lmccheck.errors import LmcError
from lmccheck.explain import called, of_endpoint
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where
from lmccheck.properties.advice import wider_search
from lmccheck.properties.inner import idle_notes, inner_facts, inner_notes, known_of
from lmccheck.properties.low_loss_path import require_calibration, search_each
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import end_of, measured_on, own_measurements, precision_of, thetas_of
from lmccheck.properties.settings import Limit, Profile, Seed, Shares

if TYPE_CHECKING:
    from lmccheck.dropping.search import Search
    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.network.view import View
    from lmccheck.symmetry.structure import Structure

NAME = "dropout_stability"
DEFINITION = "ε = max over i of L(θ_i) − L(θ), θ_i reads a share `keep` of the units of the levels from i on"


@check(
    of=("pair", "model"),
    claim="L(θ_i) − L(θ) ≤ ε, θ_i with half of the units from layer i on (Kuditipudi et al. 2019, Def. 1)",
    quantifier="for all i there are units",
    certifies="exactly this, for the units and refits in the witness",
)
def dropout_stability(
    pair: View,
    *,
    epsilon: Limit = 0.05,
    keep: Shares = 0.5,
    refit: bool = True,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that no endpoint loses more than ``epsilon`` when only a share of its units is read.

    ε_i = L(θ_i) − L(θ) with L the mean loss on the evaluation data; θ_i is θ with exactly ⌊keep·h⌋ units left in every
    unit group of the levels from i on: the outgoing weights of all others are zero. ``value`` is the largest ε_i of
    all endpoints, both of a pair or a single model. Which units stay is searched for on calibration data
    (``find_dropped``); with ``refit`` their outgoing weights are fitted too, which all that Theorem 1 needs of θ_i
    allows. ``epsilon``: in the loss's unit, or ``"5%"`` of the worse endpoint's loss. ``keep``: a share, or one per
    unit group. ``profile``: ``dev``, ``ci`` or ``thorough``: 10, 20 or 200 random subsets per level.

    ``details`` hold, per endpoint ("a" and "b", or "model") and level, ``epsilon`` and ``epsilon_plain`` (without
    refit), ``losses``, ``errors`` and ``found`` (units kept, how they were found, scale, calibration losses, budget);
    ``levels`` and ``worst`` too. The witness (StabilityWitness) has every θ_i; ``save`` writes it. A pass is exact
    about this data: the subsets exist. A fail says that none was found within the budget, not that there is none.
    BatchNorms of θ_i have their own statistics, those of θ or taken on calibration data. Raises LmcError (SourceError,
    UnsupportedArchitecture) when nothing sound can be said.
    Source: Definition 1 of Kuditipudi et al. 2019; refits: the condition of Nguyen et al. 2021.
    """
    import torch

    from lmccheck.dropping.stability import witness_of
    from lmccheck.evaluate.evaluator import Evaluator

    require_calibration(pair, NAME)
    structure = pair.network.droppable(NAME)
    shares = dict(keep) if isinstance(keep, Mapping) else keep
    require_fewer(structure, shares)
    settings = {"keep": shares, "refit": refit, "seed": seed, "profile": profile}
    evaluator = Evaluator(pair.network, *thetas_of(pair), dtype=torch.float64)
    own = own_measurements(pair, evaluator)
    ends = tuple(end_of(name, one) for name, one in own.items())
    searches = search_each(pair, structure, range(len(structure.levels)), **settings)
    settings |= inner_facts(pair, structure)
    facts, measured = _measured(evaluator, structure, ends, searches, settings)
    value, side, level = worst_of(facts["epsilon"])
    found = Finding(
        value,
        epsilon,
        pair.loss.unit,
        endpoints=ends,
        worst_loss=facts["losses"][side][level],
        above="own",
        where=Where(side=side, layer=structure.levels[level][0]),
        curve=by_level(structure, facts["epsilon"], facts["epsilon_plain"] if refit else {}),
        notes=_notes(evaluator, structure, searches, facts),
        witness=witness_of(pair, structure, searches, shares, epsilon),
        evaluations=evaluator.evaluations,
        facts=facts,
        known=known_of(structure, "exact", facts["without_effect"]),
        compared=compared(measured, own),
    )
    return found.explained(lambda: _failure(pair, structure, facts))


def compared(found: Mapping[str, Sequence[Measured]], own: Mapping[str, Measured]) -> list[Compared]:
    """Return every dropped network of every endpoint beside that endpoint, sample by sample."""
    shares = tuple(each.losses for each in own.values())
    return [
        Compared(f"at level {level}{of_endpoint(side)}", one.losses, (own[side].losses,), shares)
        for side, several in found.items()
        for level, one in enumerate(several)
    ]


def require_fewer(structure: Structure, keep: float | Mapping[str, float]) -> None:
    """Raise LmcError where no group would read fewer units than it has: nothing would be measured."""
    from lmccheck.dropping.choose_units import unit_counts

    if all(count == structure.sizes[group] for group, count in unit_counts(structure, keep).items()):
        raise LmcError(f"{NAME}: keep = {keep} drops no unit, so that nothing would be measured; mend: keep = 0.5")


def by_level(
    structure: Structure, costs: Mapping[str, list[float]], plain: Mapping[str, list[float]] | None = None
) -> Bars:
    """Return every ε_i of every endpoint, beside what it is without refit, as a report draws it."""
    names = [f"{number}: {', '.join(groups)}" for number, groups in enumerate(structure.levels)]
    return Bars(names, costs, plain or {}, of="level", what="ε", beside_what="without refit")


def excess(measured: Measured, own: float) -> float:
    """Return ε_i, infinite where the loss is no number."""
    return math.inf if math.isnan(measured.loss) else measured.loss - own


def worst_of(costs: Mapping[str, list[float]]) -> tuple[float, str, int]:
    """Return the first of the largest ε_i, with its endpoint and level."""
    every = [(cost, side, level) for side, row in costs.items() for level, cost in enumerate(row)]
    return max(every, key=lambda item: item[0])


def seen(costs: Mapping[str, list[float]]) -> list[Seen]:
    """Return every ε_i with its place."""
    return [
        Seen(x, f"at level {level}{of_endpoint(side)}") for side, row in costs.items() for level, x in enumerate(row)
    ]


def _measured(
    evaluator: Evaluator,
    structure: Structure,
    ends: Sequence[End],
    searches: Mapping[str, Search],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, list[Measured]]]:
    """Measure every θ_i, of the whole search and of what refits nothing.

    Returned are what a report says, JSON-able, and the losses of those of the whole search.
    """
    from lmccheck.dropping.stability import measure_dropped

    measured: dict[str, list[Measured]] = {}
    facts: dict[str, Any] = {
        **settings,
        "definition": DEFINITION,
        "levels": [list(level) for level in structure.levels],
        "random_subsets": next(iter(searches.values())).facts["random_subsets"],
        "samples": evaluator.network.data.samples,
        "precision": precision_of(evaluator),
        **{key: {} for key in ("epsilon", "epsilon_plain", "losses", "errors", "found")},
    }
    for end in ends:
        side, search = end.name, searches[end.name]
        best = [measure_dropped(evaluator, structure, dropped, side) for dropped in search.best.values()]
        plain = [
            best[i] if dropped is search.best[i] else measure_dropped(evaluator, structure, dropped, side)
            for i, dropped in search.plain.items()
        ]
        measured[side] = best
        facts["epsilon"][side] = [excess(found, end.loss) for found in best]
        facts["epsilon_plain"][side] = [excess(found, end.loss) for found in plain]
        facts["losses"][side] = [found.loss for found in best]
        facts["errors"][side] = [found.error for found in best]
        facts["found"][side] = [_found(search, level) for level in search.best]
    value, side, level = worst_of(facts["epsilon"])
    facts["worst"] = {"side": side, "level": level, "groups": facts["levels"][level], "epsilon": value}
    return facts, measured


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
    evaluator: Evaluator, structure: Structure, searches: Mapping[str, Search], facts: Mapping[str, Any]
) -> list[str]:
    plain = worst_of(facts["epsilon_plain"])[0]
    notes = [
        f"without refit ε is {plain:.4g}" if facts["refit"] else "units are dropped and scaled, nothing is refitted"
    ]
    chosen = [dropped for search in searches.values() for dropped in search.best.values()]
    if evaluator.batchnorms:
        again = sum(dropped.facts.get("statistics") == "re-estimated" for dropped in chosen)
        notes.append(
            f"BatchNorm statistics of later levels re-estimated on calibration data in {again} of {len(chosen)} "
            "dropped networks"
        )
    notes += [*half_notes(structure, facts["keep"]), *inner_notes(structure), *idle_notes(facts["without_effect"])]
    for level in structure.levels:
        if len(level) > 1:
            notes.append(
                f"groups {', '.join(level)} feed one another (as in a residual stream or a gate): they drop together"
            )
    if all(dropped.how == "twins merged" for dropped in chosen):
        notes.append("units have twins with the same incoming weights: half of them can be left out exactly")
    return notes


def half_notes(structure: Structure, keep: float | Mapping[str, float]) -> list[str]:
    """Say where more units are kept than Definition 1 has it."""
    from lmccheck.dropping.choose_units import shares_of

    above = [group for group, share in shares_of(structure, keep).items() if share > 0.5]
    if not above:
        return []
    return [f"more than half of the units is kept in {', '.join(above)}; Definition 1 asks for at most half everywhere"]


def _failure(pair: View, structure: Structure, facts: Mapping[str, Any]) -> Failure:
    side, level = facts["worst"]["side"], facts["worst"]["level"]
    entry, error = facts["found"][side][level], facts["errors"][side][level]
    kept = ", ".join(f"{count} of {entry['units'][group]} in {group}" for group, count in entry["kept"].items())
    wrong = f", 0-1 error {error:.4g}" if error is not None else ""
    return Failure(
        pair.name,
        f"{called(side)} is not dropout stable: units to keep were not found within this budget "
        f"({facts['random_subsets']} subsets, seed {facts['seed']}), which does not prove that there are none",
        "ε",
        f"{of_endpoint(side, 'endpoint ', ', ')}level {level} ({', '.join(facts['worst']['groups'])}) and later, "
        f"{kept}, found by '{entry['how']}', loss {facts['losses'][side][level]:.4g}{wrong}",
        measured_on(pair.data),
        seen(facts["epsilon"]),
        "dropped networks",
        [f"without refit it is {facts['epsilon_plain'][side][level]:.4g}"] if facts["refit"] else [],
        next=wider_search(pair.network, structure, facts),
    )
