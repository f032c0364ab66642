"""A merge beside the parents that may be its reference, sample by sample: what new data are judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.finding import Compared
from lmccheck.properties.merge_tasks import MEAN, WORSE
from lmccheck.properties.settings import AGAINST

if TYPE_CHECKING:
    from lmccheck.properties.merge_tasks import Part

REACH = {"error": 100.0, "accuracy": 100.0}  # points, by which two answers to one sample can differ


def compared(part: Part, limit: float | str) -> list[Compared]:
    """Return the merge beside its reference on all of the data, or on a part, beside the parent that all data chose.

    Which parent is better is not known of new data: on all of them it has to hold against each parent, and against the
    worse one to hold against any is enough. Values are those whose weighted mean is the figure: of a perplexity those
    of its tangent.
    """
    task, metric = part.task, part.task.asked.metric
    names = tuple(task.scores) if part.which is None and task.against in AGAINST else task.required
    scores = [task.merged, *(task.scores[name] for name in names)]
    merged, *parents = scores if part.which is None else [each.of(part.which) for each in scores]
    if any(len(each.values) != len(merged.values) for each in parents):
        return []  # documents of one are not those of another
    sign = -1 if metric.higher_is_better else 1
    values = [each.linear for each in parents]
    if task.against == MEAN:
        values = [sum(values[1:], start=values[0]) / len(values)]
    together = [values] if task.against == WORSE else [[each] for each in values]
    return [
        Compared(
            f"on {part.label}" if len(together) == 1 else f"on {part.label} beside {name}",
            sign * merged.linear,
            tuple(sign * each for each in several),
            tuple(several),
            weights=merged.weights,
            reach=REACH.get(metric.name),
            limit=limit,
        )
        for name, several in zip(names, together, strict=False)
    ]
