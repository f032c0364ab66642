"""Saved dropped networks measured anew, without searching: are they what they claim to be, and is their loss low?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.errors import WitnessError
from lmccheck.explain import called, of_endpoint
from lmccheck.finding import Failure, Finding, Where
from lmccheck.properties.dropout_stability import by_level, compared, excess, half_notes, seen, worst_of
from lmccheck.properties.inner import idle_notes, inner_facts, inner_notes, known_of
from lmccheck.properties.low_loss_path import limit_of
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import end_of, measured_on, own_measurements, precision_of, thetas_of
from lmccheck.properties.settings import Limit, Profile, SavedDropout, Seed, Shares

if TYPE_CHECKING:
    from lmccheck.dropping.stability import StabilityWitness
    from lmccheck.network.view import View
    from lmccheck.symmetry.structure import Structure

NAME = "verify_dropout"
ADVICE = ("dropout_stability, which searches for other units",)
HALF = 0.5  # keep, where neither a call nor a witness says one: Definition 1


@check(
    of=("pair", "model"),
    claim="L(θ_i) − L(θ) ≤ ε for saved networks θ_i",
    quantifier="for all i, these units",
    certifies="exactly this, and that every θ_i is a dropped version of θ",
)
def verify_dropout(
    pair: View,
    witness: SavedDropout,
    *,
    epsilon: Limit | None = None,
    keep: Shares | None = None,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that saved networks θ_i are dropped versions of the endpoints θ with L(θ_i) ≤ L(θ) + ε, for every level i.

    ``witness``: of ``dropout_stability``, or the file it was saved to. Checked are that all levels of every endpoint
    are there, that at most ⌊keep·h⌋ units of every dropped group are read, and that nothing else differs from the
    endpoint than the layers that read them, these layers' biases, and BatchNorm statistics behind them. Losses are
    measured in float64; nothing is taken from the file but weights and what was asked: ``epsilon``, and ``keep`` (a
    share, or one per unit group), where they are not given. ``details`` hold ``epsilon`` per endpoint and level. Raises
    CheckpointError: WitnessError, which is a SymmetryError too, where a network is not what it says.
    """
    import torch

    from lmccheck.dropping.stability import measure_dropped
    from lmccheck.evaluate.evaluator import Evaluator

    structure = pair.network.droppable(NAME)
    given, notes = _honest(pair, structure, witness, keep)
    limit, stated, said = limit_of(epsilon, given.epsilon)
    evaluator = Evaluator(pair.network, *thetas_of(pair), dtype=torch.float64)
    own = own_measurements(pair, evaluator)
    details: dict[str, Any] = {**stated, **inner_facts(pair, structure)}
    ends = tuple(end_of(name, one) for name, one in own.items())
    networks = {e.name: [d for _, d in sorted(given.found[e.name].items())] for e in ends}
    found = {side: [measure_dropped(evaluator, structure, d, side) for d in ds] for side, ds in networks.items()}
    costs = {end.name: [excess(measured, end.loss) for measured in found[end.name]] for end in ends}
    value, side, level = worst_of(costs)
    finding = Finding(
        value,
        limit,
        pair.loss.unit,
        endpoints=ends,
        worst_loss=found[side][level].loss,
        above="own",
        where=Where(side=side, layer=structure.levels[level][0]),
        curve=by_level(structure, costs),
        notes=[*said, *notes, *inner_notes(structure), *idle_notes(details["without_effect"])],
        witness=replace(given, epsilon=limit),
        known=known_of(structure, "exact", details["without_effect"]),
        evaluations=evaluator.evaluations,
        facts={
            "epsilon": costs,
            "keep": dict(given.keep) if isinstance(given.keep, Mapping) else given.keep,
            **details,
            "levels": [list(level) for level in structure.levels],
            "kept": {side: {g: len(u) for g, u in given.found[side][0].keep.items()} for side in costs},
            "drops": True,
            "samples": pair.data.samples,
            "precision": precision_of(evaluator),
        },
        compared=compared(found, own),
    )
    return finding.explained(lambda: _failure(pair, structure, finding, level))


def _failure(pair: View, structure: Structure, found: Finding, level: int) -> Failure:
    side = str(found.where.side)
    return Failure(
        pair.name,
        f"{called(side)} is not dropout stable by these networks",
        "ε",
        f"{of_endpoint(side, 'endpoint ', ', ')}level {level} ({', '.join(structure.levels[level])})",
        measured_on(pair.data),
        seen(found.facts["epsilon"]),
        "dropped networks",
        next=ADVICE,
    )


def _honest(
    pair: View, structure: Structure, witness: Any, keep: float | Mapping[str, float] | None
) -> tuple[StabilityWitness, list[str]]:
    """Return a witness, or what its file holds, with the share of units that it was held to, and what to say of that.

    Raises WitnessError where a network in it is not what it says.
    """
    from lmccheck.dropping.stability import StabilityWitness, load_dropped

    given = (
        witness
        if isinstance(witness, StabilityWitness)
        else load_dropped(pair.base / witness, pair.named_endpoints, structure)
    )
    share = next(share for share in (keep, given.keep, HALF) if share is not None)
    _require_dropped(pair, structure, given, share)
    if not _drops(structure, given):
        raise WitnessError(f"{NAME}: these networks drop no unit, so that nothing is shown; mend: make them again")
    its_own = keep is None and given.keep is not None
    notes = [f"keep = {given.keep} is the one that the witness was made for"] if its_own else []
    if keep is not None and (few := _fewer(structure, given, share)):
        notes.append(
            f"keep = {keep} lets more units stay than these networks read ({few}), of which alone this is said"
        )
    return replace(given, keep=share), [*notes, *half_notes(structure, share)]


def _drops(structure: Structure, given: StabilityWitness) -> bool:
    """Whether any network reads fewer units than there are."""
    networks = [dropped for levels in given.found.values() for dropped in levels.values()]
    return any(len(units) < structure.sizes[group] for one in networks for group, units in one.keep.items())


def _fewer(structure: Structure, given: StabilityWitness, keep: float | Mapping[str, float]) -> str:
    """Return the first group of which every network reads fewer units than it may, in words; empty where none is."""
    from lmccheck.dropping.choose_units import unit_counts

    allowed = unit_counts(structure, keep)
    read: dict[str, int] = {}
    for dropped in (dropped for levels in given.found.values() for dropped in levels.values()):
        for group, units in dropped.keep.items():
            read[group] = max(read.get(group, 0), len(units))
    found = next((group for group, count in read.items() if count < allowed[group]), None)
    return "" if found is None else f"{read[found]} of the {allowed[found]} allowed in {found}"


def _require_dropped(
    pair: View, structure: Structure, given: StabilityWitness, keep: float | Mapping[str, float]
) -> None:
    """Raise WitnessError unless there is a θ_i for every level of every endpoint, and no other network."""
    from lmccheck.dropping.freedom import dropped_violation

    levels = range(len(structure.levels))
    if strange := sorted(set(given.found) - set(pair.named_endpoints)):
        raise WitnessError(
            f"{NAME}: networks of {strange[0]!r}, expected those of {' and '.join(map(called, pair.named_endpoints))}"
        )
    for side, end in pair.named_endpoints.items():
        held = given.found.get(side, {})
        for level in sorted({*levels, *held}):
            if level not in held:
                raise WitnessError(f"{NAME}: no network{of_endpoint(side)} with units dropped from level {level} on")
            wrong = dropped_violation(structure, structure.canonical(end.theta), held[level], keep)
            if wrong is not None or level != held[level].level:
                why = wrong or f"it says level {held[level].level}"
                raise WitnessError(
                    f"{NAME}: level {level}{of_endpoint(side)} is no dropped version of {called(side)}: {why}"
                )
