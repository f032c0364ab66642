"""Connectivity of a set: may these networks, three or more, be averaged with one another, in one common frame?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.evaluate.line import BARRIER, chord
from lmccheck.finding import Compared, End, Failure, Finding, Matrix, Seen, Where, bound_of
from lmccheck.properties.advice import APART, other_alignment, repairing
from lmccheck.properties.explained import AtWorst, explained, told
from lmccheck.properties.measured_line import compared
from lmccheck.properties.measured_mean import mean_finding, shares
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import batchnorm_remark, calibration_remarks, measured_on
from lmccheck.properties.settings import Align, Frame, Limit, MeanWeights, Over, Place, Points, Repair, Seed

if TYPE_CHECKING:
    from lmccheck.alignment.barriers import Barriers, Unmoved
    from lmccheck.alignment.many import ManyAlignment
    from lmccheck.network.model_set import ModelSet

MEAN_EXPLAINED = (
    "set_connectivity: explain = true with over = 'mean': what is explained is the line between two models; mend: "
    "leave it out, leave_one_out says which model matters"
)


@check(
    of="set",
    claim="L((1−t)π_i(θ_i) + tπ_j(θ_j)) − [(1−t)L(θ_i) + tL(θ_j)] ≤ limit for every two models (Ainsworth et al. 2023)",
    quantifier="there is one frame, for all pairs, for all t of a grid",
    certifies="the barrier of every pair at the measured points, for the frame that was found",
)
def set_connectivity(
    models: ModelSet,
    *,
    method: Frame = "merge-many",
    align: Align = "weight-matching",
    reference: Place = 0,
    seed: Seed = 0,
    limit: Limit = 0.05,
    points: Points = 5,
    repair: Repair = "bn",
    over: Over = "pairs",
    weights: MeanWeights | None = None,
    explain: bool | None = None,
) -> Finding:
    """Assert that the loss on the segments between all pairs of aligned networks stays within ``limit`` of the chord.

    Networks and alignment are given as to ``align_many``, which brings all of them into one frame (``align = "none"``
    leaves them as they are; models that a frame would drive apart, by calibration data, lie to one another as they
    did); every segment is measured as ``linear_connectivity`` does, on a grid of ``points``. With ``over = "mean"`` no
    pair is measured but the mean of all, of ``weights`` where they are given (numbers of samples, say), and the means
    that leave one model out, in O(n): ``value`` is L(Σ w_k·θ_k) − Σ w_k·L(θ_k), Σ w_k = 1.
    ``limit``: in the loss's unit (nats for cross entropy), or ``"5%"`` of the loss of a pair's worse model (over the
    mean, of all models that have a weight). ``value`` is the barrier of the worst pair, ``limit`` that pair's: the
    largest barrier where the limit is a number. ``repair`` mends the networks between as in ``linear_connectivity``;
    the mean of all has its BatchNorm re-estimated (unless ``none``), and nothing else. ``explain`` says what carries
    the worst pair's barrier: by default of failures; true: of passes, too.

    ``details`` hold ``names``, the (n, n) ``matrix`` of barriers, ``matrix_naive`` (nothing moved) and, with BatchNorm,
    ``matrix_reestimated``; ``above_limit`` (the pairs of names), ``table`` (the matrix as text), ``worst_pair``,
    ``worst_t``, ``barrier_naive`` (of that pair), ``losses``, ``mean_loss`` and ``mean_loss_naive`` (of the mean of all
    models), ``cycle_error``, ``notes`` and more; over the mean ``leave_one_out`` (losses by name), ``helps_most`` (the
    model without which the mean is lowest), ``weights`` and ``mean_of_losses``. The witness is the ManyAlignment, None
    where nothing is aligned. A pass is about this data and these points; a fail about this alignment.
    Raises LmcError (CheckpointError, SourceError, SymmetryError, UnsupportedArchitecture) when nothing sound can be
    said. Source: Entezari et al. 2022 (barrier), Ainsworth et al. 2023, Algorithm 3 (alignment of many).
    """
    from lmccheck.alignment.barriers import Unmoved, measure_barriers
    from lmccheck.alignment.kept import no_pair_worse, no_worse_mean
    from lmccheck.alignment.many import align_set

    shared = shares(weights, models.names)
    aligned = None if align == "none" else align_set(models, method=method, align=align, reference=reference, seed=seed)
    if over == "mean":
        if explain:
            raise LmcError(MEAN_EXPLAINED)
        return mean_finding(models, no_worse_mean(aligned, shared) if aligned else None, shared, limit, repair)
    aligned = no_pair_worse(aligned) if aligned else None
    many = aligned or Unmoved.of(models)
    barriers = measure_barriers(many, points=points, repair=repair, weights=shared)
    return replace(_finding(many, barriers, limit, repair, explain), witness=aligned)


def _finding(
    many: ManyAlignment | Unmoved, barriers: Barriers, limit: float | str, repair: str, explain: bool | None
) -> Finding:
    bounds = {pair: bound_of(limit, max(barriers.losses[k] for k in pair)) for pair in barriers.worst_t}
    above = [(i, j) for (i, j), bound in bounds.items() if not barriers.aligned[i][j] <= bound]
    i, j = worst = max(bounds, key=lambda pair: barriers.aligned[pair[0]][pair[1]] - bounds[pair])
    names, errors = many.names, barriers.errors or repeat(None)
    found = Finding(
        barriers.aligned[i][j],
        limit,
        many.pair.loss.unit,
        reference=max(barriers.losses[i], barriers.losses[j]),
        endpoints=tuple(map(End, names, barriers.losses, errors)),
        worst_loss=barriers.aligned[i][j] + chord(barriers.worst_t[worst], barriers.losses[i], barriers.losses[j]),
        above="chord",
        merge=End(f"of the mean of all {len(names)}", barriers.mean_loss, barriers.mean_error),
        where=Where(t=barriers.worst_t[worst], pair=(names[i], names[j])),
        naive=barriers.naive[i][j],
        matrix=Matrix(
            list(names), barriers.aligned, barriers.naive, [[names[k] for k in pair] for pair in above],
            many.facts["method"],
        ),
        barrier_definition=BARRIER,
        alignment=many.facts,
        notes=_notes(many, barriers, repair),
        evaluations=barriers.evaluations,
        known="sampled",
        facts=_facts(many, barriers, repair),
        compared=_compared(names, barriers),
    )  # fmt: skip
    if found.judged == "pass" and not explain:
        return found
    at = _at_worst(many, found, worst, repair)
    found, said = explained(replace(found, evaluations=found.evaluations + len(worst)), at, explain, "ci")
    return found.explained(lambda: _failure(many, barriers, worst, bounds, repair, told(found.explanation), said))


def _compared(names: Sequence[str], barriers: Barriers) -> list[Compared]:
    """Return every point of every segment, sample by sample, over the chord between its own two models."""
    return [
        each
        for (i, j), points in barriers.curves.items()
        for each in compared(points, (barriers.own[i], barriers.own[j]), f" between {names[i]} and {names[j]}")
    ]


def _at_worst(many: ManyAlignment | Unmoved, found: Finding, worst: tuple[int, int], repair: str) -> AtWorst:
    """Return the line between the two models of the worst pair, at its worst t; both are measured once more."""
    from lmccheck.alignment.merge import traced_for_repair
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.segment import Segment

    i, j = worst
    names = many.names[i], many.names[j]
    evaluator = Evaluator(many.pair.network, many.originals[i], many.originals[j])
    derived = traced_for_repair(many.pair) if repair == "repair" else None
    between = Segment(evaluator, many.weights[i], many.weights[j], repair, derived)
    a, b = (evaluator.endpoint(many.originals[k], many.names[k], many.names[k]).losses for k in worst)
    return AtWorst(between, found.where.t or 0.0, (a, b), names)


def _facts(many: ManyAlignment | Unmoved, barriers: Barriers, repair: str) -> dict[str, Any]:
    return {
        "matrix_reestimated": barriers.reestimated,
        "table": table(many.names, barriers.aligned),
        "points": barriers.points,
        "losses": barriers.losses,
        "errors": barriers.errors,
        "mean_loss": barriers.mean_loss,
        "mean_loss_naive": barriers.mean_loss_naive,
        "mean_error": barriers.mean_error,
        "cycle_error": many.facts["cycle_error"],
        "samples": many.pair.data.samples,
        "function_deviations": list(many.function_deviations),
        "repair": repair,
    }


def _notes(many: ManyAlignment | Unmoved, barriers: Barriers, repair: str) -> list[str]:
    """Say what the mean of all comes to, and what was done to the networks between."""
    from lmccheck.alignment.kept import set_note

    pair = many.pair
    notes = [
        f"the mean of all {len(many.names)} models has loss {barriers.mean_loss:.4g} {pair.loss.unit}, unaligned "
        f"{barriers.mean_loss_naive:.4g}, the models {min(barriers.losses):.4g} to {max(barriers.losses):.4g} (not "
        "part of the verdict)"
    ]
    if barriers.reestimated is not None:
        notes.append(batchnorm_remark(pair.network))
    if repair == "repair":
        samples = pair.calibration.samples if pair.calibration else 0
        notes.append(f"REPAIR of the networks between two models, on {samples} calibration samples; not of the mean")
    remarks = (calibration_remarks(many.facts["align"], facts) for facts in many.facts["alignments"].values())
    notes += dict.fromkeys(remark for several in remarks for remark in several)
    if many.spec is None:
        return notes
    notes += set_note(many)
    if not many.spec.groups:
        notes.append("no unit group may be permuted; aligned equals unaligned")
    if many.spec.unruled:
        notes.append(f"ops without a symmetry rule froze what they touch: {', '.join(sorted(many.spec.unruled))}")
    return notes


def table(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """Return a matrix of barriers as text, one row and column a model.

    >>> print(table(["a", "b"], [[0.0, 0.25], [0.25, 0.0]]))
           a     b
    --  ----  ----
    a   0     0.25
    b   0.25  0
    """
    from tabulate import tabulate

    return tabulate([[name, *row] for name, row in zip(names, matrix, strict=True)], ["", *names], floatfmt=".4g")


def _failure(
    many: ManyAlignment | Unmoved,
    barriers: Barriers,
    worst: tuple[int, int],
    bounds: Mapping[tuple[int, int], float],
    repair: str,
    why: Sequence[str],
    said: Sequence[str],
) -> Failure:
    names, (i, j) = many.names, worst
    return Failure(
        f"{names[i]} and {names[j]}",
        "not linearly connected as they are, unaligned"
        if many.spec is None
        else f"not linearly connected after {many.method} (no better alignment was found, which does not prove that "
        "there is none)",
        "barrier",
        f"t = {barriers.worst_t[worst]:.4g} of θ_t = (1-t)·{names[i]} + t·{names[j]}",
        measured_on(many.pair.data),
        [Seen(barriers.aligned[i][j], f"between {names[i]} and {names[j]}", bound) for (i, j), bound in bounds.items()],
        "pairs",
        [f"unaligned it is {barriers.naive[i][j]:.4g}", *said],
        f"; of the mean of all {barriers.mean_loss:.4g}, unaligned {barriers.mean_loss_naive:.4g}",
        diagnosis=why,
        next=_advice(many, repair),
    )


def _advice(many: ManyAlignment | Unmoved, repair: str) -> list[str]:
    """Return what was not tried and may help."""
    network, facts = many.pair.network, many.facts
    advice = other_alignment(network, facts["align"])
    if advice and facts["method"] == "reference":
        advice.append("method = 'merge-many', one frame for all")
    if repair == "bn":
        advice += repairing(network)
    return advice or [APART]
