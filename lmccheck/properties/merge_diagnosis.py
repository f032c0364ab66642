"""Why a merge is worse than its parents: the line between them, the way back to the better one, which layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmccheck.errors import LmcError
from lmccheck.finding import End
from lmccheck.properties.merge_tasks import Task

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
    near: float  # the loss a quarter of the way


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a merge that is too bad: lines of text, and what may help. All in the loss's unit."""

    lines: Sequence[str] = ()
    next: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


def diagnose(task: Task, limit: float | str) -> Diagnosis:
    """Return why the merge is worse than its reference on these data, as far as some more evaluations tell.

    At most 12 of blocks, 3 a line, 3 of the line aligned, and one half-way. Raises nothing of what it cannot do.
    """
    merge, unit = task.merge, task.merge.network.loss.unit
    better = min((end for end in task.parents), key=lambda end: end.loss)
    if {n: t.shape for n, t in merge.merged.theta.items()} != {
        n: t.shape for n, t in merge.parents[better.name].theta.items()
    }:
        return Diagnosis()
    reach = task.reference.loss + task.bound(limit)
    lines, advice = [], []
    if task.reestimated is not None and task.reestimated.loss <= reach:
        advice.append(
            f"re-estimating the BatchNorm statistics of what is published: {task.reestimated.loss:.4g} {unit} then"
        )
    between = [*_lines(task, better)]
    if between:
        lines.append("the line between parents: " + "; ".join(_told(line, better.name, unit) for line in between))
        advice += _aligning(task, between)
    halfway = _loss(task, _mixed(task, better.name))
    far = _far(task)
    beyond = f"; the merge lies {far:.2g} times as far from the base as its parents do" if far > FAR else ""
    lines.append(f"half-way back to {better.name} the loss is {halfway:.4g} {unit}{beyond}")
    if halfway <= reach:
        advice.append(f"smaller weights: half-way back to {better.name} is within the limit")
    elif far > FAR:
        advice.append("smaller weights, by which the merge stays as near to the base as its parents")
    blocks = _blocks(task, better.name)
    if blocks:
        told = "; ".join(f"{name}: {loss:.4g}" for name, loss in blocks[:TOLD_BLOCKS])
        lines.append(
            f"layers that matter most, each taken from {better.name}: {told} (the merge {task.merged.loss:.4g})"
        )
    facts = {"blocks": dict(blocks), "half_way": halfway, "lines": {b.other: [b.barrier, b.aligned] for b in between}}
    return Diagnosis(lines, advice, facts)


def _loss(task: Task, weights: Mapping[str, Tensor]) -> float:
    """Return the loss of weights on the data; infinite where it has none."""
    evaluator = task.evaluator
    reestimate = task.reestimated is not None
    loss = evaluator.measure(evaluator.weights(weights), reestimate=reestimate, label="a diagnosis").loss
    return loss if not math.isnan(loss) else math.inf


def _lines(task: Task, better: End) -> Iterator[Between]:
    """Yield the lines from the better parent to others; the highest is measured aligned as well."""
    merge = task.merge
    others = [end for end in task.parents if end.name != better.name][:MOST_LINES]
    found = {end.name: _barrier(task, merge.pair(better.name, end.name), (better, end)) for end in others}
    worst = max(found, key=lambda name: found[name][0], default="")
    for end in others:
        height, near = found[end.name]
        aligned = None
        if end.name == worst and height > 0:
            aligned = _aligned(task, merge.pair(better.name, end.name), (better, end))
        yield Between(end.name, height, aligned, near)


def _barrier(task: Task, pair: ModelPair, ends: tuple[End, End]) -> tuple[float, float]:
    """Return how far the line rises above its chord, never below 0, and the loss a quarter of the way."""
    from lmccheck.evaluate.points import interpolate

    first, second = (task.evaluator.weights(theta) for theta in (pair.theta_a, pair.theta_b))
    losses = [_loss(task, interpolate(first, second, t)) for t in ALONG]
    heights = [loss - (1 - t) * ends[0].loss - t * ends[1].loss for t, loss in zip(ALONG, losses, strict=True)]
    return max(0.0, *heights), losses[0]


def _aligned(task: Task, pair: ModelPair, ends: tuple[End, End]) -> float | None:
    """Return the barrier of the line after alignment; None where there is nothing to align by."""
    from lmccheck.alignment.api import align

    try:
        alignment = align(pair, METHOD)
    except LmcError:
        return None
    if alignment.is_identity:
        return None
    return _barrier(task, pair.with_weights(pair.theta_a, alignment.weights), ends)[0]


def _told(line: Between, better: str, unit: str) -> str:
    then = "" if line.aligned is None else f", {line.aligned:.4g} after {METHOD}"
    return f"{better} to {line.other} rises {line.barrier:.4g} {unit} above its chord{then}"


def _aligning(task: Task, between: Sequence[Between]) -> list[str]:
    helps = [line for line in between if line.aligned is not None and line.aligned < line.barrier / 2]
    if helps and task.merge.align == "none":
        made = task.merge.recipe.declared.linear
        return [f'align = "{METHOD}"' if made else f"aligning {helps[0].other} before it is merged (lmccheck align)"]
    high = [line for line in between if line.barrier > task.reference.loss]
    return ["parents that share more of their training"] if high and not helps else []


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


def _blocks(task: Task, better: str) -> list[tuple[str, float]]:
    """Return what the merge's loss becomes where one block of layers is the better parent's, lowest first."""
    from lmccheck.modules.stored import tied_names

    merged, parent = task.merge.merged.theta, task.merge.parents[better].theta
    tied = tied_names(task.merge.merged.network.module)
    found = []
    for name, tensors in blocks_of(list(merged)).items():
        own = {tied[tensor] for tensor in tensors}
        taken = {tensor: parent[tensor] for tensor in merged if tied[tensor] in own}
        found.append((name, _loss(task, {**merged, **taken})))
    found.sort(key=lambda pair: pair[1])
    return [(name, loss) for name, loss in found if loss < task.merged.loss]


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
