"""Connectivity across widths: may a network be averaged with another of other hidden widths, softly transported?"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SourceError
from lmccheck.evaluate.line import Point, barrier, chord, sample
from lmccheck.properties.limits import read_limit
from lmccheck.properties.linear_connectivity import REFINEMENTS
from lmccheck.properties.remarks import data_remarks
from lmccheck.result import Result

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmccheck.fusion.fuse import Fusion
    from lmccheck.network.pair import ModelPair, WidthPair

LOG = logging.getLogger("lmccheck")
BARRIER = (
    "max over t of L((1-t)·θ_A + t·fused(θ_B)) − [(1-t)·L(θ_A) + t·L(θ_B)], L of the original endpoints, "
    "L(θ_B) by B's own network"
)


def fused_connectivity(
    a: str | os.PathLike[str] | Mapping[str, Tensor],
    b: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    model_a: Any,
    model_b: Any,
    data: Any,
    calibration: Any = None,
    loss: Any = "cross_entropy",
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    norm: str = "activations",
    limit: float | str = 0.05,
    points: int = 25,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that the loss on the segment from θ_A to θ_B, fused to θ_A's widths, stays within ``limit`` of the chord.

    barrier = max_t L((1−t)·θ_A + t·fused(θ_B)) − [(1−t)·L(θ_A) + t·L(θ_B)], with L the mean loss on evaluation data
    and L(θ_B) that of the *original* θ_B in its own network: what fusion alone costs is the height at t = 1, and
    counts. Networks and data are given as to ``fuse``; ``limit``: in the loss's unit, or ``"5%"`` of the worse
    endpoint's loss. ``points``: size of the grid, refined around the worst t as ``profile`` says. BatchNorm statistics
    are re-estimated on calibration data at every point, the ends included.

    ``details`` hold ``t``, ``losses``, ``errors`` (0-1), ``loss_a``, ``loss_b``, ``loss_fused``,
    ``function_deviation``, ``function_preserving``, ``costs``, ``barrier``, ``barrier_over_ends`` (over the chord
    between the measured ends: what interpolation alone costs), ``error_barrier``, ``fusion`` and ``notes``; the
    witness is the Fusion.
    A pass is about this data, these points and this fusion. Raises LmcError (CheckpointError, SourceError,
    SymmetryError, UnsupportedArchitecture) when nothing sound can be said.
    Source: Singh & Jaggi 2020 (fusion), Ferbach et al. 2024 (norm), Entezari et al. 2022 (barrier).
    """
    from lmccheck.network.pair import load_widths

    started = time.perf_counter()
    _check_options(limit, points, profile)
    pair = load_widths(
        a, b, model_a=model_a, model_b=model_b, data=data, calibration=calibration, loss=loss, device=device, base=base
    )
    return _measured(pair, norm, limit, points, seed, profile, started)


def of_widths(
    pair: WidthPair,
    *,
    norm: str = "activations",
    limit: float | str = 0.05,
    points: int = 25,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Return ``fused_connectivity`` of endpoints that are loaded: ``theta_a`` of each pair, with its own network."""
    started = time.perf_counter()
    _check_options(limit, points, profile)
    return _measured(pair, norm, limit, points, seed, profile, started)


def _check_options(limit: float | str, points: int, profile: str) -> None:
    read_limit(limit, 1.0, "fused_connectivity")
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LmcError(f"fused_connectivity: points = {points!r}; expected an integer of at least 3")
    if profile not in REFINEMENTS:
        raise LmcError(f"fused_connectivity: profile = {profile!r}; expected one of {sorted(REFINEMENTS)}")


def _measured(
    pair: WidthPair,
    norm: str,
    limit: float | str,
    points: int,
    seed: int,
    profile: str,
    started: float,
) -> Result:
    """Fuse, measure the segment, and compare its barrier with the limit."""
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.segment import Segment
    from lmccheck.fusion.fuse import fuse_pair
    from lmccheck.network.pair import ModelPair

    pair_a = ModelPair(pair.name, pair.a, pair.a)
    Evaluator(pair_a).require_calibration()  # says what is missing before anything takes long
    fusion = fuse_pair(pair, norm=norm, seed=seed)
    evaluator = Evaluator(pair_a.with_weights(pair.a.theta, fusion.weights))
    end = evaluator.measure(evaluator.weights(pair_a.theta_a), reestimate=False, label="endpoint a")
    if not math.isfinite(end.loss):
        raise SourceError(
            f"fused_connectivity: a: its {pair_a.loss.name} on {pair_a.data.origin} is {end.loss}, expected a finite "
            "loss; mend: check the checkpoint and the loss"
        )
    between = Segment(evaluator, pair_a.theta_a, fusion.weights, "bn")

    def measure(t: float) -> Point:
        found = between.measure(t)
        LOG.info("%s: t = %.4g, loss %.4g", pair_a.name, t, found.loss)
        return Point(t, found.loss, found.error)

    loss_a, loss_b = end.loss, fusion.loss_b
    found = sample(measure, points, REFINEMENTS[profile], loss_a, loss_b)
    curve = [(point.t, point.loss) for point in found]
    value, worst_t = barrier(curve, loss_a, loss_b)
    bound = read_limit(limit, max(loss_a, loss_b), "fused_connectivity")
    errors = [point.error for point in found if point.error is not None]
    error_a, error_b = end.error, fusion.facts["errors"]["b"]
    details: dict[str, Any] = {
        "barrier_definition": BARRIER,
        "t": [point.t for point in found],
        "losses": [point.loss for point in found],
        "errors": errors if len(errors) == len(found) else None,
        "barrier": value,
        "worst_t": worst_t,
        "barrier_over_ends": barrier(curve, curve[0][1], curve[-1][1])[0],
        "error_barrier": None,
        "loss_a": loss_a,
        "loss_b": loss_b,
        "loss_fused": fusion.loss_fused,
        "error_a": error_a,
        "error_b": error_b,
        "function_deviation": fusion.function_deviation,
        "function_preserving": fusion.function_preserving,
        "costs": dict(fusion.costs),
        "limit_given": limit,
        "samples": pair_a.data.samples,
        "fusion": fusion.summary(),
        "batchnorm": evaluator.batchnorm_summary(),
        "precision": str(evaluator.dtype).removeprefix("torch."),
        "notes": _notes(pair_a, fusion),
    }
    if details["errors"] is not None and error_a is not None and error_b is not None:
        details["error_barrier"] = barrier(list(zip(details["t"], errors, strict=True)), error_a, error_b)[0]
    if not value <= bound:
        details["failure"] = _failure(pair_a, details, bound)
    return Result(
        property="fused_connectivity",
        verdict="pass" if value <= bound else "fail",
        value=value,
        limit=bound,
        unit=pair_a.loss.unit,
        witness=fusion,
        evaluations=evaluator.evaluations + fusion.facts["evaluations"],
        seconds=time.perf_counter() - started,
        details=details,
    )


def _notes(pair: ModelPair, fusion: Fusion) -> list[str]:
    """Say what was done to θ_B, and to the networks on the segment."""
    notes = [fusion.statement]
    if fusion.facts["batchnorm"] is not None:
        samples = pair.calibration.samples if pair.calibration else 0
        notes.append(
            f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model)"
        )
    notes += data_remarks(pair)
    return notes


def _failure(pair: ModelPair, details: Mapping[str, Any], bound: float) -> list[str]:
    """Return the first lines of a failure: what, measured, where, what fusion alone cost, endpoints."""
    unit, t, losses, worst = pair.loss.unit, details["t"], details["losses"], details["worst_t"]
    over = sum(
        not loss - chord(x, details["loss_a"], details["loss_b"]) <= bound for x, loss in zip(t, losses, strict=True)
    )
    return [
        f"{pair.name}: not linearly connected after soft transport of b to a's widths (no better one was found, which "
        "does not prove that there is none)",
        f"barrier {details['barrier']:.4g} {unit}, limit {bound:.4g} {unit}; over the chord between the measured ends "
        f"it is {details['barrier_over_ends']:.4g}",
        f"where: t = {worst:.4g} of θ_t = (1-t)·a + t·fused(b), loss {losses[t.index(worst)]:.4g}, on "
        f"{pair.data.origin} ({pair.data.samples} samples); {over} of {len(t)} points above the limit",
        f"fusion alone takes b from {details['loss_b']:.4g} to {losses[-1]:.4g} {unit}; function deviation "
        f"{details['function_deviation']:.2e}",
        f"endpoint losses: a {details['loss_a']:.4g}, b {details['loss_b']:.4g} {unit}, fused "
        f"{details['loss_fused']:.4g}",
    ]
