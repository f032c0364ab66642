"""A merge that fails early: what is bet on for each metric, and what is found where it is settled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmccheck.errors import LmcError
from lmccheck.properties.early import Early, require_bounded
from lmccheck.properties.merge_tasks import Parents, bound_above, evaluator_of

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.evaluate.metrics import Metric
    from lmccheck.network.network import Network

POINTS = 100.0  # errors are told in percent


@dataclass(frozen=True)
class Mean:
    """How a metric's figure is a mean of values ≥ 0: losses, or 0-1 errors in points, by sample or by token.

    ``figure`` makes the metric's of the mean, ``mean`` the mean of the metric's. ``largest``: what no value exceeds.
    """

    figure: Callable[[float], float] = float
    mean: Callable[[float], float] = float
    by_token: bool = False
    largest: float = math.inf

    def values(self, found: Measured) -> Tensor:
        """Return the values of samples, (n,) float64."""
        if math.isinf(self.largest):
            return found.losses
        assert found.errors is not None
        return self.largest * found.errors

    def weights(self, evaluator: Evaluator) -> Tensor:
        """Return what samples weigh, (n,) float64."""
        import torch

        return evaluator.counted if self.by_token else torch.ones_like(evaluator.counted)


def _exponential(value: float) -> float:
    from lmccheck.evaluate.metrics import exponential

    return exponential(value)


def _right(points: float) -> float:
    return POINTS - points


MEANS = {
    "loss": Mean(),
    "token-loss": Mean(by_token=True),
    "perplexity": Mean(_exponential, math.log, by_token=True),
    "error": Mean(largest=POINTS),
    "accuracy": Mean(_right, _right, largest=POINTS),
}


def require_means(metric: Metric, network: Network) -> None:
    """Raise LmcError for a metric that is no mean of values known to be ≥ 0."""
    if metric.name not in MEANS:
        raise LmcError(
            f"merged_loss: early_fail with metric {metric.name!r}, of which nothing says that it is a mean of values "
            f"that are never negative; expected one of {', '.join(MEANS)}; mend: leave early_fail out"
        )
    if math.isinf(MEANS[metric.name].largest):
        require_bounded(network)


def settled_merge(known: Parents, limit: float | str, error: float, sets: int, seed: int) -> Early | None:
    """Return that a merge is worse than its reference by more than the limit; None where that is not settled early.

    Each part of the samples is judged by itself where they are told apart; so many data ``sets`` share the error. What
    may be saved is the merge's own passes.
    """
    from lmccheck.evaluate.early import Asked, Gate, Place, settle

    mean, metric = MEANS[known.asked.metric.name], known.asked.metric
    evaluator = evaluator_of(known)
    weights = mean.weights(evaluator)
    masks = [None] if known.slices is None else [known.slices.index == k for k in range(len(known.slices.names))]
    gates = [Gate(weights if which is None else weights * which) for which in masks]
    references = [known.reference_of(known.figures(which)) for which in masks]
    sign = -1.0 if metric.higher_is_better else 1.0
    worst = [reference + sign * bound_above(reference, limit) for reference in references]  # figures that still pass
    merged = known.merge.merged
    place = Place("the merge", lambda: evaluator.weights(merged.theta), [mean.mean(figure) for figure in worst])
    asked = Asked(mean.values, gates, error / sets, mean.largest)
    tried = settle(evaluator, [place], asked, seed, len(known.ends) + 1)
    if (settled := tried.settled) is None:
        return None
    base = references[settled.gate]
    return Early(tried, settled, error, lambda x: metric.worse_by(mean.figure(x), base), mean.figure)
