"""Why a merge is worse than its parents: the line between them, the way back to the better one, which layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmccheck.diagnose.delta import Budget
from lmccheck.errors import LmcError
from lmccheck.properties.explained import budget_of, groups_of, told, told_beside
from lmccheck.properties.merge_tasks import Part, Task

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.layerwise import Exchange
    from lmccheck.network.pair import ModelPair

MOST_LINES = 4  # other parents that the better one is joined with
TOLD_BLOCKS = 3
FAR = 1.05  # times as far from the base as its parents: more than rounding
ALONG = (0.25, 0.5, 0.75)
METHOD = "weight-matching"


@dataclass(frozen=True)
class Between:
    """The line from the better parent to another: how far above the chord it rises, and, aligned, then."""

    other: str
    barrier: float
    aligned: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a merge that is too bad: lines of text, what may help, and the explanation as data."""

    lines: Sequence[str] = ()
    next: Sequence[str] = ()
    explanation: Mapping[str, Any] | None = None


def diagnose(part: Part, limit: float | str, explain: bool | None = None) -> Diagnosis:
    """Return why the merge is worse than its reference on these data, as far as some more evaluations tell.

    At most 11 of layers, 3 a line, 3 of the line aligned, one half-way, and, unless ``explain`` is false, half as many
    again as all that and the check. Raises nothing of what it cannot do.
    """
    task, better = part.task, _better(part)
    metric = task.asked.metric
    if not _comparable(part, better):
        return Diagnosis()
    lines, advice = [], []
    if part.within(part.reestimated, limit):
        advice.append(f"re-estimating BatchNorm in what is published: {part.reestimated:.4g} {metric.unit} then")
    if between := [*_lines(part, better)]:
        lines.append("the line between parents: " + "; ".join(_told(line, better, metric.unit) for line in between))
        advice += _aligning(part, between)
    halfway, far = part.figure(_mixed(task, better)), _far(task)
    beyond = f"; the merge lies {far:.2g} times as far from the base as its parents do" if far > FAR else ""
    lines.append(f"half-way back to {better} it is {halfway:.4g} {metric.unit}{beyond}")
    if part.within(halfway, limit):
        advice.append(f"smaller weights: half-way back to {better} is within the limit")
    elif far > FAR:
        advice.append("smaller weights, by which the merge stays as near to the base as its parents")
    if not advice:
        advice += _weighing(part, better, between)
    budget = budget_of(task.evaluator.evaluations, explain is not False, explain)
    exchange, why = _exchange(part, better, budget), None
    if blocks := _blocks(part, exchange):
        told = "; ".join(f"{name}: {value:.4g}" for name, value in list(blocks.items())[:TOLD_BLOCKS])
        lines.append(f"layers that matter most, each taken from {better}: {told} (the merge {part.merged:.4g})")
    if explain is not False:
        why = explain_merge(part, better, exchange, limit, budget)
        lines += told_beside(why)
    return Diagnosis(lines, advice, why)


def of_a_pass(part: Part, explain: bool | None) -> Diagnosis:
    """Return what carries most of what a merge that is good enough loses, as lines of notes, where that is asked."""
    if not explain or not _comparable(part, better := _better(part)):
        return Diagnosis()
    budget = budget_of(part.task.evaluator.evaluations, True, explain)
    why = explain_merge(part, better, _exchange(part, better, budget), None, budget)
    return Diagnosis(told(why), (), why)


def _better(part: Part) -> str:
    metric = part.task.asked.metric
    return sorted(part.parents, key=part.parents.__getitem__, reverse=metric.higher_is_better)[0]


def _comparable(part: Part, better: str) -> bool:
    """Whether samples have figures of their own, and layers of the merge may be taken from the better parent."""
    merge = part.task.merge
    return part.task.asked.metric.on_data and _shapes(merge.merged.theta) == _shapes(merge.parents[better].theta)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _lines(part: Part, better: str) -> Iterator[Between]:
    """Yield the lines from the better parent to others; the highest is measured aligned as well."""
    pairs = {name: part.task.merge.pair(better, name) for name in part.parents if name != better}
    pairs = dict(list(pairs.items())[:MOST_LINES])
    found = {name: _barrier(part, pair, (better, name)) for name, pair in pairs.items()}
    worst = max(found, key=found.__getitem__, default="")
    for name, height in found.items():
        aligned = _aligned(part, pairs[name], (better, name)) if name == worst and height > 0 else None
        yield Between(name, height, aligned)


def _barrier(part: Part, pair: ModelPair, names: tuple[str, str]) -> float:
    """Return by how much the line is worse than its chord, never below 0."""
    from lmccheck.evaluate.points import interpolate

    evaluator, metric = part.task.evaluator, part.task.asked.metric
    first, second = (evaluator.weights(theta) for theta in (pair.theta_a, pair.theta_b))
    a, b = (part.parents[name] for name in names)
    heights = (metric.worse_by(part.figure(interpolate(first, second, t)), (1 - t) * a + t * b) for t in ALONG)
    return max(0.0, *heights)


def _aligned(part: Part, pair: ModelPair, names: tuple[str, str]) -> float | None:
    """Return the barrier of the line after alignment; None where there is nothing to align by."""
    from lmccheck.alignment.api import align

    try:
        alignment = align(pair, METHOD)
    except LmcError:
        return None
    if alignment.is_identity:
        return None
    return _barrier(part, pair.with_weights(pair.theta_a, alignment.weights), names)


def _told(line: Between, better: str, unit: str) -> str:
    then = "" if line.aligned is None else f", {line.aligned:.4g} after {METHOD}"
    return f"{better} to {line.other} rises {line.barrier:.4g} {unit} above its chord{then}"


def _aligning(part: Part, between: Sequence[Between]) -> list[str]:
    merge = part.task.merge
    helps = [line for line in between if line.aligned is not None and line.aligned < line.barrier / 2]
    if helps and merge.align == "none":
        linear = merge.recipe.declared.linear
        return [f'align = "{METHOD}"' if linear else f"aligning {helps[0].other} before it is merged (lmccheck align)"]
    high = [line for line in between if line.barrier > abs(part.reference)]
    return ["parents that share more of their training"] if high and not helps else []


def _weighing(part: Part, better: str, between: Sequence[Between]) -> list[str]:
    """Return what is left where the line between parents is no barrier: its weights, and sums that shrink nothing."""
    merge = part.task.merge
    if not merge.recipe.declared.linear or not between or any(line.barrier > 0 for line in between):
        return []
    sums = [] if merge.base_file is None else ["task vectors added to the base in place of a mean, which shrinks each"]
    return [f"a larger weight of {better}: between the parents the figure falls towards it", *sums]


def _mixed(task: Task, better: str) -> dict[str, Tensor]:
    from lmccheck.evaluate.points import interpolate

    merge = task.merge
    merged, parent = (task.evaluator.weights(end.theta) for end in (merge.merged, merge.parents[better]))
    return interpolate(merged, parent, 0.5)


def _far(task: Task) -> float:
    """Return how far the merge is from the base, in units of how far its parents are; 0 where there is no base."""
    merge = task.merge
    if merge.base_model is None:
        return 0.0
    base = merge.base_model.theta
    far = max(_distance(end.theta, base) for end in merge.parents.values())
    return _distance(merge.merged.theta, base) / far if far else 0.0


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    floating = [name for name, tensor in one.items() if tensor.is_floating_point()]
    return math.sqrt(sum(float((one[n].double() - other[n].double()).square().sum()) for n in floating))


def _exchange(part: Part, better: str, budget: Budget) -> Exchange:
    """Return what takes layers of the better parent's from the merge, and says by how much each is worse."""
    from lmccheck.evaluate.layerwise import Exchange

    task = part.task
    merge, metric, again = task.merge, task.asked.metric, task.reestimated is not None
    parent, merged = (task.evaluator.weights(end.theta) for end in (merge.parents[better], merge.merged))

    def measure(weights: Mapping[str, Tensor], label: str) -> float:
        budget.spend()
        return metric.worse_by(part.figure(weights), part.reference)

    found = Exchange(parent, merged, merge.network.module, measure, again)
    whole = part.merged if part.reestimated is None else part.reestimated
    found.knows(metric.worse_by(whole, part.reference), moved=True)
    if not again:
        found.knows(metric.worse_by(part.parents[better], part.reference), moved=False)
    return found


def _blocks(part: Part, exchange: Exchange) -> dict[str, float]:
    """Return what the merge becomes where one run of layers is the better parent's, best first, if that helps."""
    metric, merged = part.task.asked.metric, part.merged
    sign = -1 if metric.higher_is_better else 1
    figures = {name: part.reference + sign * exchange.without_layers(run) for name, run in exchange.parts.items()}
    best = sorted(figures, key=figures.__getitem__, reverse=metric.higher_is_better)
    return {name: figures[name] for name in best if metric.worse_by(merged, figures[name]) > 0}


def explain_merge(
    part: Part, better: str, exchange: Exchange, limit: float | str | None, budget: Budget
) -> dict[str, Any]:
    """Return what carries what the merge loses to its reference; without a ``limit`` nothing breaks one."""
    import torch

    from lmccheck.diagnose.explanation import Case, Lost, explanation

    task = part.task
    metric = task.asked.metric
    sign = -1.0 if metric.higher_is_better else 1.0
    weights = sign * task.merged.weights / task.merged.weights.mean()
    worse = {name: weights * (task.merged.values - scores.values) for name, scores in task.scores.items()}
    heights = torch.stack([worse[name] for name in task.required]).mean(0)
    whole = exchange.with_layers(exchange.layers)
    suspected = {
        layer: whole - exchange.without_layers(run)
        for run in exchange.parts.values()
        if limit is not None
        for layer in run
    }
    bound = None if limit is None else part.bound(limit)
    case = Case(exchange, better, bound, groups_of(task.merge.network), suspected, budget)
    return explanation(case, Lost(task.merge.network.data, heights, worse, part.which))
