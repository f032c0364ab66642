"""What is known of the loss along a chain of straight segments of which nothing is claimed: what samples show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmccheck.data.trees import tensors_in
from lmccheck.errors import UnsupportedArchitecture, WitnessError
from lmccheck.evaluate.evaluator import Measured
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.modules.constants import differing_integers
from lmccheck.modules.stored import tied_names
from lmccheck.network.pair import ModelPair
from lmccheck.paths.along import Along, height
from lmccheck.paths.certify import Certificate, Known, differing_sample
from lmccheck.paths.ends import differing, require_ends, require_network
from lmccheck.paths.path import Path
from lmccheck.shown import some
from lmccheck.store.files import mask_like
from lmccheck.store.tensors import equal
from lmccheck.symmetry.verify import TOLERANCE

SAMPLED = {"glance": (3, 0), "dev": (5, 1), "ci": (11, 2), "thorough": (41, 6)}  # points of each segment, rounds


def canonical(weights: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights by the first of their names, as they are: tied ones once."""
    return {own: weights[own] for own in dict.fromkeys(tied.values())}


def require_continuous(pair: ModelPair) -> None:
    """Raise UnsupportedArchitecture where whole numbers differ between the ends: they would jump, and no path does."""
    jumps = differing_integers(pair.module, pair.theta_a, pair.theta_b)
    if jumps:
        raise UnsupportedArchitecture(
            f"pair {pair.name}: whole numbers in {some(map(repr, jumps))} differ between a and b, and nothing lies "
            "between whole numbers, so that no path joins them; mend: give checkpoints that agree in them, or with "
            "weights before they were quantised"
        )


def sampled_chain(pair: ModelPair, path: Path, *, profile: str = "ci", everywhere: bool = False) -> Certificate:
    """Return what samples show of a pair's loss along a chain, on its evaluation data.

    Every segment is looked at on a grid that is refined around its worst point (``SAMPLED``), BatchNorm statistics
    taken afresh at every point, breakpoints included; losses stated are in float64. The chain must begin at θ_A to the
    last bit and end at θ_B, or at weights that compute what θ_B computes: outputs on the first 64 samples equal to
    1e-9, the loss of every evaluation sample to 1e-6. Where an output is not finite the loss is infinite, or,
    ``everywhere``, refused. Raises CheckpointError where the chain is not of this network or joins others, WitnessError
    where its end computes something else.
    """
    outputs = Outputs(strict=everywhere)
    along, (a, b, deviation) = along_chain(pair, path, outputs)
    fresh = along.exact.batchnorms > 0
    points = [along.at(0, 0.0) if fresh else a, *(along.at(number, 1.0) for number in range(len(path.segments)))]
    segments = []
    for number, segment in enumerate(path.segments):
        first, second = points[number], points[number + 1]
        largest, worst, seen = along.largest(number, (first.loss, second.loss), *SAMPLED[profile])
        if number in outputs.lost:
            largest, worst = math.inf, outputs.lost[number]
        known = Known(
            number + 1, segment.kind, segment.does, first.loss, second.loss, largest, worst, "sampled",
            (first.error, second.error), seen,
        )  # fmt: skip
        segments.append(known)
    top = max((a.loss, b.loss, *(segment.largest for segment in segments)), key=height)
    return Certificate(
        tuple(segments),
        top,
        a.loss,
        b.loss,
        along.evaluations,
        deviation,
        end_errors=(a.error, b.error),
        breakpoints={number: point.losses for number, point in enumerate(points)},
        own=(a.losses, b.losses),
    )


def along_chain(pair: ModelPair, path: Path, outputs: Outputs) -> tuple[Along, tuple[Measured, Measured, float]]:
    """Return what measures along a chain, and what θ_A and θ_B lose with how far its end is from θ_B's function.

    BatchNorm statistics are taken afresh wherever it measures. Raises as ``sampled_chain``.
    """
    require_continuous(pair)
    tied = tied_names(pair.module)
    theta_a = canonical(pair.theta_a, tied)
    require_network(pair, path, theta_a, tied, floats=True)
    require_ends(pair, path, a=theta_a)
    _require_finite(path)
    along = Along(pair, path, reestimate=True, watch=outputs)
    along.exact.require_calibration()
    return along, _endpoints(pair, path, along, outputs)


class Outputs:
    """Looks at every output of the network along a chain; ``lost``: segments on which one was no number, and where.

    Infinities of θ_A's own outputs (classes that are masked out) are the network's.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict, self._masks = strict, False
        self.lost: dict[int, float] = {}

    def of_a(self, output: Any) -> None:
        """Look at θ_A's."""
        self._masks = self._masks or any(bool(tensor.isinf().any()) for tensor in tensors_in(output))

    def __call__(self, number: int, s: float, output: Any) -> None:
        """Look at those at ``s`` of a segment."""
        finite = (~t.isnan() if self._masks else t.isfinite() for t in tensors_in(output))
        if all(bool(each.all()) for each in finite):
            return
        if self._strict:
            raise WitnessError(
                f"path: segment {number + 1} at {s:.4g}: the network's output is not finite on all samples"
            )
        self.lost.setdefault(number, s)


def _endpoints(pair: ModelPair, path: Path, along: Along, outputs: Outputs) -> tuple[Measured, Measured, float]:
    """Return what θ_A and θ_B lose, and by how much the chain's end is another function than θ_B.

    Raises WitnessError where it is.
    """
    exact, end = along.exact, path.between(len(path.segments) - 1, 1.0)

    def measured(weights: Mapping[str, Tensor], label: str, watch: Any = None) -> Measured:
        return exact.measure(exact.weights(weights), reestimate=False, label=label, watch=watch)

    a = measured(pair.theta_a, "endpoint a", outputs.of_a)
    b = measured(pair.theta_b, "endpoint b")
    if differing(path.points[-1], canonical(pair.theta_b, path.tied)) is None:
        return a, b, 0.0
    deviation = function_deviation(pair.network, pair.theta_b, end)
    if not deviation <= TOLERANCE:
        why = f"outputs on the first samples differ by {deviation:.2e} (relative, float64), at most {TOLERANCE:.0e} may"
    else:
        why = differing_sample(b, measured(end, "the end of a path")) or ""
    if why:
        raise WitnessError(
            f"path of pair {pair.name}: it ends neither at b nor at a network that computes what b computes: {why}; "
            "mend: give the checkpoints it was made for"
        )
    return a, b, deviation


def _require_finite(path: Path) -> None:
    """Raise WitnessError where a breakpoint holds what is no number, a mask of θ_A's aside."""
    for number, state in enumerate(path.points):
        for name, tensor in state.items():
            finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
            if not finite and not (mask_like(tensor) and equal(tensor, path.points[0][name])):
                raise WitnessError(f"path: breakpoint {number}: tensor {name!r} is not finite")
