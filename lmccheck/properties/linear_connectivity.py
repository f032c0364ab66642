"""Linear connectivity after alignment: is the straight segment between two networks free of a loss barrier?"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, nearest
from lmccheck.evaluate.line import BARRIER, Point, barrier, chord, sample
from lmccheck.properties.limits import read_limit
from lmccheck.properties.remarks import data_remarks, measured_endpoint
from lmccheck.result import Result, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.alignment.api import Alignment
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.segment import Segment
    from lmccheck.network.pair import ModelPair

LOG = logging.getLogger("lmccheck")
REFINEMENTS = {"dev": 0, "ci": 2, "thorough": 5}  # rounds of two extra points beside the worst t


def linear_connectivity(
    pair: ModelPair,
    *,
    align: str = "weight-matching",
    limit: float | str = 0.05,
    points: int = 25,
    repair: str = "bn",
    beyond: str | Collection[str] = (),
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that the loss on the segment from θ_A to π(θ_B) stays within ``limit`` of the chord.

    barrier = max_t L((1−t)·θ_A + t·π(θ_B)) − [(1−t)·L(θ_A) + t·L(θ_B)], with L the mean loss on the pair's evaluation
    data and L(θ_A), L(θ_B) those of the *original* endpoints. ``align``: ``none`` or a method of ``lmccheck.align``.
    ``limit``: in the loss's unit (nats for cross entropy), or ``"5%"`` of the worse endpoint's loss. ``points``:
    size of the grid, refined around the worst t. ``repair``: ``bn`` re-estimates BatchNorm statistics on calibration
    data at every point of the segment, its ends included; ``none`` leaves the interpolated ones; ``repair`` also gives
    the units of all other layers, between the ends, the means and deviations of the endpoints, interpolated (REPAIR).
    ``beyond``: maps beyond permutations, see ``lmccheck.align``; none by default.

    ``details`` hold ``t``, ``losses``, ``errors`` (0-1), ``naive_losses`` (identity alignment), ``barrier``,
    ``barrier_naive``, ``error_barrier``, ``error_barrier_naive``, ``worst_t``, ``repair`` and more; the witness is the
    Alignment.
    A pass is about this data and these points; a fail about this alignment, not about every permutation.
    Raises LmcError (SourceError, SymmetryError, UnsupportedArchitecture) when nothing sound can be said.
    Source: Frankle et al. 2020, Entezari et al. 2022 (definition), Ainsworth et al. 2023 (after permutation), Jordan et
    al. 2023 (repair).
    """
    from lmccheck.alignment.api import METHODS
    from lmccheck.alignment.api import align as align_pair
    from lmccheck.alignment.beyond.api import chosen_kinds
    from lmccheck.alignment.merge import segment
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.segment import require_repair

    started = time.perf_counter()
    if align != "none" and align not in METHODS:
        valid = ["none", *METHODS.names()]
        raise LmcError(f"linear_connectivity: align = {align!r}{nearest(align, valid)}; expected one of {valid}")
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LmcError(f"linear_connectivity: points = {points!r}; expected an integer of at least 3")
    read_limit(limit, 1.0, "linear_connectivity")
    if profile not in REFINEMENTS:
        raise LmcError(f"linear_connectivity: profile = {profile!r}; expected one of {sorted(REFINEMENTS)}")

    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"linear_connectivity: seed = {seed!r}; expected an integer")

    require_repair(repair, "linear_connectivity")
    if chosen_kinds(beyond) and align == "none":
        raise LmcError(f"linear_connectivity: beyond = {beyond!r} with align = 'none'; mend: name an align method")
    evaluator = Evaluator(pair)
    unaligned = segment(evaluator, None, repair)  # says what is missing before anything takes long
    ends = {name: _endpoint(evaluator, weights, name) for name, weights in (("a", pair.theta_a), ("b", pair.theta_b))}
    loss_a, loss_b = ends["a"].loss, ends["b"].loss
    alignment: Alignment | None = None if align == "none" else align_pair(pair, align, seed=seed, beyond=beyond)
    identity = alignment is None or alignment.is_identity

    between = unaligned if identity else segment(evaluator, alignment, repair, beside=unaligned)
    aligned = sample(_along(between), points, REFINEMENTS[profile], loss_a, loss_b)
    if identity:
        naive = aligned
    else:
        measure = _along(unaligned)
        naive = [measure(point.t) for point in aligned]
    value, worst_t = barrier([(p.t, p.loss) for p in aligned], loss_a, loss_b)
    bound = read_limit(limit, max(loss_a, loss_b), "linear_connectivity")
    verdict: Verdict = "pass" if value <= bound else "fail"
    details: dict[str, Any] = {
        "barrier_definition": BARRIER,
        "t": [p.t for p in aligned],
        "losses": [p.loss for p in aligned],
        "errors": _errors(aligned),
        "naive_losses": [p.loss for p in naive],
        "naive_errors": _errors(naive),
        "barrier": value,
        "worst_t": worst_t,
        "barrier_naive": barrier([(p.t, p.loss) for p in naive], loss_a, loss_b)[0],
        "barrier_reestimated": _over_reestimated_ends(aligned) if between.reestimates else None,
        "error_barrier": _error_barrier(aligned, ends["a"].error, ends["b"].error),
        "error_barrier_naive": _error_barrier(naive, ends["a"].error, ends["b"].error),
        "excess": max(p.loss for p in aligned) - max(loss_a, loss_b)
        if all(math.isfinite(p.loss) for p in aligned)
        else math.inf,
        "loss_a": loss_a,
        "loss_b": loss_b,
        "error_a": ends["a"].error,
        "error_b": ends["b"].error,
        "limit_given": limit,
        "samples": pair.data.samples,
        "alignment": alignment.summary() if alignment is not None else {"method": "none"},
        "repair": between.facts(),
        "batchnorm": _batchnorm_summary(between),
        "precision": str(evaluator.dtype).removeprefix("torch."),
        "notes": _notes(pair, evaluator, alignment, identity),
    }
    details["notes"] = [*_repair_notes(pair, between, details), *details["notes"]]
    if verdict != "pass":
        details["failure"] = _failure(pair, details, bound, align)
    return Result(
        property="linear_connectivity",
        verdict=verdict,
        value=value,
        limit=bound,
        unit=pair.loss.unit,
        witness=alignment,
        evaluations=evaluator.evaluations,
        seconds=time.perf_counter() - started,
        details=details,
    )


def _endpoint(evaluator: Evaluator, weights: Mapping[str, Tensor], name: str) -> Point:
    """Measure an original endpoint with its own statistics. Raises SourceError when its loss is not finite."""
    found = measured_endpoint(evaluator, weights, name)
    return Point(0.0 if name == "a" else 1.0, found.loss, found.error)


def _along(between: Segment) -> Any:
    """Return the function t -> Point on a segment."""

    def measure(t: float) -> Point:
        found = between.measure(t)
        LOG.info("%s: t = %.4g, loss %.4g", between.evaluator.pair.name, t, found.loss)
        return Point(t, found.loss, found.error)

    return measure


def _errors(points: list[Point]) -> list[float] | None:
    values = [p.error for p in points if p.error is not None]
    return values if len(values) == len(points) else None


def _error_barrier(points: list[Point], error_a: float | None, error_b: float | None) -> float | None:
    errors = _errors(points)
    if errors is None or error_a is None or error_b is None:
        return None
    return barrier([(p.t, e) for p, e in zip(points, errors, strict=True)], error_a, error_b)[0]


def _over_reestimated_ends(points: list[Point]) -> float:
    """Return the barrier over the chord between the re-estimated ends: what interpolation alone costs."""
    return barrier([(p.t, p.loss) for p in points], points[0].loss, points[-1].loss)[0]


def _batchnorm_summary(between: Segment) -> dict[str, Any] | None:
    """Return what the report says about BatchNorm; None for networks without it."""
    evaluator = between.evaluator
    if evaluator.batchnorms and not between.reestimates:
        return {"layers": evaluator.batchnorms, "method": "statistics interpolated like weights"}
    return evaluator.batchnorm_summary()


def _repair_notes(pair: ModelPair, between: Segment, details: Mapping[str, Any]) -> list[str]:
    """Say what was done to the merged networks, since it has to be done to what is shipped, too."""
    notes = []
    if between.reestimates:
        notes.append(_batchnorm_note(pair, details))
    elif between.evaluator.batchnorms:
        notes.append("interpolated BatchNorm statistics are used, not re-estimated ones (repair = 'none')")
    if between.method == "repair":
        facts = details["repair"]
        layers = len(facts["layers"])
        notes.append(
            f"REPAIR of {layers} of {layers + len(facts['left'])} layers between the ends, on {facts['samples']} "
            "calibration samples (do so in the merged model: lmccheck merge --repair repair)"
        )
    return notes


def _batchnorm_note(pair: ModelPair, details: Mapping[str, Any]) -> str:
    """Say what re-estimation does to the ends, since it may hide (or add to) what interpolation costs."""
    losses = details["losses"]
    samples = pair.calibration.samples if pair.calibration else 0
    return (
        f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model); it "
        "takes the "
        f"ends from {details['loss_a']:.4g} and {details['loss_b']:.4g} to {losses[0]:.4g} and {losses[-1]:.4g}, over "
        f"whose chord the barrier is {details['barrier_reestimated']:.4g}"
    )


def _beyond_note(alignment: Alignment) -> str:
    """Say that more than a permutation was applied, and what."""
    facts = alignment.facts["maps"]
    used = {kind: len(groups) for kind, groups in facts["groups"].items() if groups}
    if facts["kept"] == "permutation" or not used:
        return f"maps beyond permutations ({', '.join(alignment.beyond)}): none was of use, b is permuted only"
    named = ", ".join(f"{kind} of {count} group(s)" for kind, count in used.items())
    return f"b is not only permuted but mapped beyond permutations, its function kept: {named}"


def _notes(pair: ModelPair, evaluator: Evaluator, alignment: Alignment | None, identity: bool) -> list[str]:
    import torch

    notes = []
    if all(torch.equal(tensor, pair.theta_b[name]) for name, tensor in pair.theta_a.items()):
        notes.append("a and b are identical")
    notes += data_remarks(pair)
    if evaluator.buffers:
        notes.append(f"float buffers interpolated like weights: {', '.join(evaluator.buffers[:3])}")
    stored = {facts["dtype"] for facts in pair.description["files"].values()}
    if stored - {"float32", "float64"}:
        notes.append(
            f"stored as {', '.join(sorted(stored))}, evaluated in {str(evaluator.dtype).removeprefix('torch.')}"
        )
    if alignment is not None and alignment.beyond:
        notes.append(_beyond_note(alignment))
    if alignment is not None and pair.symmetry is not None:
        origin = pair.description["symmetry"]["origin"]
        source = "given" if origin == "given" else f"read from {origin}"
        notes.append(f"permutation spec {source}, not derived from the traced network; verified on the data")
    if alignment is not None and not alignment.spec.groups:
        notes.append("no unit group may be permuted; aligned equals unaligned")
    elif alignment is not None and identity:
        notes.append("weight matching kept the identity: the units were already in order")
    if alignment is not None and alignment.spec.unruled:
        ops = ", ".join(sorted(alignment.spec.unruled))
        notes.append(f"ops without a symmetry rule froze what they touch: {ops}")
    return notes


def _failure(pair: ModelPair, details: Mapping[str, Any], bound: float, align: str) -> list[str]:
    """Return the first five lines of a failure: what, measured, where, worst and smallest, endpoints."""
    unit, t, losses = pair.loss.unit, details["t"], details["losses"]
    heights = [(x, loss - chord(x, details["loss_a"], details["loss_b"])) for x, loss in zip(t, losses, strict=True)]
    over = [(x, height) for x, height in heights if not height <= bound]
    smallest = min(over, key=lambda item: item[1] if item[1] == item[1] else math.inf)
    worst = details["worst_t"]
    how = "unaligned" if align == "none" else f"after {align}"
    ends_over = [x for x, _ in over if x in (0.0, 1.0)]
    errors = details["errors"]
    at = t.index(worst)
    error = f", 0-1 error {errors[at]:.4g}" if errors else ""
    ends = f"a {details['loss_a']:.4g}, b {details['loss_b']:.4g} {unit}"
    if details["error_a"] is not None:
        ends += f" (0-1 error a {details['error_a']:.4g}, b {details['error_b']:.4g})"
    naive = "" if align == "none" else f"; unaligned it is {details['barrier_naive']:.4g}"
    found = "" if align == "none" else " (no better alignment was found, which does not prove that there is none)"
    if ends_over:  # nothing is interpolated there: what costs is the re-estimation
        ends_named = " and ".join("ab"[int(x)] for x in ends_over)
        found = (
            f" (re-estimating the BatchNorm of {ends_named} alone exceeds the limit: is the calibration data alike?)"
        )
    return [
        f"{pair.name}: not linearly connected {how}{found}",
        f"barrier {details['barrier']:.4g} {unit}, limit {bound:.4g} {unit}{naive}",
        f"where: t = {worst:.4g} of θ_t = (1-t)·a + t·b, loss {losses[at]:.4g}{error}, on {pair.data.origin} "
        f"({pair.data.samples} samples)",
        f"worst {details['barrier']:.4g} at t = {worst:.4g}; smallest counterexample {smallest[1]:.4g} at t = "
        f"{smallest[0]:.4g}; "
        f"{len(over)} of {len(t)} points above the limit",
        f"endpoint losses: {ends}",
    ]
