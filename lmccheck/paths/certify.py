"""What is known of the loss along a path: exactly where segments are convex or constant, by samples elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lmccheck.errors import CheckpointError, WitnessError
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.line import Point, sample
from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
from lmccheck.evaluate.points import interpolate, working_dtype
from lmccheck.network.pair import ModelPair
from lmccheck.paths.convexity import CONVEX, Claim, tried
from lmccheck.paths.moves import violation
from lmccheck.paths.path import Path
from lmccheck.store.trees import tensors_in
from lmccheck.symmetry.structure import Structure

EXACT = 1e-10  # relative, float64
ROUNDING = 1e-5  # of a mean loss in float32, generously
SAME = 1e-6  # of a sample's loss in float64, where the function is the same
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
    how: str  # "constant", "convex" or "sampled"
    errors: tuple[float | None, float | None]

    def facts(self) -> dict[str, Any]:
        """Return the segment's row of a report; JSON-able."""
        return {
            "number": self.number, "kind": self.kind, "does": self.does, "loss_start": self.start,
            "loss_end": self.end, "max": self.largest, "worst": self.worst, "known": self.how,
            "error_start": self.errors[0], "error_end": self.errors[1],
        }  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """The largest loss on a path and what it rests on.

    ``exact`` is False where a segment was only sampled. ``deviation``: how far, relative and in float64, constant
    segments moved the output and affine ones left the chord, on the first evaluation samples. ``convex``: what is known
    of the loss.
    """

    segments: tuple[Known, ...]
    largest: float
    loss_a: float
    loss_b: float
    evaluations: int
    deviation: float
    convex: Claim = CONVEX

    @property
    def excess(self) -> float:
        """max L on the path − max(L(θ_A), L(θ_B)), never below zero since the ends lie on the path."""
        return self.largest - max(self.loss_a, self.loss_b)

    @property
    def exact(self) -> bool:
        """Whether the maximum is known and not sampled."""
        return all(segment.how != "sampled" for segment in self.segments)

    @property
    def known(self) -> str:
        """How the maximum is known, in a clause."""
        sampled = sum(segment.how == "sampled" for segment in self.segments)
        if sampled == len(self.segments):
            return f"{sampled} segments sampled"
        claimed = " if the loss is convex" if self.convex.says else ""
        if not sampled:
            return f"certified{claimed}"
        return f"{len(self.segments) - sampled} of {len(self.segments)} segments exact{claimed}, {sampled} sampled"

    @property
    def worst(self) -> Known:
        """The segment on which the loss is largest; of several the first that is not constant."""
        top = [segment for segment in self.segments if not segment.largest < self.largest]
        return next((segment for segment in top if segment.how != "constant"), top[0])


def certify(
    pair: ModelPair, structure: Structure, path: Path, *, profile: str = "ci", everywhere: bool = False
) -> Certificate:
    """Return what is known of a pair's loss along a path, on its evaluation data.

    Every segment's claim is checked on the weights (``moves.violation``) and in float64 on the first samples: b and c
    must not move the output, a must be affine. Breakpoints joined by constant segments are measured once, in float64,
    or, ``everywhere``, each: outputs and losses must be finite and those of constant segments the same on all samples.
    Segments of kind d, and those of kind a where the loss is not known to be convex, are sampled. BatchNorm statistics
    are weights of the path, never re-estimated on it. Raises WitnessError where a claim does not hold.
    """
    path = require_ends(pair, structure, path)
    for number, segment in enumerate(path.segments):
        wrong = violation(structure, segment, path.points[number], path.points[number + 1])
        if wrong is not None:
            raise WitnessError(f"path: segment {number + 1} is not of kind {segment.kind}: {wrong}")
    deviation = _numerically(pair, structure, path)
    exact = Evaluator(pair.network, pair.theta_a, dtype=torch.float64)
    working = (
        exact
        if exact.dtype == working_dtype(pair.theta_a, pair.theta_b)
        else Evaluator(pair.network, pair.theta_a, pair.theta_b)
    )
    losses, errors = _breakpoints(exact, structure, path, everywhere)
    heads = [number for number, segment in enumerate(path.segments) if segment.kind == "a"]
    claim = tried(pair.loss, exact, lambda number, s: exact.weights(path.between(number, s)), heads)
    segments = []
    for number, segment in enumerate(path.segments):
        ends = losses[number], losses[number + 1]
        if segment.kind in "bc":
            largest, worst, how = max(ends), 0.0, "constant"
        elif segment.kind == "a" and claim.holds:
            seen = [(ends[0], 0.0), (ends[1], 1.0), claim.heights.get(number, (-math.inf, 0.5))]
            (largest, worst), how = max(seen, key=lambda item: _height(item[0])), "convex"
        else:
            (largest, worst), how = _sampled(working, exact, path, number, ends, profile), "sampled"
        wrong_at = errors[number], errors[number + 1]
        segments.append(Known(number + 1, segment.kind, segment.does, *ends, largest, worst, how, wrong_at))
    evaluations = exact.evaluations + (working.evaluations if working is not exact else 0)
    top = max((segment.largest for segment in segments), key=_height)
    return Certificate(tuple(segments), top, losses[0], losses[-1], evaluations, deviation, claim)


def require_ends(pair: ModelPair, structure: Structure, path: Path) -> Path:
    """Return the path, as it is.

    Raises CheckpointError unless every breakpoint holds the network's tensors, those and no others, names are one where
    they are in the network, and the path begins at θ_A and ends at θ_B, every number the same.
    """
    like = structure.canonical(pair.theta_a)
    for number, state in enumerate(path.points):
        strange = next((name for name in (*state, *like) if name not in like or name not in state), None)
        if strange is None:
            strange = next((n for n, t in state.items() if t.shape != like[n].shape or t.dtype != like[n].dtype), None)
        if strange is not None:
            got = f"{tuple(state[strange].shape)} {state[strange].dtype}" if strange in state else "nothing"
            expected = f"{tuple(like[strange].shape)} {like[strange].dtype}" if strange in like else "no such tensor"
            raise CheckpointError(
                f"path of pair {pair.name}: breakpoint {number}: tensor {strange!r}: got {got}, expected {expected}; "
                "mend: give a path made for this network"
            )
    tied = structure.trace.tied
    if (name := next((n for n in (*tied, *path.tied) if tied.get(n) != path.tied.get(n)), None)) is not None:
        raise CheckpointError(
            f"path of pair {pair.name}: 'tied' says that {name!r} is {_named(path.tied.get(name))}, in the network it "
            f"is {_named(tied.get(name))}; mend: give a path made for this network"
        )
    for key, state, given in (("a", path.points[0], pair.theta_a), ("b", path.points[-1], pair.theta_b)):
        theta = structure.canonical(given)
        for name, tensor in theta.items():
            if name not in state or tensor.shape != state[name].shape or not torch.equal(tensor, state[name]):
                raise CheckpointError(
                    f"path of pair {pair.name}: it does not {'begin' if key == 'a' else 'end'} at {key}: tensor "
                    f"{name!r} differs; mend: give the checkpoints it was made for"
                )
    return path


def _named(own: str | None) -> str:
    return "no tensor" if own is None else repr(own)


def _height(loss: float) -> float:
    """A loss to compare by: what is no number is above all."""
    return math.inf if loss != loss else loss


def _breakpoints(
    evaluator: Evaluator, structure: Structure, path: Path, everywhere: bool
) -> tuple[list[float], list[float | None]]:
    """Return the loss and the 0-1 error at every breakpoint; after constant segments those from before them.

    ``everywhere``: those are measured too, and must be the same on every sample.
    """
    losses: list[float] = []
    errors: list[float | None] = []
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
        if constant and before is not None:
            _require_same(before, found, number)
        before = found
        losses.append(losses[-1] if constant else found.loss)
        errors.append(errors[-1] if constant else found.error)
    return losses, errors


def _require_finite(number: int, output: Any) -> None:
    """Raise WitnessError where the network's output at a breakpoint is no number."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(output)):
        raise WitnessError(f"path: breakpoint {number}: the network's output is not finite on all samples")


def _require_same(before: Measured, after: Measured, number: int) -> None:
    """Raise WitnessError where a constant segment changes the loss of a sample."""
    apart = (after.losses - before.losses).abs() / (1 + before.losses.abs())
    if not bool((apart <= SAME).all()):
        sample = int(torch.where(apart.isnan(), math.inf, apart).argmax())
        raise WitnessError(
            f"path: segment {number} is not constant: the loss of sample {sample} goes from "
            f"{float(before.losses[sample])} to {float(after.losses[sample])}"
        )


def _sampled(
    working: Evaluator, exact: Evaluator, path: Path, number: int, ends: tuple[float, float], profile: str
) -> tuple[float, float]:
    """Return the largest loss seen on one segment and where: searched in the working dtype, measured in float64."""
    label = f"segment {number + 1} of a path"
    first, second = (working.weights(path.between(number, s)) for s in (0.0, 1.0))

    def measure(s: float) -> Point:
        if s in (0.0, 1.0):
            return Point(s, ends[int(s)], None)
        found = working.measure(interpolate(first, second, s), reestimate=False, label=f"{label} at {s:.4g}")
        return Point(s, found.loss, found.error)

    points, rounds = SAMPLED[profile]
    found = sample(measure, points, rounds, 0.0, 0.0)
    inside = max((point for point in found if 0 < point.t < 1), key=lambda point: _height(point.loss))
    seen = [(ends[0], 0.0), (ends[1], 1.0)]
    if working is exact:
        seen.append((inside.loss, inside.t))
    elif _height(inside.loss) > max(map(_height, ends)) * (1 - ROUNDING):
        there = exact.weights(path.between(number, inside.t))
        seen.append((exact.measure(there, reestimate=False, label=f"{label} at {inside.t:.4g}").loss, inside.t))
    return max(seen, key=lambda item: _height(item[0]))


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
