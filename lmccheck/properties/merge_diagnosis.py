"""Why a merge is worse than its parents: the line between them, the way back to the better one, which layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmccheck.errors import LmcError
from lmccheck.properties.merge_tasks import Part, Task

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.network.pair import ModelPair

MOST_BLOCKS = 12  # of the merge's layers, each exchanged once
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
    """What is known of a merge that is too bad: lines of text, and what may help."""

    lines: Sequence[str] = ()
    next: Sequence[str] = ()


def diagnose(part: Part, limit: float | str) -> Diagnosis:
    """Return why the merge is worse than its reference on these data, as far as some more evaluations tell.

    At most 12 of blocks, 3 a line, 3 of the line aligned, and one half-way. Raises nothing of what it cannot do.
    """
    task, merge = part.task, part.task.merge
    metric = task.asked.metric
    better = sorted(part.parents, key=part.parents.__getitem__, reverse=metric.higher_is_better)[0]
    if not metric.on_data or _shapes(merge.merged.theta) != _shapes(merge.parents[better].theta):
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
    if blocks := _blocks(part, better):
        told = "; ".join(f"{name}: {value:.4g}" for name, value in blocks[:TOLD_BLOCKS])
        lines.append(f"layers that matter most, each taken from {better}: {told} (the merge {part.merged:.4g})")
    return Diagnosis(lines, advice)


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


def _blocks(part: Part, better: str) -> list[tuple[str, float]]:
    """Return what the merge becomes where one block of layers is the better parent's, best first, if that helps."""
    from lmccheck.modules.stored import tied_names

    merge, metric = part.task.merge, part.task.asked.metric
    merged, parent = merge.merged.theta, merge.parents[better].theta
    tied = tied_names(merge.network.module)
    found = []
    for name, tensors in blocks_of(list(merged)).items():
        own = {tied[tensor] for tensor in tensors}
        taken = {tensor: parent[tensor] for tensor in merged if tied[tensor] in own}
        found.append((name, part.figure({**merged, **taken})))
    found.sort(key=lambda pair: pair[1], reverse=metric.higher_is_better)
    return [(name, value) for name, value in found if metric.worse_by(part.merged, value) > 0]


def blocks_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return a network's tensors in at most 12 blocks, as fine as that allows: by the first parts of their names.

    >>> blocks_of(["fc1.weight", "fc1.bias", "fc2.weight"])
    {'fc1': ['fc1.weight', 'fc1.bias'], 'fc2': ['fc2.weight']}
    """
    depth = max(name.count(".") for name in names)
    for parts in range(depth, 0, -1):
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(".".join(name.split(".")[:-1][:parts]) or name, []).append(name)
        if len(found) <= MOST_BLOCKS:
            return found
    found = {}
    for name in names:
        found.setdefault(name.split(".")[0], []).append(name)
    width = math.ceil(len(found) / MOST_BLOCKS)
    items = list(found.items())
    joint = [items[k : k + width] for k in range(0, len(items), width)]
    return {
        f"{part[0][0]} to {part[-1][0]}" if len(part) > 1 else part[0][0]: [n for _, held in part for n in held]
        for part in joint
    }
