"""A line that fails early: which of its points are tried, and what is found of the one that is too high."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lmccheck.evaluate.line import BARRIER, chord, grid
from lmccheck.finding import Finding, Where, bound_of
from lmccheck.properties.early import Early, Wanted, require_bounded
from lmccheck.properties.measured_line import REFINEMENTS, Apart
from lmccheck.properties.remarks import end_of, precision_of

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.evaluate.segment import Segment

EIGHTHS = (4, 3, 5, 2, 6, 1, 7)  # of the way from a to b: where a line is tried, the likely worst first
LACKING = "the other points, the curve, the unaligned line, what carries the barrier"


def settled_line(
    between: Segment,
    ends: Sequence[Measured],
    limit: float | str,
    points: int,
    wanted: Wanted,
    passes: float,
    apart: Apart | None = None,
) -> tuple[Early, Finding] | None:
    """Return that a segment is above the limit, and the finding of it; None where that is not settled early.

    ``ends``: both original endpoints, measured on all data. Points of the grid near eighths of the way are tried, each
    part of the samples by itself where they are told apart. ``passes``: over the data, that measuring the line takes.
    """
    import torch

    from lmccheck.evaluate.early import Asked, Gate, Place, settle

    require_bounded(between.evaluator.network, *ends)
    a, b = (end_of(name, found) for name, found in zip("ab", ends, strict=True))
    gates, losses = [Gate(torch.ones(len(ends[0].losses), dtype=torch.float64))], [(a.loss, b.loss)]
    if apart is not None:
        gates = [Gate((apart.slices.index == k).double(), name) for k, name in enumerate(apart.slices.names)]
        losses = [(one.loss, other.loss) for one, other in apart.ends.values()]
    bound = max(bound_of(limit, max(pair)) for pair in losses)  # of parts the one that allows most: judged is the worst
    known = grid(points)
    at = {f"t = {t:.4g}": t for k in EIGHTHS for t in [min(known[1:-1], key=lambda t: abs(t - k / 8))]}
    places = [
        Place(label, partial(between.weights, t), [bound + chord(t, *pair) for pair in losses])
        for label, t in at.items()
    ]
    asked = Asked(
        lambda found: found.losses, gates, wanted.error, reestimate=between.reestimates, setup=_setup(between)
    )
    tried = settle(between.evaluator, places, asked, wanted.seed, passes)
    if (settled := tried.settled) is None:
        return None
    t, pair = at[settled.place.label], losses[settled.gate]
    early = Early(tried, settled, wanted.error, lambda mean: mean - chord(t, *pair))
    part = None if apart is None else f"{apart.slices.by} {gates[settled.gate].name}"
    evaluator = between.evaluator
    found = Finding(
        0.0,
        limit,
        evaluator.network.loss.unit,
        reference=max(pair),
        endpoints=(a, b),
        above="chord",
        where=Where(t=t, data=part),
        barrier_definition=BARRIER,
        evaluations=evaluator.evaluations,
        facts={"repair": between.facts(), "precision": precision_of(evaluator)},
    )
    return early, early.finding(found, evaluator.network.data, LACKING)


def passes_of(points: int, profile: str, lines: int) -> int:
    """Return how many points measuring so many lines on a refined grid looks at, at most."""
    return lines * (points + 2 * REFINEMENTS[profile])


def _setup(between: Segment) -> int:
    """Return how many samples are run through the network before a point of a segment can be measured."""
    calibration = sum(batch.samples for batch in between.evaluator.calibration)
    return calibration * (between.reestimates + (between.method == "repair"))
