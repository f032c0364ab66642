"""What is known of the loss along a path: exactly where segments are convex or constant, by samples elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.trees import tensors_in
from lmccheck.errors import WitnessError
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
from lmccheck.network.pair import ModelPair
from lmccheck.paths.along import Along, Seen, height
from lmccheck.paths.convexity import CONVEX, Claim, tried
from lmccheck.paths.ends import require_ends, require_network
from lmccheck.paths.moves import violation
from lmccheck.paths.path import Path
from lmccheck.shown import rounded_up
from lmccheck.symmetry.structure import Structure

EXACT = 1e-10  # relative, float64
SAME = 1e-6  # of a sample's loss in float64, where the function is the same
TIGHT = 1e-3  # in the loss's unit: how far a bound may be above what was seen
SAMPLED = {"glance": (5, 1), "dev": (11, 1), "ci": (21, 2), "thorough": (41, 6)}  # points of a d segment, rounds


@dataclass(frozen=True)
class Known:
    """What is known of one segment: losses at its ends, the largest on it, where, and how that is known."""

    number: int
    kind: str
    does: str
    start: float
    end: float
    largest: float
    worst: float  # in [0, 1] of the segment
    how: str  # "constant", "convex", "certified" or "sampled"
    errors: tuple[float | None, float | None]
    seen: Seen = ()  # where it was sampled between its ends
    bound: float | None = None  # what the loss nowhere exceeds, where it is certified

    @property
    def points(self) -> int:
        """At how many points it was sampled, its ends among them."""
        return len(self.seen) + 2 if self.seen else 0

    def facts(self) -> dict[str, Any]:
        """Return the segment's row of a report; JSON-able."""
        return {
            "number": self.number, "kind": self.kind, "does": self.does, "loss_start": self.start,
            "loss_end": self.end, "max": self.largest, "worst": self.worst, "known": self.how,
            "error_start": self.errors[0], "error_end": self.errors[1], "points": self.points, "bound": self.bound,
            "seen": [[point.t, point.loss, point.error] for point in self.seen],
        }  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """The largest loss on a path and what it rests on.

    ``exact`` is False where a segment was sampled; ``bound`` says how high those are at most, where that is known.
    ``deviation``: how far, relative and in float64, constant segments moved the output and affine ones left the chord,
    on the first evaluation samples; of a chain, by how much its end is another function than θ_B. ``convex``: what is
    known of the loss. ``end_errors``: the 0-1 errors of θ_A and of θ_B. ``breakpoints``: losses of samples, (n,)
    float64, at those that were measured, by number; ``own`` are those of θ_A and of θ_B.
    """

    segments: tuple[Known, ...]
    largest: float
    loss_a: float
    loss_b: float
    evaluations: int
    deviation: float
    convex: Claim = CONVEX
    end_errors: tuple[float | None, float | None] = (None, None)
    breakpoints: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    own: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def excess(self) -> float:
        """max L on the path − max(L(θ_A), L(θ_B)), never below zero since the ends lie on the path."""
        return self.largest - max(self.loss_a, self.loss_b)

    @property
    def exact(self) -> bool:
        """Whether the maximum is known and not sampled."""
        return all(segment.how not in ("sampled", "certified") for segment in self.segments)

    @property
    def bound(self) -> float | None:
        """By how much no loss on the path is above max(L(θ_A), L(θ_B)); None where that is only sampled."""
        if any(segment.how == "sampled" for segment in self.segments):
            return None
        tops = [top for segment in self.segments for top in (segment.largest, segment.bound) if top is not None]
        return max(map(height, tops)) - max(self.loss_a, self.loss_b)

    @property
    def known(self) -> str:
        """How the maximum is known, in a clause."""
        sampled = sum(segment.how == "sampled" for segment in self.segments)
        if sampled == len(self.segments):
            inside = sum(segment.points - 2 for segment in self.segments)
            return f"sampled: {inside + sampled + 1} points of {sampled} segments"
        claimed = " if the loss is convex" if self.convex.says else ""
        if self.bound is not None and not self.exact:
            return f"certified ≤ {rounded_up(self.bound)} on all {len(self.segments)} segments{claimed}"
        if not sampled:
            return f"certified{claimed}"
        return f"{len(self.segments) - sampled} of {len(self.segments)} segments exact{claimed}, {sampled} sampled"

    @property
    def worst(self) -> Known:
        """The segment on which the loss is largest; of several the first that is not constant."""
        highest = max(height(segment.largest) for segment in self.segments)  # endpoints with statistics of their own
        top = [segment for segment in self.segments if height(segment.largest) == highest]  # may lie above a chain
        return next((segment for segment in top if segment.how != "constant"), top[0])


def claimed(pair: ModelPair, structure: Structure, path: Path) -> float:
    """Check what a path claims of itself, its ends and the kinds of its segments, before any loss is measured.

    Returns how far, relative and in float64, constant segments move the output and affine ones leave the chord. Raises
    WitnessError where a claim does not hold.
    """
    require_network(pair, path, structure.canonical(pair.theta_a), structure.trace.tied)
    require_ends(pair, path, a=structure.canonical(pair.theta_a), b=structure.canonical(pair.theta_b))
    for number, segment in enumerate(path.segments):
        wrong = violation(structure, segment, path.points[number], path.points[number + 1])
        if wrong is not None:
            raise WitnessError(f"path: segment {number + 1} is not of kind {segment.kind}: {wrong}")
    return _numerically(pair, structure, path)


def certify(
    pair: ModelPair,
    structure: Structure,
    path: Path,
    *,
    profile: str = "ci",
    everywhere: bool = False,
    passes: float = 0.0,
) -> Certificate:
    """Return what is known of a pair's loss along a path, on its evaluation data.

    Every segment's claim is checked on the weights (``moves.violation``) and in float64 on the first samples: b and c
    must not move the output, a must be affine. Breakpoints joined by constant segments are measured once, in float64,
    or, ``everywhere``, each: outputs and losses must be finite and those of constant segments the same on all samples.
    Segments of kind d, and those of kind a where the loss is not known to be convex, are sampled. BatchNorm statistics
    are weights of the path, never re-estimated on it. What is sampled is then bounded everywhere, by enclosures, at the
    cost of at most so many ``passes`` over the data each. Raises WitnessError where a claim does not hold.
    """
    deviation = claimed(pair, structure, path)
    along = Along(pair, path)
    exact = along.exact
    losses, errors, kept = _breakpoints(exact, structure, path, everywhere)
    heads = [number for number, segment in enumerate(path.segments) if segment.kind == "a"]
    claim = tried(pair.loss, exact, lambda number, s: exact.weights(path.between(number, s)), heads)
    segments = []
    for number, segment in enumerate(path.segments):
        ends = losses[number], losses[number + 1]
        seen: Seen = ()
        if segment.kind in "bc":
            largest, worst, how = max(ends), 0.0, "constant"
        elif segment.kind == "a" and claim.holds:
            known = [(ends[0], 0.0), (ends[1], 1.0), claim.heights.get(number, (-math.inf, 0.5))]
            (largest, worst), how = max(known, key=lambda item: height(item[0])), "convex"
        else:
            (largest, worst, seen), how = along.largest(number, ends, *SAMPLED[profile]), "sampled"
        wrong_at = errors[number], errors[number + 1]
        segments.append(Known(number + 1, segment.kind, segment.does, *ends, largest, worst, how, wrong_at, seen))
    top = max((segment.largest for segment in segments), key=height)
    if passes > 0 and math.isfinite(top):
        segments = [bounded(along, path, known, top, passes) if known.how == "sampled" else known for known in segments]
    own = errors[0], errors[-1]
    return Certificate(
        tuple(segments), top, losses[0], losses[-1], along.evaluations, deviation, claim, own,
        kept, (kept[0], kept[max(kept)]),
    )  # fmt: skip


def bounded(along: Along, path: Path, known: Known, top: float, passes: float) -> Known:
    """Return what is known of a sampled segment with a bound of its loss everywhere, as it is where there is none.

    The bound is to be at most TIGHT above what was seen, or as high as the path is elsewhere.
    """
    from lmccheck.evaluate.enclosure.lines import bounded_line
    from lmccheck.evaluate.enclosure.search import Sought

    limit = max(known.largest + TIGHT, top)
    first, second = (path.between(known.number - 1, s) for s in (0.0, 1.0))
    samples, highest = along.exact.network.data.samples, (known.largest, known.worst)
    sought = replace(Sought.of_all(samples, 0.0, 0.0, limit, highest, passes), room=TIGHT)
    shown = bounded_line(along.exact.network, first, second, sought, along.exact)
    if shown.bound > limit:
        return known
    return replace(known, how="certified", bound=max(shown.bound, known.largest))


def _breakpoints(
    evaluator: Evaluator, structure: Structure, path: Path, everywhere: bool
) -> tuple[list[float], list[float | None], dict[int, Tensor]]:
    """Return the loss and the 0-1 error at every breakpoint; after constant segments those from before them.

    Last the losses of samples, by number, at those that are not behind a constant segment. ``everywhere``: the latter
    are measured too, and must be the same on every sample.
    """
    losses: list[float] = []
    errors: list[float | None] = []
    kept: dict[int, Tensor] = {}
    before = None
    for number, state in enumerate(path.points):
        constant = number > 0 and path.segments[number - 1].kind in "bc"
        if constant and not everywhere:
            losses.append(losses[-1])
            errors.append(errors[-1])
            continue
        inner = everywhere and 0 < number < len(path.segments)
        found = evaluator.measure(
            evaluator.weights(structure.stored(state)),
            reestimate=False,
            label=f"breakpoint {number} of a path",
            watch=partial(_require_finite, number) if inner else None,
        )
        if constant and before is not None and (differs := differing_sample(before, found)) is not None:
            raise WitnessError(f"path: segment {number} is not constant: {differs}")
        before = found
        losses.append(losses[-1] if constant else found.loss)
        errors.append(errors[-1] if constant else found.error)
        if not constant:
            kept[number] = found.losses
    return losses, errors, kept


def _require_finite(number: int, output: Any) -> None:
    """Raise WitnessError where the network's output at a breakpoint is no number."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(output)):
        raise WitnessError(f"path: breakpoint {number}: the network's output is not finite on all samples")


def differing_sample(before: Measured, after: Measured) -> str | None:
    """Return the sample whose loss changes most where the function is said to be the same; None where none does."""
    apart = (after.losses - before.losses).abs() / (1 + before.losses.abs())
    if bool((apart <= SAME).all()):
        return None
    sample = int(torch.where(apart.isnan(), math.inf, apart).argmax())
    return f"the loss of sample {sample} goes from {float(before.losses[sample])} to {float(after.losses[sample])}"


def _numerically(pair: ModelPair, structure: Structure, path: Path) -> float:
    """Return how far constant and affine segments are from being so, in float64 on the first samples."""
    outputs = FirstOutputs(pair.network, f"{pair.data.origin}, checking a path's segments")
    worst = 0.0
    before = outputs(path.between(0, 0.0))
    for number, segment in enumerate(path.segments):
        after = outputs(path.between(number, 1.0))
        if segment.kind in "abc":
            middle = outputs(path.between(number, 0.375))
            expected = [0.625 * x + 0.375 * y for x, y in zip(before, after, strict=True)]
            apart = relative_deviation(expected, middle)
            if segment.kind in "bc":
                apart = max(apart, relative_deviation(before, after))
            if not apart <= EXACT:
                claim = "affine in t" if segment.kind == "a" else "constant"
                raise WitnessError(
                    f"path: segment {number + 1} (kind {segment.kind}): the output is not {claim}: off by {apart:.2e} "
                    f"(relative, float64), expected at most {EXACT:.0e}; mend: make the path again"
                )
            worst = max(worst, apart)
        before = after
    return worst
