"""Linear connectivity after alignment: is the straight segment between two networks free of a loss barrier?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.evaluate.line import BARRIER
from lmccheck.finding import Failure, Finding, Where
from lmccheck.properties.advice import APART, maps_beyond, more_data, other_alignment, repairing
from lmccheck.properties.certified_line import Certify, everywhere, proven, with_proof
from lmccheck.properties.early import Early, Wanted, require_bounded
from lmccheck.properties.early_line import passes_of, settled_line
from lmccheck.properties.explained import AtWorst, explained, told
from lmccheck.properties.line_notes import pair_notes
from lmccheck.properties.measured_line import Apart, Line, compared, measure_line, measure_point
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import (
    batchnorm_remark,
    end_of,
    endpoint_measurements,
    precision_of,
)
from lmccheck.properties.settings import Align, Beyond, By, EarlyFail, Limit, Points, Profile, Repair, Seed

if TYPE_CHECKING:
    from lmccheck.alignment.api import Alignment
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.evaluate.segment import Segment
    from lmccheck.network.pair import ModelPair


@check(
    of="pair",
    claim="L((1−t)θ_A + tπ(θ_B)) − [(1−t)L(θ_A) + tL(θ_B)] ≤ limit (Entezari et al. 2022)",
    quantifier="there is a π, for all t of a refined grid, or of the line where it is certified",
    certifies="the barrier at the measured points, or for all t where it says so, for the π that was found",
)
def linear_connectivity(
    pair: ModelPair,
    *,
    align: Align = "weight-matching",
    limit: Limit = 0.05,
    points: Points = 25,
    repair: Repair = "bn",
    beyond: Beyond = (),
    by: By | None = None,
    explain: bool | None = None,
    certify: Certify = "auto",
    early_fail: EarlyFail = False,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that the loss on the segment from θ_A to π(θ_B) stays within ``limit`` of the chord.

    barrier = max_t L((1−t)·θ_A + t·π(θ_B)) − [(1−t)·L(θ_A) + t·L(θ_B)], with L the mean loss on the pair's evaluation
    data and L(θ_A), L(θ_B) those of the *original* endpoints. ``align``: ``none`` or a method of ``lmccheck.align``.
    An alignment that is worse than none on calibration data is not kept, and a note says so.
    ``limit``: in the loss's unit (nats for cross entropy), or ``"5%"`` of the worse endpoint's loss. ``points``:
    size of the grid, refined around the worst t. ``repair``: ``bn`` re-estimates BatchNorm statistics on calibration
    data at every point of the segment, its ends included; ``none`` leaves the interpolated ones; ``repair`` also gives
    the units of all other layers, between the ends, the means and deviations of the endpoints, interpolated (REPAIR).
    ``beyond``: maps beyond permutations, see ``lmccheck.align``; none by default. ``by``: ``class`` or a column of the
    data; each part of the samples then has its own line and its own chord, and the worst of them is judged.
    ``explain`` says what carries it: by default of failures, unless in profile ``dev``; true: of passes, too.
    ``certify``: ``auto`` bounds what passes between the points, too, where there is an enclosure and it costs at most
    the grid (ci, of what was aligned; thorough: ten grids); with ``always`` what cannot be certified is inconclusive.
    ``early_fail``: an error rate (1e-6) at which a fail may be settled on some of the samples, drawn in seeded order;
    ``value`` is then an estimate with its ``interval``, and no curve is measured. Nothing passes by it.

    ``details`` hold ``t``, ``losses``, ``errors`` (0-1), ``naive_losses`` (nothing aligned), ``barrier_naive``,
    ``error_barrier``, ``worst_t``, ``explanation``, ``certified_bound`` and more; the witness is the Alignment.
    A pass is about this data and these points, or all t (``known``); a fail about this alignment, not about every one.
    Raises LmcError (SourceError, SymmetryError, UnsupportedArchitecture) when nothing sound can be said.
    Source: Frankle et al. 2020, Entezari et al. 2022, Ainsworth et al. 2023 (permutation), Jordan et al. 2023 (repair).
    """
    if early_fail:
        require_bounded(pair.network)
    ready = _ready(pair, align, repair, beyond, by, seed)
    between, alignment, apart = ready.between, ready.alignment, ready.apart
    if early_fail:
        passes = passes_of(points, profile, 1 + ready.moved)
        wanted = Wanted(early_fail, seed)
        if settled := settled_line(between, ready.ends, limit, points, wanted, passes, apart):
            return _early(pair, *settled, between, alignment)
    line = measure_line(between, points, profile, end_of("a", ready.ends[0]), end_of("b", ready.ends[1]), apart)
    line, proof = proven(between, line, limit, certify, profile, apart, traced=alignment is not None)
    naive = line
    if ready.moved:
        naive = replace(line, points=[measure_point(ready.unaligned, p.t, apart) for p in line.points])
    found = _finding(pair, line, naive, between, alignment, limit)
    if apart is not None:
        found = _of_parts(found, line, naive, apart)
    own = ready.ends[0].losses, ready.ends[1].losses
    between_points = partial(everywhere, between, line, own, apart, proof, profile)
    found = replace(found, compared=compared(line.points, own, apart=apart), everywhere=between_points)
    found, said = explained(found, AtWorst.of(between, line, ready.ends, apart), explain, profile)
    return with_proof(found.explained(lambda: _failure(pair, line, found, between, align, said)), line, proof)


@dataclass(frozen=True)
class Ready:
    """What a line is measured with: both original endpoints as measured, the segments as given and as aligned."""

    ends: list[Measured]
    unaligned: Segment
    between: Segment
    alignment: Alignment | None
    apart: Apart | None

    @property
    def moved(self) -> bool:
        """Whether the alignment moves anything."""
        return self.between is not self.unaligned


def _ready(pair: ModelPair, align: str, repair: str, beyond: Any, by: str | None, seed: int) -> Ready:
    """Measure the endpoints and align. Raises LmcError for maps beyond an alignment that is none."""
    from lmccheck.alignment.api import align as align_pair
    from lmccheck.alignment.kept import not_worse
    from lmccheck.alignment.merge import segment
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.slices import slices

    if beyond and align == "none":
        raise LmcError(f"linear_connectivity: beyond = {beyond!r} with align = 'none'; mend: name an align method")
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    unaligned = segment(pair, evaluator, None, repair)  # says what is missing before anything takes long
    ends = endpoint_measurements(pair, evaluator)
    apart = None if by is None else Apart.of(slices(pair.data, by), *ends)
    alignment = None if align == "none" else not_worse(pair, align_pair(pair, align, seed=seed, beyond=beyond))
    moved = alignment is not None and not alignment.is_identity
    between = segment(pair, evaluator, alignment, repair, beside=unaligned) if moved else unaligned
    return Ready(ends, unaligned, between, alignment, apart)


def _finding(
    pair: ModelPair, line: Line, naive: Line, between: Segment, alignment: Alignment | None, limit: float | str
) -> Finding:
    evaluator = between.evaluator
    value, worst_t = line.highest
    repair = between.facts()
    return Finding(
        value,
        limit,
        pair.loss.unit,
        endpoints=(line.a, line.b),
        worst_loss=line.worst.loss,
        above="chord",
        merge=line.middle,
        where=Where(t=worst_t),
        naive=naive.highest[0],
        curve=line.curve(naive),
        error_barrier=line.error_barrier,
        barrier_definition=BARRIER,
        alignment=_aligned(pair, alignment),
        notes=[*_repair_notes(line, between, repair), *pair_notes(pair, evaluator, alignment)],
        witness=alignment,
        evaluations=evaluator.evaluations,
        known=line.known,
        facts={
            "barrier_reestimated": line.over_ends if between.reestimates else None,
            "error_barrier_naive": naive.error_barrier,
            "excess": line.excess,
            "samples": pair.data.samples,
            "repair": repair,
            "batchnorm": _batchnorm_summary(between),
            "precision": precision_of(evaluator),
        },
    )


def _early(pair: ModelPair, early: Early, found: Finding, between: Segment, alignment: Alignment | None) -> Finding:
    """Return the finding of a line that failed early."""
    notes = pair_notes(pair, between.evaluator, alignment)
    if between.reestimates:
        notes.insert(0, batchnorm_remark(pair.network))
    found = replace(found, alignment=_aligned(pair, alignment), notes=notes, witness=alignment)
    align = "none" if alignment is None else alignment.method
    what = f"not linearly connected {_how(align)}{_proof(align)}"
    advice = _advice(pair, found, between, align)
    part = found.where.data
    remarks = [] if part is None else [f"on {part}, the part that is settled first; others may be worse"]
    why = early.failure(found, pair.name, what, "barrier", pair.data, remarks=remarks, next=advice)
    return replace(found, failure=why)


def _aligned(pair: ModelPair, alignment: Alignment | None) -> dict[str, Any]:
    from lmccheck.alignment.dimension import dimension_facts

    return alignment.summary() if alignment is not None else {"method": "none", **dimension_facts(pair)}


def _how(align: str) -> str:
    return "as they are, unaligned" if align == "none" else f"after {align}"


def _proof(align: str) -> str:
    return "" if align == "none" else " (no better alignment was found, which does not prove that there is none)"


def _of_parts(found: Finding, line: Line, naive: Line, apart: Apart) -> Finding:
    """Return the finding as one about the worst part of the samples."""
    name = str(line.worst_part)
    part = line.part(name)
    value, worst_t = part.highest
    return replace(
        found,
        value=value,
        reference=max(part.a.loss, part.b.loss),
        worst_loss=part.worst.loss,
        where=Where(t=worst_t, data=f"{apart.slices.by} {name}"),
        naive=max(naive.part(other).highest[0] for other in naive.parts),
        curve=part.curve(naive.part(name)),
        error_barrier=None,
        notes=[*found.notes, apart.note(line)],
        facts={**found.facts, "by": apart.facts(line)},
    )


def _batchnorm_summary(between: Segment) -> dict[str, Any] | None:
    """Return what the report says about BatchNorm; None for networks without it."""
    evaluator = between.evaluator
    if evaluator.batchnorms and not between.reestimates:
        return {"layers": evaluator.batchnorms, "method": "statistics interpolated like weights"}
    return evaluator.batchnorm_summary()


def _repair_notes(line: Line, between: Segment, facts: dict[str, Any]) -> list[str]:
    """Say what was done to the merged networks, since it has to be done to what is shipped, too.

    Re-estimation may hide, or add to, what interpolation costs: so what it does to the ends is said with it.
    """
    notes = []
    if between.reestimates:
        notes.append(
            f"{batchnorm_remark(between.evaluator.network)}; it takes the ends from {line.a.loss:.4g} and "
            f"{line.b.loss:.4g} to {line.points[0].loss:.4g} and {line.points[-1].loss:.4g}, over whose chord the "
            f"barrier is {line.over_ends:.4g}"
        )
    elif between.evaluator.batchnorms:
        notes.append("interpolated BatchNorm statistics are used, not re-estimated ones (repair = 'none')")
    if between.method == "repair":
        layers = len(facts["layers"])
        notes.append(
            f"REPAIR of {layers} of {layers + len(facts['left'])} layers between the ends, on {facts['samples']} "
            "calibration samples (do so in the merged model: lmccheck merge --repair repair)"
        )
    return notes


def _failure(pair: ModelPair, line: Line, found: Finding, between: Segment, align: str, said: Sequence[str]) -> Failure:
    proof = _proof(align)
    ends = [
        name
        for name, at, end in (("a", 0, line.a), ("b", -1, line.b))
        if between.reestimates and not line.points[at].loss - end.loss <= found.bound
    ]
    if ends:  # nothing is interpolated there: what costs is the re-estimation
        proof = (
            f" (re-estimating the BatchNorm of {' and '.join(ends)} alone exceeds the limit: is the calibration data "
            "alike?)"
        )
    remarks = [] if align == "none" else [f"unaligned it is {found.naive:.4g}"]
    beside = ""
    if (part := line.worst_part) is not None:
        remarks.append(
            f"on {found.where.data}, of {len(line.parts)} parts the worst; over all samples it is {line.highest[0]:.4g}"
        )
        line = line.part(part)
        beside = f"; on it a {line.a.loss:.4g}, b {line.b.loss:.4g}"
    return line.failure(
        pair.name,
        f"not linearly connected {_how(align)}{proof}",
        "(1-t)·a + t·b",
        pair.data,
        [*remarks, *said],
        beside=beside,
        diagnosis=told(found.explanation),
        next=_advice(pair, found, between, align) if not ends else more_data(pair.network, "BatchNorm") or [ALIKE],
    )


ALIKE = "calibration data like what the networks were trained on"


def _advice(pair: ModelPair, found: Finding, between: Segment, align: str) -> list[str]:
    """Return what was not tried and may help."""
    advice = other_alignment(pair.network, align, found.alignment)
    if align != "none" and found.naive is not None and found.naive <= found.bound:
        advice.insert(0, "align = 'none', which is within the limit")
    advice += maps_beyond(pair.network, align, (found.alignment or {}).get("beyond", ()))
    if between.method == "none" and between.evaluator.batchnorms:
        bn = "repair = 'bn', which re-estimates BatchNorm on calibration data"
        advice.insert(0 if pair.calibration is not None else len(advice), bn)
    elif between.method != "repair":
        advice += repairing(pair.network)
    return advice or [APART]
