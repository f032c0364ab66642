"""The loss barriers between all pairs of a set of aligned networks, and the loss of their mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmccheck.alignment.many import ManyAlignment, mean_of
from lmccheck.alignment.merge import traced_for_repair
from lmccheck.errors import LmcError
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.line import Point, barrier, sample
from lmccheck.evaluate.means import RunningMean
from lmccheck.evaluate.segment import Segment, require_repair
from lmccheck.network.endpoint import StateDict
from lmccheck.network.model_set import ModelSet
from lmccheck.network.pair import ModelPair
from lmccheck.network.running import running
from lmccheck.symmetry.discover import Traced

LOG = logging.getLogger("lmccheck")
Matrix = list[list[float]]
Curves = dict[tuple[int, int], list[Point]]


@dataclass(frozen=True)
class Barriers:
    """Loss barriers between all pairs of a set, (n, n) nested lists, symmetric with a zero diagonal; ``points`` a pair.

    ``aligned`` and ``naive`` stand over the chord between the losses of the originals, ``losses`` (n,), as
    linear_connectivity's; ``reestimated`` over that between the ends with BatchNorm re-estimated (None without one).
    ``mean_loss`` and ``mean_loss_naive`` are the losses of the uniform mean of all models, aligned and as given.
    ``curves`` and ``own``: the points of aligned segments, and what the models lose, sample by sample.
    """

    aligned: Matrix
    naive: Matrix
    reestimated: Matrix | None
    worst_t: dict[tuple[int, int], float]  # by (i, j) with i < j
    losses: list[float]
    errors: list[float] | None
    mean_loss: float
    mean_loss_naive: float
    mean_error: float | None
    points: int
    evaluations: int
    curves: Curves = field(default_factory=dict, repr=False)
    own: Sequence[Tensor] = field(default=(), repr=False)


def barrier_matrix(many: ManyAlignment, *, points: int = 5, naive: bool = False) -> Matrix:
    """Return the loss barriers between all pairs of aligned models, an (n, n) nested list, in the loss's unit.

    Entry i, j is what ``linear_connectivity`` measures between models i and j on a grid of ``points``, with the
    alignment of ``many``, or with none (``naive``). Raises SourceError where BatchNorm needs calibration data.
    """
    with running(many.pair):
        found = measure_barriers(many, points=points)
    return found.naive if naive else found.aligned


@dataclass(frozen=True)
class Unmoved:
    """A set as it is given, where ManyAlignment says what a set is like in one frame."""

    names: tuple[str, ...]
    originals: tuple[dict[str, Tensor], ...]
    pair: ModelPair
    is_identity = True
    spec = None
    function_deviations = ()
    method = "none"

    @classmethod
    def of(cls, models: ModelSet) -> Unmoved:
        """Return a set as it is given."""
        return cls(models.names, models.thetas, models.pair(0, 1))

    @property
    def weights(self) -> tuple[dict[str, Tensor], ...]:
        """The weights of each, as they are."""
        return self.originals

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it, as of an alignment."""
        return {"method": "none", "align": "none", "names": list(self.names), "alignments": {}, "cycle_error": 0.0}


def measure_barriers(
    many: ManyAlignment | Unmoved, *, points: int = 5, repair: str = "bn", weights: Sequence[float] | None = None
) -> Barriers:
    """Measure every segment between two models of a set, and the mean of all; every end is measured once.

    ``repair`` mends the networks between as it does for linear_connectivity; the mean of all has its BatchNorm
    re-estimated (unless ``none``) and nothing else, since REPAIR is about two ends; ``weights`` are its, uniform where
    none are given. Raises SourceError when BatchNorm
    cannot be re-estimated, or when the loss of a model is not finite; LmcError for a grid of fewer than 3 points.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LmcError(f"barrier_matrix: points = {points!r}; expected an integer of at least 3")
    require_repair(repair, "barrier_matrix")
    evaluator = Evaluator(many.pair.network, *many.originals)
    reestimates = evaluator.batchnorms > 0 and repair != "none"
    if reestimates:
        evaluator.require_calibration()
    derived = traced_for_repair(many.pair) if repair == "repair" else None
    ends = [evaluator.endpoint(weights, name, name) for weights, name in zip(many.originals, many.names, strict=True)]
    losses = [end.loss for end in ends]
    aligned = _segments(evaluator, many.weights, losses, points, repair, derived)
    naive = aligned if many.is_identity else _segments(evaluator, many.originals, losses, points, repair, derived)
    over_ends = {key: _barrier(curve, curve[0].loss, curve[-1].loss)[0] for key, curve in aligned.items()}
    heights = {key: _barrier(curve, losses[key[0]], losses[key[1]]) for key, curve in aligned.items()}
    heights_naive = {key: _barrier(curve, losses[key[0]], losses[key[1]])[0] for key, curve in naive.items()}
    count = len(losses)
    mean, mean_naive = (
        evaluator.measure(_mean(evaluator, states, weights), reestimate=reestimates, label="the mean of all")
        for states in (many.weights, many.originals)
    )
    errors = [end.error for end in ends if end.error is not None]
    return Barriers(
        aligned=_matrix({key: height for key, (height, _) in heights.items()}, count),
        naive=_matrix(heights_naive, count),
        reestimated=_matrix(over_ends, count) if reestimates else None,
        worst_t={key: t for key, (_, t) in heights.items()},
        losses=losses,
        errors=errors if len(errors) == count else None,
        mean_loss=mean.loss,
        mean_loss_naive=mean_naive.loss,
        mean_error=mean.error,
        points=points,
        evaluations=evaluator.evaluations,
        curves=aligned,
        own=[end.losses for end in ends],
    )


def _barrier(curve: Sequence[Point], at_a: float, at_b: float) -> tuple[float, float]:
    return barrier([(point.t, point.loss) for point in curve], at_a, at_b)


def _segments(
    evaluator: Evaluator,
    states: Sequence[StateDict],
    losses: Sequence[float],
    points: int,
    repair: str,
    derived: Traced | None,
) -> Curves:
    """Return points along the segment between every two models i < j; the ends of all segments are shared."""
    tips: dict[int, Measured] = {}

    def curve(between: Segment, i: int, j: int) -> list[Point]:
        def at(t: float) -> Point:
            tip = {0.0: i, 1.0: j}.get(t)
            if tip is None:
                found = between.measure(t)
            elif tip in tips:
                found = tips[tip]
            else:
                found = tips[tip] = between.measure(t)
            return Point(t, found.loss, None, losses=found.losses)

        return sample(at, points, 0, losses[i], losses[j])

    found: Curves = {}
    for i in range(len(states)):
        first = evaluator.weights(states[i])  # at most two models are on the device at a time, three with REPAIR
        beside: Segment | None = None  # what REPAIR saw of the first model is seen once
        for j in range(i + 1, len(states)):
            between = Segment(evaluator, first, states[j], repair, derived, beside)
            found[i, j] = curve(between, i, j)
            beside = between if derived is not None else None
            del between
            LOG.info("models %d and %d: %d points", i, j, points)
    return found


def _mean(evaluator: Evaluator, states: Sequence[StateDict], weights: Sequence[float] | None) -> dict[str, Tensor]:
    if weights is None or len(set(weights)) == 1:
        return mean_of(map(evaluator.weights, states))
    mean = RunningMean()
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    return evaluator.weights(mean.at(evaluator.dtype))


def _matrix(values: Mapping[tuple[int, int], float], count: int) -> Matrix:
    return [[0.0 if i == j else values[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]
