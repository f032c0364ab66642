"""Losses at as many points of a line or a path as are asked for: for plots, and for science."""

from __future__ import annotations

import os
from collections.abc import Callable

from lmccheck.alignment.api import Alignment
from lmccheck.alignment.merge import require_own, segment
from lmccheck.errors import LmcError, SymmetryError
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.line import grid
from lmccheck.evaluate.segment import Segment, require_repair
from lmccheck.fusion.fuse import Fusion
from lmccheck.network.pair import ModelPair, WidthPair
from lmccheck.network.running import at_home
from lmccheck.paths.along import Along
from lmccheck.paths.chain import Outputs, along_chain
from lmccheck.paths.ends import require_ends, require_network
from lmccheck.paths.path import Path, load_path
from lmccheck.store.loss_curve import LossCurve

MOST = 10_001
USUAL = "bn"
Given = Alignment | Path | Fusion | str | os.PathLike[str] | None


@at_home
def curve(
    pair: ModelPair | WidthPair, alignment_or_path: Given = None, points: int = 101, *, repair: str = USUAL
) -> LossCurve:
    """Return the losses of a pair at equispaced points of a line from θ_A to θ_B, or of a path.

    ``alignment_or_path``: an Alignment (the line to π(θ_B)), a Path or a file that ``lmccheck.save_path`` wrote, a
    Fusion (the line to θ_B at θ_A's widths, of a pair of two widths), or None: the line between both as they are.
    ``points``: how many values of t = k/(points−1), both ends included. ``repair``: what is done to the networks on a
    line, as by ``linear_connectivity``; its ``losses`` at the same t are these. Along a path, BatchNorm statistics are
    what its own property takes: weights of the path, or, of trained bends, taken afresh; losses are in float64.

    Nothing is certified here: ``lower`` and ``upper`` are None; what a check has certified is in what the gate writes
    with ``--lmc-curves``. Costs a pass over the evaluation data for each point, and one over the calibration data where
    BatchNorm statistics are re-estimated. Raises LmcError (CheckpointError, SymmetryError) for an alignment, a path or
    a fusion of another pair, SourceError without the calibration data that ``repair`` needs.
    """
    if isinstance(points, bool) or not isinstance(points, int) or not 2 <= points <= MOST:
        raise LmcError(f"curve: points = {points!r}; expected a whole number from 2 to {MOST}")
    require_repair(repair, "curve")
    given = alignment_or_path
    if isinstance(given, (str, os.PathLike)):
        given = load_path(pair.base / given)
    if isinstance(given, Path):
        if repair != USUAL:
            raise LmcError(f"curve: repair = {repair!r} with a path, expected a line; mend: leave it out")
        return _along(pair, given, grid(points))
    return _table(pair, grid(points), [1] * points, _line(pair, given, repair).measure)


def _line(pair: ModelPair | WidthPair, given: Alignment | Fusion | None, repair: str) -> Segment:
    """Return the segment that is asked for. Raises LmcError where it is none of this pair."""
    if isinstance(pair, ModelPair) and (given is None or isinstance(given, Alignment)):
        require_own(pair, given)
        return segment(pair, Evaluator(pair.network, pair.theta_a, pair.theta_b), given, repair)
    if not (isinstance(pair, WidthPair) and isinstance(given, Fusion)):
        expected = "a Fusion" if isinstance(pair, WidthPair) else "an Alignment, a Path, its file or None"
        raise LmcError(f"curve: pair {pair.name}: got {type(given).__name__}, expected {expected}")
    theta_a, fused = pair.a.theta, given.weights
    if any(name not in theta_a or theta_a[name].shape != tensor.shape for name, tensor in fused.items()):
        raise SymmetryError(
            f"pair {pair.name}: the fusion is of another network, expected one of this pair; mend: fuse"
        )
    return Segment(Evaluator(pair.network, theta_a, fused), theta_a, fused, repair)


def _along(pair: ModelPair | WidthPair, path: Path, ts: list[float]) -> LossCurve:
    if not isinstance(pair, ModelPair):
        raise LmcError(f"curve: pair {pair.name}: got a Path, expected a Fusion: no path joins networks of two widths")
    if path.is_chain:
        along, _ = along_chain(pair, path, Outputs(strict=False))
    else:
        structure = pair.network.structure("curve")
        theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
        require_network(pair, path, theta_a, structure.trace.tied)
        require_ends(pair, path, a=theta_a, b=theta_b)
        along = Along(pair, path)
    return _table(pair, ts, [path.place(t)[0] + 1 for t in ts], lambda t: along.at(*path.place(t)))


def _table(
    pair: ModelPair | WidthPair, ts: list[float], segments: list[int], measure: Callable[[float], Measured]
) -> LossCurve:
    """Return what is measured at every t, on these segments."""
    found = [measure(t) for t in ts]
    losses, errors = [at.loss for at in found], [at.error for at in found]
    return LossCurve(ts, segments, losses, errors, [None] * len(ts), [None] * len(ts)).made_of(pair.inputs)
