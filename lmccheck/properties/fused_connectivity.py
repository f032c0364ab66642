"""Connectivity across widths: may a network be averaged with another of other hidden widths, softly transported?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmccheck.finding import End, Failure, Finding, Where
from lmccheck.properties.advice import more_data
from lmccheck.properties.measured_line import Line, compared, measure_line
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import batchnorm_remark, calibration_remarks, precision_of
from lmccheck.properties.settings import Limit, Norm, Points, Profile, Seed

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.fusion.fuse import Fusion
    from lmccheck.network.network import Network
    from lmccheck.network.pair import WidthPair

BARRIER = (
    "max over t of L((1-t)·θ_A + t·fused(θ_B)) − [(1-t)·L(θ_A) + t·L(θ_B)], L of the original endpoints, "
    "L(θ_B) by B's own network"
)


@check(
    of="widths",
    claim="L((1−t)θ_A + t·fused(θ_B)) − [(1−t)L(θ_A) + tL(θ_B)] ≤ limit (Singh & Jaggi 2020, Entezari et al. 2022)",
    quantifier="there is a transport of θ_B to θ_A's widths, for all t of a refined grid",
    certifies="the barrier at the measured points, for the fusion that was found",
)
def fused_connectivity(
    pair: WidthPair,
    *,
    norm: Norm = "activations",
    limit: Limit = 0.05,
    points: Points = 25,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
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
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.segment import Segment
    from lmccheck.fusion.fuse import fuse_pair

    network = pair.network
    Evaluator(network, pair.a.theta).require_calibration()  # says what is missing before anything takes long
    fusion = fuse_pair(pair, norm=norm, seed=seed)
    evaluator = Evaluator(network, pair.a.theta, fusion.weights)
    own = evaluator.endpoint(pair.a.theta, "endpoint a", "fused_connectivity: a")
    ends = End("a", own.loss, own.error), End("b", fusion.loss_b, fusion.facts["errors"]["b"])
    between = Segment(evaluator, pair.a.theta, fusion.weights, "bn")
    line = measure_line(between, points, profile, *ends)
    value, worst_t = line.highest
    found = Finding(
        value,
        limit,
        network.loss.unit,
        endpoints=ends,
        worst_loss=line.worst.loss,
        above="chord",
        merge=line.middle,
        where=Where(t=worst_t),
        curve=line.curve(),
        error_barrier=line.error_barrier,
        barrier_definition=BARRIER,
        notes=_notes(network, fusion),
        witness=fusion,
        evaluations=evaluator.evaluations + fusion.facts["evaluations"],
        known=line.known,
        facts=_facts(line, fusion, evaluator),
        compared=compared(line.points, (own.losses, fusion.losses_b)),
    )
    return found.explained(lambda: _failure(pair, line, fusion))


def _facts(line: Line, fusion: Fusion, evaluator: Evaluator) -> dict[str, Any]:
    return {
        "barrier_over_ends": line.over_ends,
        "loss_fused": fusion.loss_fused,
        "function_deviation": fusion.function_deviation,
        "function_preserving": fusion.function_preserving,
        "costs": dict(fusion.costs),
        "samples": evaluator.network.data.samples,
        "fusion": fusion.summary(),
        "batchnorm": evaluator.batchnorm_summary(),
        "precision": precision_of(evaluator),
    }


def _notes(network: Network, fusion: Fusion) -> list[str]:
    """Say what was done to θ_B, and to the networks on the segment."""
    restored = [batchnorm_remark(network)] if fusion.facts["batchnorm"] is not None else []
    return [fusion.statement, *restored, *calibration_remarks("fuse", fusion.facts)]


def _failure(pair: WidthPair, line: Line, fusion: Fusion) -> Failure:
    return line.failure(
        pair.name,
        "not linearly connected after soft transport of b to a's widths (no better one was found, which does not prove "
        "that there is none)",
        "(1-t)·a + t·fused(b)",
        pair.network.data,
        [
            f"over the chord between the measured ends it is {line.over_ends:.4g}",
            f"fusion alone takes b from {line.b.loss:.4g} to {line.points[-1].loss:.4g}, function deviation "
            f"{fusion.function_deviation:.2e}",
        ],
        beside=f"; fused {fusion.loss_fused:.4g}",
        next=_advice(pair.network, fusion),
    )


def _advice(network: Network, fusion: Fusion) -> list[str]:
    """Return what was not tried and may help: the other norm, where there is data for it."""
    other = next(norm for norm in ("activations", "weights") if norm != fusion.norm)
    able = other == "weights" or network.calibration is not None
    return [
        *([f"norm = '{other}'"] if able else ["calibration data, for norm = 'activations'"]),
        *(more_data(network, "the transport") if fusion.norm == "activations" else []),
    ]
