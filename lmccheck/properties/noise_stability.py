"""Noise stability: does the loss stay low on the way to a network with random units dropped?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.properties.limits import read_limit
from lmccheck.properties.remarks import measured_endpoint
from lmccheck.result import Result, Verdict
from lmccheck.stats import clopper_pearson, quantile_interval, quantile_of, trials_to_settle

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.dropping.masks import NoiseWitness
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns
    from lmccheck.network.pair import ModelPair
    from lmccheck.symmetry.structure import Structure

MASKS = {"dev": 8, "ci": 20, "thorough": 100}
CONFIDENCE = 0.95
COST = "q_k = max over t of L(θ + t·(θ¹_k − θ)) − L(θ), θ¹_k with mask k (Kuditipudi et al. 2019, Lemma 3)"


def noise_stability(
    pair: ModelPair,
    *,
    epsilon: float | str = 0.05,
    p: float = 0.2,
    masks: int | None = None,
    quantile: float = 0.25,
    noise: float = 0.1,
    seed: int = 0,
    profile: str = "ci",
    diagnostics: bool | None = None,
) -> Result:
    """Assert that dropping units at random raises neither endpoint's loss by more than ``epsilon``, often enough.

    q_k = max_t L(θ + t·(θ¹_k − θ)) − L(θ), t in ¼, ½, ¾, 1, with L the mean loss on the evaluation data and θ¹_k the
    network with dropout mask k: every hidden unit's outgoing weights times 0 with probability ``p``, else 1/(1−p);
    biases and inputs stay, BatchNorm keeps its own statistics. θ is stable if P(q ≤ ε) ≥ ``quantile`` (1/4 in the
    paper's Lemma 3): of K independent masks, passes when the exact 95 % interval of that probability lies at or above
    ``quantile`` for both endpoints, fails when it lies below it for one, and is inconclusive in between. Each tail is
    2.5 %, so over the draw of masks a false fail has probability at most 5 %, a false pass at most 2.5 %.

    ``epsilon``: in the loss's unit, or ``"5%"`` of the worse endpoint's loss. ``masks``: K, 8, 20 or 100 by profile
    (8 can pass but not fail). ``noise``: ‖η‖/‖x‖ of the Gaussian noise reported per unit group. ``diagnostics``: the
    constants of section 4 for chains of layers (by default but for profile ``dev``); neither decides.

    ``value`` is the worse endpoint's ``quantile`` of q, ``interval`` its order-statistics interval; the witness
    (NoiseWitness) recomputes every mask. ``details`` hold, per endpoint, ``q``, ``quantile``, ``share``, ``interval``,
    ``losses`` and ``worst_t``, and ``gaussian`` and ``diagnostics``.
    A pass is about this data, these t, and masks as drawn. Raises LmcError (SourceError, UnsupportedArchitecture) when
    nothing sound can be said.
    Source: Kuditipudi et al. 2019, Algorithm 1 and Lemma 3; Arora et al. 2018 for the noise.
    """
    from lmccheck.diagnose.constants import constants, gaussian
    from lmccheck.dropping.masks import T_GRID, NoiseWitness, dropout_mask, mask_seed
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.masked import MaskedRuns
    from lmccheck.properties.low_loss_path import require_covered, structure_for

    started = time.perf_counter()
    _require(epsilon, p, masks, quantile, noise, seed, profile)
    structure = structure_for(pair, "noise_stability")
    require_covered(structure, "noise_stability")
    count = MASKS[profile] if masks is None else masks
    evaluator = Evaluator(pair)
    ends = {end: measured_endpoint(evaluator, theta, end) for end, theta in (("a", pair.theta_a), ("b", pair.theta_b))}
    bound = read_limit(epsilon, max(found.loss for found in ends.values()), "noise_stability")
    sizes = {group: structure.sizes[group] for group in structure.groups}
    drawn = [dropout_mask(sizes, p, mask_seed(seed, k)) for k in range(count)]
    runs = MaskedRuns(pair, structure.layers, pair.data, evaluator.dtype)
    found = {
        end: _costs(runs, structure, theta, ends[end].loss, drawn, T_GRID, bound, quantile)
        for end, theta in (("a", pair.theta_a), ("b", pair.theta_b))
    }
    worse = max(found, key=lambda end: found[end]["quantile"])
    witness = NoiseWitness(
        p,
        seed,
        T_GRID,
        sizes,
        {end: tuple(facts["q"]) for end, facts in found.items()},
        {end: tuple(tuple(row) for row in facts["losses"]) for end, facts in found.items()},
        {end: facts["worst_mask"] for end, facts in found.items()},
        {end: facts["best_mask"] for end, facts in found.items()},
    )
    verdict = _verdict([facts["verdict"] for facts in found.values()])
    asked = profile != "dev" if diagnostics is None else diagnostics
    off = {"why": "switched off" if diagnostics is False else f"profile {profile} leaves them out"}
    details: dict[str, Any] = {
        "definition": COST,
        "p": p,
        "masks": count,
        "t": list(T_GRID),
        "quantile": quantile,
        "confidence": CONFIDENCE,
        "a": found["a"],
        "b": found["b"],
        "worse": worse,
        "worst_side": worse,
        "loss_a": ends["a"].loss,
        "loss_b": ends["b"].loss,
        "error_a": ends["a"].error,
        "error_b": ends["b"].error,
        "units": sizes,
        "limit_given": epsilon,
        "samples": pair.data.samples,
        "precision": str(evaluator.dtype).removeprefix("torch."),
        "vectorised": runs.vectorised,
        "gaussian": gaussian(pair, structure, noise, seed),
        "diagnostics": constants(pair, structure, drawn, seed, diagnostics is True) if asked else off,
        "notes": _notes(evaluator, p, found, quantile, count),
    }
    if verdict != "pass":
        details["failure"] = _failure(pair, details, witness, verdict, bound)
    return Result(
        property="noise_stability",
        verdict=verdict,
        value=found[worse]["quantile"],
        limit=bound,
        unit=pair.loss.unit,
        interval=quantile_interval(found[worse]["q"], quantile, CONFIDENCE),
        witness=witness,
        evaluations=evaluator.evaluations + runs.evaluations,
        seconds=time.perf_counter() - started,
        details=details,
    )


def _require(epsilon: float | str, p: Any, masks: Any, share: Any, noise: Any, seed: Any, profile: Any) -> None:
    """Raise LmcError for a setting that is none."""
    read_limit(epsilon, 1.0, "noise_stability")
    if profile not in MASKS:
        raise LmcError(f"noise_stability: profile = {profile!r}; expected one of {sorted(MASKS)}")
    for name, value, low, high in (
        ("p", p, 0.0, 0.999999),
        ("quantile", share, 0.01, 0.99),
        ("noise", noise, 0.0, 10.0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise LmcError(f"noise_stability: {name} = {value!r}; expected a number from {low:g} to {high:g}")
    if masks is not None and (isinstance(masks, bool) or not isinstance(masks, int) or masks < 1):
        raise LmcError(f"noise_stability: masks = {masks!r}; expected an integer of at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"noise_stability: seed = {seed!r}; expected an integer")


def _costs(
    runs: MaskedRuns,
    structure: Structure,
    theta: Mapping[str, Tensor],
    loss: float,
    drawn: Sequence[Mapping[str, Tensor]],
    t: Sequence[float],
    bound: float,
    share: float,
) -> dict[str, Any]:
    """Return what every mask costs one endpoint, and what that says; JSON-able."""
    from lmccheck.dropping.edit import lines
    from lmccheck.dropping.masks import stacked

    factors = stacked(drawn, t)
    if all(bool((multipliers == 1).all()) for multipliers in factors.values()):
        flat = [loss] * (len(drawn) * len(t))  # nothing is dropped: the network itself
    else:
        runs.load(theta)
        flat = [float(x) for x in runs.losses(lines(structure, factors)).mean(1)]
    losses = [flat[k * len(t) : (k + 1) * len(t)] for k in range(len(drawn))]
    heights = [[x - loss if math.isfinite(x) else math.inf for x in row] for row in losses]
    q = [max(row) for row in heights]
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
        "worst_t": [t[row.index(max(row))] for row in heights],
        "worst_mask": q.index(max(q)),
        "best_mask": q.index(min(q)),
    }


def _verdict(ends: Sequence[Verdict]) -> Verdict:
    """Return the verdict on both endpoints: one that fails is enough."""
    return "fail" if "fail" in ends else "inconclusive" if "inconclusive" in ends else "pass"


def _notes(
    evaluator: Evaluator, p: float, found: Mapping[str, Mapping[str, Any]], share: float, count: int
) -> list[str]:
    notes = [
        f"{count} masks: "
        + ", ".join(
            f"{facts['hits']} of {count} hold for {end} (95 % interval {_shown(facts['interval'])})"
            for end, facts in found.items()
        )
        + f", need ≥ {share:g}"
    ]
    if evaluator.batchnorms:
        notes.append("BatchNorm keeps each checkpoint's own statistics: they are not re-estimated with units dropped")
    if p > 0.75:
        notes.append(f"p = {p:g} is outside the theory, which needs p ≤ 3/4")
    return notes


def _shown(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]"


def _failure(
    pair: ModelPair, details: Mapping[str, Any], witness: NoiseWitness, verdict: Verdict, bound: float
) -> list[str]:
    """Return the first five lines of a failure: what, measured, where, worst and smallest, endpoints."""
    from lmccheck.dropping.masks import mask_seed

    unit, share, count = pair.loss.unit, details["quantile"], details["masks"]
    end = next(e for e in (details["worse"], "a", "b") if details[e]["verdict"] == verdict)
    facts = details[end]
    q, hits, interval = facts["q"], facts["hits"], facts["interval"]
    worst = facts["worst_mask"]
    held = f"{hits} of {count} masks hold, 95 % interval {_shown(interval)}, need ≥ {share:g}"
    if verdict == "fail":
        what = (
            f"{pair.name}: not noise stable: endpoint {end} loses too much with units dropped at p = {details['p']:g}"
        )
    else:
        needed = trials_to_settle(hits, count, share, CONFIDENCE)
        more = f"about {needed} masks would settle it" if needed else "more masks of this kind would hardly settle it"
        what = f"{pair.name}: noise stability of endpoint {end} is not settled: {held}: {more}"
    at = facts["worst_t"][worst]
    loss = facts["losses"][worst][witness.t.index(at)]
    over = [k for k in range(count) if not q[k] <= bound]
    smallest = min(over, key=lambda k: q[k]) if over else worst
    ends = f"a {details['loss_a']:.4g}, b {details['loss_b']:.4g} {unit}"
    if details["error_a"] is not None:
        ends += f" (0-1 error a {details['error_a']:.4g}, b {details['error_b']:.4g})"
    return [
        what,
        f"{share:.0%} quantile of q = max over t of L(θ_t) - L(θ): {facts['quantile']:.4g} {unit}, limit {bound:.4g} "
        f"{unit}; {held}",
        f"where: endpoint {end}, mask {worst} (seed {mask_seed(witness.seed, worst)}), t = {at:.4g} of "
        f"θ_t = θ + t·(dropped - θ), loss {loss:.4g}, on {pair.data.origin} ({pair.data.samples} samples)",
        f"worst {q[worst]:.4g} with mask {worst}; smallest counterexample {q[smallest]:.4g} with mask {smallest} at "
        f"t = {facts['worst_t'][smallest]:.4g}; {len(over)} of {count} masks above the limit",
        f"endpoint losses: {ends}",
    ]
