"""What a network's answers are worth: per sample, and as one figure, in which every sample has its weight.

value = Σ_i w_i·v_i / Σ_i w_i; for the loss w = 1, by which each sample weighs the same; for the loss per token w is how
many tokens of a sample count, and its exponential is the perplexity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmccheck.data.imports import label, load_object
from lmccheck.data.load import Batch
from lmccheck.data.trees import mapped
from lmccheck.errors import SourceError, nearest
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.lm_task import Task
from lmccheck.modules.precision import exact_float32
from lmccheck.modules.runner import as_source_error
from lmccheck.shown import one_line

REPEATS = 1e-6  # relative: what two calls may differ by, where a device sums in another order
POINTS = 100.0  # errors and accuracies are told in percent
CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
EXPECTED = 'or "module:callable" (model, batches -> per-sample values), or { lm_eval = "task" }'
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """Values of samples and what each weighs, both (n,) float64; ``of_mean`` makes one figure of their mean."""

    values: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    of_mean: Callable[[float], float] = field(default=float, repr=False)

    @property
    def value(self) -> float:
        """The figure; NaN where nothing weighs anything."""
        total = float(self.weights.sum())
        return self.of_mean(self._mean) if total > 0 else math.nan

    @property
    def linear(self) -> Tensor:
        """Values whose weighted mean is the figure, (n,): of a power of e those of its tangent at the mean."""
        if self.of_mean is not exponential:
            return self.values
        return self.value * (1 + self.values - self._mean)

    @property
    def _mean(self) -> float:
        return float((self.values * self.weights).sum()) / float(self.weights.sum())

    def of(self, which: Tensor) -> Scores:
        """Return those of some samples: ``which``, (n,) bool."""
        return replace(self, values=self.values[which], weights=self.weights[which])


@one_line(lambda metric: f"{metric.name}, in {metric.unit}")
@dataclass(frozen=True)
class Metric:
    """A figure of a network on its data, in ``unit``. Made by ``metric``.

    ``scores(evaluator, weights, found)``: ``weights`` as they are stored, ``found`` what they were measured to give, so
    that no pass over the data is made twice. ``on_data``: whether there is a value for each sample of the network's
    data, so that they may be taken apart; a task of lm-eval has documents of its own.
    """

    name: str
    unit: str
    scores: Callable[[Evaluator, Weights, Measured], Scores] = field(repr=False)
    higher_is_better: bool = False
    on_data: bool = True

    def worse_by(self, value: float, reference: float) -> float:
        """By how much a value is worse than a reference; infinite where either is no number."""
        worse = reference - value if self.higher_is_better else value - reference
        return math.inf if math.isnan(worse) else worse


def metric(given: Any, folder: Path | None = None, *, unit: str = "nats") -> Metric:
    """Return a metric by its name, of ``"module:callable"``, of a callable or of ``{"lm_eval": "task"}``.

    ``loss`` (the mean over samples) and ``token-loss`` (over counted tokens) are in ``unit``, that of the loss;
    ``perplexity`` is exp of the latter; ``error`` and ``accuracy`` are in points, of 100. A function gets the module
    with its weights and a list of (inputs, targets), ``inputs`` being a tensor, or a tuple of arguments as the module
    takes them, and returns a number for each sample, in order; it may say
    ``higher_is_better = True`` and its ``unit`` as attributes. Raises SourceError.
    """
    if isinstance(given, Metric):
        return given
    if isinstance(given, str) and given in BUILT_IN:
        return replace(BUILT_IN[given], unit=unit) if BUILT_IN[given].unit == "nats" else BUILT_IN[given]
    if isinstance(given, Mapping) and set(given) == {"lm_eval"}:
        return _of_task(Task(given["lm_eval"], folder))
    if isinstance(given, str) and CALLABLE.fullmatch(given):
        return _of_function(load_object(given, folder, "metric"), given)
    if callable(given):
        return _of_function(given, label(given))
    near = nearest(given, BUILT_IN) if isinstance(given, str) else ""
    raise SourceError(f"metric {given!r}: unknown{near}; expected one of {', '.join(BUILT_IN)}, {EXPECTED}")


def _losses(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
    return Scores(found.losses, torch.ones_like(found.losses))


def _by_token(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
    return Scores(found.losses, evaluator.counted)


def _perplexity(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
    return Scores(found.losses, evaluator.counted, exponential)


def exponential(value: float) -> float:
    """Return e to a power, infinite where that is more than a float holds."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _errors(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
    if found.errors is None:
        raise SourceError(
            f"metric 'error': the loss {evaluator.network.loss.name} has no 0-1 errors; mend: a loss of classes or "
            "tokens, or a metric of your own"
        )
    return Scores(found.errors * POINTS, torch.ones_like(found.losses))


def _accuracies(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
    wrong = _errors(evaluator, weights, found)
    return replace(wrong, values=POINTS - wrong.values)


BUILT_IN: Mapping[str, Metric] = {
    "loss": Metric("loss", "nats", _losses),
    "token-loss": Metric("token-loss", "nats", _by_token),
    "perplexity": Metric("perplexity", "perplexity", _perplexity),
    "error": Metric("error", "points", _errors),
    "accuracy": Metric("accuracy", "points", _accuracies, higher_is_better=True),
}


def _of_function(function: Any, name: str) -> Metric:
    """Return the metric that a user's function is."""
    if not callable(function):
        raise SourceError(f"metric {name!r}: got {type(function).__name__}, expected a function of (model, batches)")
    tried: set[str] = set()  # the data that it was tried on

    def scores(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
        what = f"metric {name!r} on {evaluator.network.data.origin}"
        values = _called(function, evaluator, weights, evaluator.batches, what)
        if evaluator.network.data.origin not in tried:
            tried.add(evaluator.network.data.origin)
            _require_repeatable(function, evaluator, weights, what)
        return Scores(values, torch.ones_like(values))

    higher = getattr(function, "higher_is_better", False) is True
    unit = getattr(function, "unit", "")
    return Metric(name, unit if isinstance(unit, str) else "", scores, higher)


def _called(function: Any, evaluator: Evaluator, weights: Weights, given: Sequence[Batch], what: str) -> Tensor:
    """Return a user's values of batches: it gets copies, so that nothing that it writes into is used again."""
    runner = evaluator.runner
    runner.load(weights)
    batches = [mapped(torch.clone, (runner.cast(batch.inputs), runner.cast(batch.targets))) for batch in given]
    with as_source_error(f"{what}: calling it"), torch.no_grad(), exact_float32():
        said = function(runner.module, batches)
    return per_sample(said, what, sum(batch.samples for batch in given))


def _require_repeatable(function: Any, evaluator: Evaluator, weights: Weights, what: str) -> None:
    """Refuse a metric that gives one batch two values, as one of random numbers does."""
    first = evaluator.batches[:1]
    one, again = (_called(function, evaluator, weights, first, what) for _ in range(2))
    if bool((differ := ~torch.isclose(one, again, rtol=REPEATS, atol=0.0)).any()):
        k = int(differ.nonzero()[0])
        raise SourceError(
            f"{what}: gives {float(one[k]):.4g} and then {float(again[k]):.4g} for the same model and sample "
            f"(sample {k}), expected one value; mend: compute it from its arguments alone, without random numbers and "
            "without state"
        )


def _of_task(task: Task) -> Metric:
    """Return the metric that a task of lm-eval is, in points; whether higher is better the task says as it runs."""

    def scores(evaluator: Evaluator, weights: Weights, found: Measured) -> Scores:
        values, name, higher = task(evaluator, weights)
        if not higher:
            raise SourceError(
                f"{task.what}: its metric {name} is better when lower, expected one that is better when higher, such "
                "as acc; mend: list it first in metric_list"
            )
        shares = bool(((values >= 0) & (values <= 1)).all())
        return Scores(values * POINTS if shares else values, torch.ones_like(values))

    return Metric(f"lm_eval {task.name}", "points", scores, higher_is_better=True, on_data=False)


def per_sample(said: Any, what: str, samples: int) -> Tensor:
    """Return a user's values as (n,) float64. Raises SourceError for anything but one finite number a sample."""
    try:
        values = said if isinstance(said, Tensor) else torch.as_tensor(np.asarray(_listed(said), dtype=np.float64))
        values = values.detach().cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise SourceError(
            f"{what}: returned {type(said).__name__}, expected {samples} numbers, one a sample; mend: a "
            "tensor or a list"
        ) from None
    if tuple(values.shape) != (samples,):
        raise SourceError(
            f"{what}: returned shape {tuple(values.shape)}, expected ({samples},), one number a sample; mend: no mean"
        )
    if not bool(values.isfinite().all()):
        k = int((~values.isfinite()).nonzero()[0])
        raise SourceError(f"{what}: returned {float(values[k])} for sample {k}, expected finite numbers")
    return values


def _listed(said: Any) -> Any:
    return [float(value) for value in said] if isinstance(said, (list, tuple)) else said
