"""Noise stability: does the loss stay low with random units dropped, or with noise in what layers read?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Draws
from lmccheck.errors import LmcError
from lmccheck.explain import called, of_endpoint
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where, bound_of
from lmccheck.properties.draws import (
    CONFIDENCE,
    DRAWS,
    held_note,
    held_of,
    share_that_holds,
    unsettled,
    verdict_of,
    worse_end,
)
from lmccheck.properties.inner import idle_notes, inner_facts, inner_notes, known_of
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import end_of, measured_on, own_measurements, precision_of, thetas_of
from lmccheck.properties.settings import Limit, Masks, Noise, Probability, Profile, Quantile, Seed, Size

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.dropping.masks import NoiseWitness
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns
    from lmccheck.network.view import View
    from lmccheck.symmetry.structure import Structure

NAME = "noise_stability"
NOT_ASKED = {"why": "measured when asked for: diagnostics = true"}
COST = "q_k = max over t of L(θ + t·(θ¹_k − θ)) − L(θ), θ¹_k with mask k (Kuditipudi et al. 2019, Lemma 3)"
P = 0.2  # of a unit to be dropped
SIZE = 0.1  # of Gaussian noise, in the length of what it is put into
QUARTER, HALF = 0.25, 0.5  # of draws that have to hold: of masks, for one to be found; of noise, to be typical
SAMPLES = {"dev": 32, "ci": 128, "thorough": 512}  # on which layers are looked at one by one
START = 0.0  # of every line to a mask: the network itself, whose loss is known


@check(
    of=("pair", "model"),
    claim="max_t L(θ + t(θ₁ − θ)) − L(θ) ≤ ε, θ₁ by random dropout (Lemma 3)",
    quantifier="for a quarter of masks",
    certifies="the share of good masks, at 95 % confidence",
)
def noise_stability(
    pair: View,
    *,
    epsilon: Limit = 0.05,
    p: Probability | None = None,
    masks: Masks | None = None,
    quantile: Quantile | None = None,
    noise: Noise = "masks",
    size: Size | None = None,
    seed: Seed = 0,
    profile: Profile = "ci",
    diagnostics: bool | None = False,
) -> Finding:
    """Assert that noise (units dropped at random, or Gaussian) seldom raises a loss by more than ``epsilon``.

    θ is stable if P(q ≤ ε) ≥ ``quantile``: 1/4 for masks, as in Lemma 3, ½ for Gaussian noise. Of K independent draws
    (``masks``: 8, 20 or 100 by profile; 8 can pass but not fail) it passes when the exact 95 % interval of that
    probability lies at or above ``quantile`` for every endpoint, fails when it lies below for one, else is
    inconclusive: over the draws a false fail has probability at most 5 %, a false pass at most 2.5 %. ``epsilon``: in
    the loss's unit, or ``"5%"`` of the worse endpoint's loss.

    ``noise = "masks"``: q_k = max_t L(θ + t·(θ¹_k − θ)) − L(θ) ≥ 0, t in 0, ¼, ½, ¾, 1; θ¹_k has every hidden unit's
    outgoing weights times 0 with probability ``p`` (0.2), else 1/(1−p); biases and inputs stay, BatchNorm keeps its own
    statistics. ``diagnostics``: explain it by Gaussian noise in every unit group, ‖η‖/‖x‖ = ``size`` (or the number
    given as ``noise``), and by the constants of section 4 for chains of layers; neither decides.

    ``noise = "gaussian"``, on any network: q_k = L(x + η_k for every x that a layer reads) − L, ‖η‖ = ``size``·‖x‖,
    0.1 where ``size`` is left out; see ``properties/gaussian_noise.py``. ``details["gaussian"]`` say what it does in
    each layer alone.

    ``value`` is the worse endpoint's ``quantile`` of q, ``interval`` its order-statistics interval; the witness
    (NoiseWitness, GaussianWitness) recomputes every draw. ``details`` hold, per endpoint, ``q``, ``quantile``,
    ``share``, ``interval`` and ``losses``. ``decide = "population"`` asks the same of all draws and of new data: half
    of 1 − ``confidence`` is left to the draws, as above, half to the samples that each of them is judged by. Of
    Gaussian noise, which each sample has of its own, all draws cost new data the same: the mean over draws is judged.
    Raises LmcError when nothing sound can be said.
    Source: Kuditipudi et al. 2019, Algorithm 1 and Lemma 3, and their talk; Arora et al. 2018 for the noise.
    """
    draws = DRAWS[profile] if masks is None else masks
    if size is not None and noise != "gaussian" and not diagnostics:
        raise LmcError(f'{NAME}: size = {size:g} is of Gaussian noise; mend: say noise = "gaussian", or leave size out')
    size = SIZE if size is None else size
    if noise == "gaussian":
        from lmccheck.properties.gaussian_noise import gaussian_stability

        if p is not None:
            raise LmcError(f'{NAME}: p = {p:g} is of masks, and noise = "gaussian"; mend: leave p out, or say size')
        share = HALF if quantile is None else quantile
        return gaussian_stability(
            pair, epsilon=epsilon, size=size, draws=draws, quantile=share, seed=seed, samples=SAMPLES[profile]
        )
    explained = (size if noise == "masks" else float(noise)) if diagnostics else None
    share = QUARTER if quantile is None else quantile
    return _masked(pair, draws, explained, epsilon=epsilon, p=P if p is None else p, quantile=share, seed=seed)


def _masked(
    pair: View, masks: int, explained: float | None, *, epsilon: float | str, p: float, quantile: float, seed: int
) -> Finding:
    """Return what is found with ``masks`` dropout masks; ``explained``: by noise of this size, if at all."""
    from lmccheck.diagnose.constants import constants, gaussian
    from lmccheck.dropping.masks import dropout_mask, mask_seed
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns

    structure = pair.network.droppable(NAME)
    evaluator = Evaluator(pair.network, *thetas_of(pair))
    own = own_measurements(pair, evaluator)
    ends = tuple(end_of(name, one) for name, one in own.items())
    sizes = {group: structure.sizes[group] for group in structure.groups}
    drawn = [dropout_mask(sizes, p, mask_seed(seed, k)) for k in range(masks)]
    _require_dropped(p, masks, sum(sizes.values()))
    runs = MaskedRuns(pair.network, structure, pair.data, evaluator.dtype)
    bound = bound_of(epsilon, max(end.loss for end in ends))
    losses = {name: _losses(runs, structure, end.theta, drawn) for name, end in pair.named_endpoints.items()}
    costs = {end.name: _costs(_means(losses[end.name]), end.loss, bound, quantile) for end in ends}
    facts = {
        "p": p,
        "quantile": quantile,
        "gaussian": None if explained is None else gaussian(pair.named_endpoints, structure, explained, seed),
        "diagnostics": NOT_ASKED if explained is None else constants(pair.named_endpoints, structure, drawn, seed),
        "units": sizes,
        "vectorised": runs.vectorised,
    }
    inner = inner_facts(pair, structure)
    found = _finding(evaluator, ends, costs, epsilon, {**facts, **inner})
    found = replace(
        found,
        witness=_witness(costs, p, seed, sizes),
        compared=compared(losses, {name: one.losses for name, one in own.items()}),
        share=quantile,
        evaluations=evaluator.evaluations + runs.evaluations,
        known=known_of(structure, str(found.known), inner["without_effect"]),
        notes=[*found.notes, *inner_notes(structure), *idle_notes(inner["without_effect"])],
    )
    return found.explained(lambda: _failure(pair, found, costs))


def _require_dropped(p: float, masks: int, units: int) -> None:
    """Raise LmcError where more likely than not no mask drops any unit: nothing would be measured."""
    if (1 - p) ** (masks * units) > 0.5:
        raise LmcError(
            f"{NAME}: p = {p:g}: {masks} masks of {units} units will hardly drop one, so that nothing would be "
            "measured; mend: a larger p, or more masks"
        )


def _finding(
    evaluator: Evaluator,
    ends: tuple[End, ...],
    costs: Mapping[str, dict[str, Any]],
    epsilon: float | str,
    facts: Mapping[str, Any],
) -> Finding:
    from lmccheck.dropping.masks import T_GRID

    share = facts["quantile"]
    worse = worse_end(costs)
    return Finding(
        costs[worse]["quantile"],
        epsilon,
        evaluator.network.loss.unit,
        endpoints=ends,
        worst_loss=max(max(row) for row in costs[worse]["losses"]),
        above="own",
        where=Where(side=worse),
        curve=Draws({end: cost["q"] for end, cost in costs.items()}, share, "mask"),
        interval=costs[worse]["quantile_interval"],
        verdict=verdict_of(costs),
        notes=_notes(evaluator, facts["p"], costs, share),
        known=f"{len(costs[worse]['q'])} masks sampled at p = {facts['p']:g}, {100 * CONFIDENCE:g} %",
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


def _witness(costs: Mapping[str, dict[str, Any]], p: float, seed: int, sizes: Mapping[str, int]) -> NoiseWitness:
    from lmccheck.dropping.masks import T_GRID, NoiseWitness

    q = {end: tuple(facts["q"]) for end, facts in costs.items()}
    losses = {end: tuple(map(tuple, facts["losses"])) for end, facts in costs.items()}
    worst, best = ({end: facts[key] for end, facts in costs.items()} for key in ("worst_mask", "best_mask"))
    return NoiseWitness(p, seed, T_GRID, sizes, q, losses, worst, best)


def _losses(runs: MaskedRuns, structure: Structure, theta: Mapping[str, Tensor], drawn: Sequence[Any]) -> Tensor:
    """Return what samples lose at one endpoint on the way to every mask, (masks, t, n) float64."""
    from lmccheck.dropping.edit import lines
    from lmccheck.dropping.masks import T_GRID, stacked

    runs.load(theta)
    return runs.losses(lines(structure, stacked(drawn, T_GRID))).reshape(len(drawn), len(T_GRID), -1)


def _means(losses: Tensor) -> list[list[float]]:
    return [[float(x) for x in row] for row in losses.mean(2)]


def compared(losses: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Compared]:
    """Return every point on the way to every mask beside its endpoint, sample by sample."""
    from lmccheck.dropping.masks import T_GRID

    shares = tuple(own.values())
    return [
        Compared(f"with mask {k} at t = {t:.4g}{of_endpoint(end)}", each, (own[end],), shares, draw=(end, k))
        for end, masks in losses.items()
        for k, mask in enumerate(masks)
        for t, each in zip(T_GRID, mask, strict=True)
    ]


def _costs(losses: list[list[float]], loss: float, bound: float, share: float) -> dict[str, Any]:
    """Return what every mask costs one endpoint, and what that says; JSON-able."""
    from lmccheck.dropping.masks import T_GRID

    heights = [[x - loss if math.isfinite(x) else math.inf for x in row] for row in losses]
    highest = [max((START, 0.0), *zip(T_GRID, row, strict=True), key=lambda at: at[1]) for row in heights]
    q = [height for _, height in highest]
    return {
        **share_that_holds(q, bound, share),
        "losses": losses,
        "worst_t": [t for t, _ in highest],
        "worst_mask": q.index(max(q)),
        "best_mask": q.index(min(q)),
    }


def _notes(evaluator: Evaluator, p: float, costs: Mapping[str, Mapping[str, Any]], share: float) -> list[str]:
    notes = [held_note(costs, "masks", share)]
    if evaluator.batchnorms:
        notes.append("BatchNorm keeps each checkpoint's own statistics: they are not re-estimated with units dropped")
    if p > 0.75:
        notes.append(f"p = {p:g} is outside the theory, which needs p ≤ 3/4")
    return notes


def _failure(pair: View, found: Finding, costs: Mapping[str, dict[str, Any]]) -> Failure:
    from lmccheck.dropping.masks import mask_seed

    share, witness = found.facts["quantile"], found.witness
    advice: list[str] = []
    end = next(e for e in (found.facts["worse"], *costs) if costs[e]["verdict"] == found.verdict)
    facts = costs[end]
    q, worst, held = facts["q"], facts["worst_mask"], held_of(facts, "masks", share)
    what = f"not noise stable: {called(end, 'endpoint ')} loses too much with units dropped at p = {witness.p:g}"
    if found.verdict == "inconclusive":
        more, advice = unsettled(costs, "masks", share)
        what = f"noise stability of {called(end, 'endpoint ')} is not settled: {held}: {more}"
    at = facts["worst_t"][worst]
    loss = facts["losses"][worst][witness.t.index(at)] if at else next(x.loss for x in found.endpoints if x.name == end)
    return Failure(
        pair.name,
        what,
        f"{share:.0%} quantile of q = max over t of L(θ_t) - L(θ):",
        f"{of_endpoint(end, 'endpoint ', ', ')}mask {worst} (seed {mask_seed(witness.seed, worst)}), t = {at:.4g} of "
        f"θ_t = θ + t·(dropped - θ), loss {loss:.4g}",
        measured_on(pair.data),
        [Seen(x, f"with mask {k} at t = {t:.4g}") for k, (x, t) in enumerate(zip(q, facts["worst_t"], strict=True))],
        "masks",
        [held],
        value=facts["quantile"],
        next=advice or _advice(found),
    )


def _advice(found: Finding) -> list[str]:
    """Return what else may be asked: random units are the worst choice, and where noise grows can be seen."""
    explain = ["diagnostics = true, which shows the layers that amplify it"] if found.facts["gaussian"] is None else []
    return ["dropout_stability, which searches for the units to keep instead of drawing them", *explain]
