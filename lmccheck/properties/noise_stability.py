"""Noise stability: does the loss stay low on the way to a network with random units dropped?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.finding import End, Failure, Finding, Seen, Verdict, Where, bound_of
from lmccheck.properties.low_loss_path import covered_structure
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import measured_endpoints, measured_on, precision_of, thetas_of
from lmccheck.properties.settings import Limit, Masks, Noise, Probability, Profile, Quantile, Seed
from lmccheck.stats import MOST_TRIALS, clopper_pearson, quantile_interval, quantile_of, trials_to_settle

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.dropping.masks import NoiseWitness
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns
    from lmccheck.network.pair import ModelPair
    from lmccheck.symmetry.structure import Structure

NAME = "noise_stability"
MASKS = {"dev": 8, "ci": 20, "thorough": 100}
CONFIDENCE = 0.95
NOT_ASKED = {"why": "measured when asked for: diagnostics = true"}
VERDICTS: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")  # of two endpoints the first counts
COST = "q_k = max over t of L(θ + t·(θ¹_k − θ)) − L(θ), θ¹_k with mask k (Kuditipudi et al. 2019, Lemma 3)"
START = 0.0  # of every line to a mask: the network itself, whose loss is known


@check(
    of="pair",
    claim="max_t L(θ + t(θ₁ − θ)) − L(θ) ≤ ε, θ₁ by random dropout (Lemma 3)",
    quantifier="for a quarter of masks",
    certifies="the share of good masks, at 95 % confidence",
)
def noise_stability(
    pair: ModelPair,
    *,
    epsilon: Limit = 0.05,
    p: Probability = 0.2,
    masks: Masks | None = None,
    quantile: Quantile = 0.25,
    noise: Noise = 0.1,
    seed: Seed = 0,
    profile: Profile = "ci",
    diagnostics: bool | None = False,
) -> Finding:
    """Assert that dropping units at random raises neither endpoint's loss by more than ``epsilon``, often enough.

    q_k = max_t L(θ + t·(θ¹_k − θ)) − L(θ) ≥ 0, t in 0, ¼, ½, ¾, 1, with L the mean loss on the evaluation data and θ¹_k
    the network with dropout mask k: every hidden unit's outgoing weights times 0 with probability ``p``, else 1/(1−p);
    biases and inputs stay, BatchNorm keeps its own statistics. θ is stable if P(q ≤ ε) ≥ ``quantile`` (1/4 in the
    paper's Lemma 3): of K independent masks, passes when the exact 95 % interval of that probability lies at or above
    ``quantile`` for both endpoints, fails when it lies below it for one, and is inconclusive in between. Each tail is
    2.5 %, so over the draw of masks a false fail has probability at most 5 %, a false pass at most 2.5 %.

    ``epsilon``: in the loss's unit, or ``"5%"`` of the worse endpoint's loss. ``masks``: K, 8, 20 or 100 by profile
    (8 can pass but not fail). ``diagnostics``: explain it by Gaussian noise in every unit group, ‖η‖/‖x‖ = ``noise``,
    and by the constants of section 4 for chains of layers; neither decides.

    ``value`` is the worse endpoint's ``quantile`` of q, ``interval`` its order-statistics interval; the witness
    (NoiseWitness) recomputes every mask. ``details`` hold, per endpoint, ``q``, ``quantile``, ``share``, ``interval``,
    ``losses`` and ``worst_t``, and ``gaussian`` (None) and ``diagnostics`` (only ``why``) unless asked for.
    A pass is about this data, these t, and masks as drawn. Raises LmcError (SourceError, UnsupportedArchitecture) when
    nothing sound can be said.
    Source: Kuditipudi et al. 2019, Algorithm 1 and Lemma 3; Arora et al. 2018 for the noise.
    """
    from lmccheck.diagnose.constants import constants, gaussian
    from lmccheck.dropping.masks import dropout_mask, mask_seed
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns

    structure = covered_structure(pair, NAME)
    evaluator = Evaluator(pair.network, *thetas_of(pair))
    ends = measured_endpoints(pair, evaluator)
    sizes = {group: structure.sizes[group] for group in structure.groups}
    drawn = [dropout_mask(sizes, p, mask_seed(seed, k)) for k in range(MASKS[profile] if masks is None else masks)]
    runs = MaskedRuns(pair.network, structure.layers, pair.data, evaluator.dtype)
    bound = bound_of(epsilon, max(end.loss for end in ends))
    costs = {
        end.name: _costs(_losses(runs, structure, theta, end, drawn), end.loss, bound, quantile)
        for end, theta in zip(ends, thetas_of(pair), strict=True)
    }
    facts = {
        "p": p,
        "quantile": quantile,
        "gaussian": gaussian(pair.named_endpoints, structure, noise, seed) if diagnostics else None,
        "diagnostics": constants(pair.named_endpoints, structure, drawn, seed) if diagnostics else NOT_ASKED,
        "units": sizes,
        "vectorised": runs.vectorised,
    }
    evaluations = evaluator.evaluations + runs.evaluations
    found = _finding(evaluator, ends, costs, epsilon, facts)
    found = replace(found, witness=_witness(costs, p, seed, sizes), evaluations=evaluations)
    return found.explained(lambda: _failure(pair, found, costs))


def _finding(
    evaluator: Evaluator,
    ends: tuple[End, ...],
    costs: Mapping[str, dict[str, Any]],
    epsilon: float | str,
    facts: Mapping[str, Any],
) -> Finding:
    from lmccheck.dropping.masks import T_GRID

    share = facts["quantile"]
    worse = max(costs, key=lambda end: _standing(costs[end]))
    verdicts = {of_end["verdict"] for of_end in costs.values()}
    return Finding(
        costs[worse]["quantile"],
        epsilon,
        evaluator.network.loss.unit,
        endpoints=ends,
        worst_loss=max(max(row) for row in costs[worse]["losses"]),
        above="own",
        where=Where(side=worse),
        interval=quantile_interval(costs[worse]["q"], share, CONFIDENCE),
        verdict=next(verdict for verdict in VERDICTS if verdict in verdicts),
        notes=_notes(evaluator, facts["p"], costs, share),
        known=f"{len(costs[worse]['q'])} masks sampled, {100 * CONFIDENCE:g} %",
        facts={
            "definition": COST,
            "masks": len(costs[worse]["q"]),
            "t": list(T_GRID),
            "confidence": CONFIDENCE,
            **costs,
            "worse": worse,
            "samples": evaluator.network.data.samples,
            "precision": precision_of(evaluator),
            **facts,
        },
    )


def _standing(cost: Mapping[str, Any]) -> tuple[float, int, int]:
    """Return how bad it stands with an endpoint: by what masks cost, then by its verdict and how many masks hold."""
    return cost["quantile"], -VERDICTS.index(cost["verdict"]), -cost["hits"]


def _witness(costs: Mapping[str, dict[str, Any]], p: float, seed: int, sizes: Mapping[str, int]) -> NoiseWitness:
    from lmccheck.dropping.masks import T_GRID, NoiseWitness

    q = {end: tuple(facts["q"]) for end, facts in costs.items()}
    losses = {end: tuple(map(tuple, facts["losses"])) for end, facts in costs.items()}
    worst, best = ({end: facts[key] for end, facts in costs.items()} for key in ("worst_mask", "best_mask"))
    return NoiseWitness(p, seed, T_GRID, sizes, q, losses, worst, best)


def _losses(
    runs: MaskedRuns, structure: Structure, theta: Mapping[str, Tensor], end: End, drawn: Sequence[Any]
) -> list[list[float]]:
    """Return the losses of one endpoint on the way to every mask, (masks, t)."""
    from lmccheck.dropping.edit import lines
    from lmccheck.dropping.masks import T_GRID, stacked

    factors, width = stacked(drawn, T_GRID), len(T_GRID)
    if all(bool((multipliers == 1).all()) for multipliers in factors.values()):
        return [[end.loss] * width for _ in drawn]  # nothing is dropped: the network itself
    runs.load(theta)
    flat = [float(x) for x in runs.losses(lines(structure, factors)).mean(1)]
    return [flat[k * width : (k + 1) * width] for k in range(len(drawn))]


def _costs(losses: list[list[float]], loss: float, bound: float, share: float) -> dict[str, Any]:
    """Return what every mask costs one endpoint, and what that says; JSON-able."""
    from lmccheck.dropping.masks import T_GRID

    heights = [[x - loss if math.isfinite(x) else math.inf for x in row] for row in losses]
    highest = [max((START, 0.0), *zip(T_GRID, row, strict=True), key=lambda at: at[1]) for row in heights]
    q = [height for _, height in highest]
    hits = sum(x <= bound for x in q)
    low, high = clopper_pearson(hits, len(q), CONFIDENCE)
    return {
        "q": q,
        "quantile": quantile_of(q, share),
        "quantile_interval": quantile_interval(q, share, CONFIDENCE),
        "share": hits / len(q),
        "hits": hits,
        "interval": [low, high],
        "verdict": "pass" if low >= share else "fail" if high < share else "inconclusive",
        "losses": losses,
        "worst_t": [t for t, _ in highest],
        "worst_mask": q.index(max(q)),
        "best_mask": q.index(min(q)),
    }


def _notes(evaluator: Evaluator, p: float, costs: Mapping[str, Mapping[str, Any]], share: float) -> list[str]:
    count = len(next(iter(costs.values()))["q"])
    held = [
        f"{x['hits']} of {count} hold for {end} (95 % interval {_shown(x['interval'])})" for end, x in costs.items()
    ]
    notes = [f"{count} masks: {', '.join(held)}, need ≥ {share:g}"]
    if evaluator.batchnorms:
        notes.append("BatchNorm keeps each checkpoint's own statistics: they are not re-estimated with units dropped")
    if p > 0.75:
        notes.append(f"p = {p:g} is outside the theory, which needs p ≤ 3/4")
    return notes


def _shown(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]"


def _failure(pair: ModelPair, found: Finding, costs: Mapping[str, dict[str, Any]]) -> Failure:
    from lmccheck.dropping.masks import mask_seed

    share, witness, advice = found.facts["quantile"], found.witness, []
    end = next(e for e in (found.facts["worse"], *costs) if costs[e]["verdict"] == found.verdict)
    facts = costs[end]
    q, hits, worst, count = facts["q"], facts["hits"], facts["worst_mask"], len(facts["q"])
    held = f"{hits} of {count} masks hold, 95 % interval {_shown(facts['interval'])}, need ≥ {share:g}"
    what = f"not noise stable: endpoint {end} loses too much with units dropped at p = {witness.p:g}"
    if found.verdict == "inconclusive":
        needed = _masks_to_settle(costs, share)
        more = f"about {needed} masks would settle it" if needed else f"even {MOST_TRIALS} masks would hardly settle it"
        advice = [f"masks = {needed}, if as many hold as did of these {count}"] if needed else []
        what = f"noise stability of endpoint {end} is not settled: {held}: {more}"
    at = facts["worst_t"][worst]
    loss = facts["losses"][worst][witness.t.index(at)] if at else next(x.loss for x in found.endpoints if x.name == end)
    return Failure(
        pair.name,
        what,
        f"{share:.0%} quantile of q = max over t of L(θ_t) - L(θ):",
        f"endpoint {end}, mask {worst} (seed {mask_seed(witness.seed, worst)}), t = {at:.4g} of θ_t = θ + t·(dropped - "
        f"θ), loss {loss:.4g}",
        measured_on(pair.data),
        [Seen(x, f"with mask {k} at t = {t:.4g}") for k, (x, t) in enumerate(zip(q, facts["worst_t"], strict=True))],
        "masks",
        [held],
        value=facts["quantile"],
        next=advice or _advice(found),
    )


def _masks_to_settle(costs: Mapping[str, dict[str, Any]], share: float) -> int | None:
    """Return how many masks would settle every endpoint that is not settled, shares as seen; None for too many."""
    needed = [
        trials_to_settle(of_end["hits"], len(of_end["q"]), share, CONFIDENCE)
        for of_end in costs.values()
        if of_end["verdict"] == "inconclusive"
    ]
    return None if None in needed else max(count for count in needed if count is not None)


def _advice(found: Finding) -> list[str]:
    """Return what else may be asked: random units are the worst choice, and where noise grows can be seen."""
    explain = ["diagnostics = true, which shows the layers that amplify it"] if found.facts["gaussian"] is None else []
    return ["dropout_stability, which searches for the units to keep instead of drawing them", *explain]
