"""What a merge is measured on, and against which parent: each data set, and its parts where it is told apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SourceError, nearest
from lmccheck.finding import LIMIT_OF_MERGE, End, Examined, bound_of
from lmccheck.properties.remarks import end_of
from lmccheck.properties.settings import AGAINST, METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.evaluate.metrics import Metric, Scores
    from lmccheck.evaluate.slices import Slices
    from lmccheck.merging.merge import Merge

BETTER, WORSE, MEAN = AGAINST
REFERENCES = {MEAN: "the mean of the parents"}


@dataclass(frozen=True)
class Asked:
    """What every data set is measured with: the metric, what the merge is compared with, and the column of parts."""

    metric: Metric
    against: str
    by: str | None = None


@dataclass(frozen=True)
class Parents:
    """One data set: parents measured on it.

    ``ends`` are their losses, ``scores`` what the metric says of them, by name. ``required``: those that the merge is
    compared with, ``reference`` what they are called, ``against`` by what they were chosen.
    """

    label: str
    merge: Merge
    asked: Asked
    evaluator: Evaluator = field(repr=False)
    ends: tuple[End, ...]
    scores: Mapping[str, Scores]
    required: tuple[str, ...]
    reference: str
    against: str

    @property
    def examined(self) -> Examined:
        """What the parents were measured on, for what must be said of them."""
        return Examined(self.merge.network, self.ends, self.required, self.label)

    @cached_property
    def slices(self) -> Slices | None:
        """The parts of the data; None where they are judged as a whole."""
        from lmccheck.evaluate.slices import slices

        return None if self.asked.by is None else slices(self.merge.network.data, self.asked.by)

    def figures(self, which: Tensor | None = None) -> dict[str, float]:
        """Return the parents' figures of some samples, by default of all."""
        return {name: (each if which is None else each.of(which)).value for name, each in self.scores.items()}

    def reference_of(self, figures: Mapping[str, float]) -> float:
        """Return what the merge is compared with, of the parents' figures."""
        values = [figures[name] for name in self.required]
        return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Task(Parents):
    """One data set: parents and merge measured on it.

    ``merged_end`` is the merge's loss, ``merged`` what the metric says of it. ``reestimated``: its figures with
    BatchNorm statistics taken afresh from calibration data, None where there is nothing to take.
    """

    merged: Scores
    merged_end: End
    reestimated: Scores | None

    @cached_property
    def parts(self) -> list[Part]:
        """What is judged: all of the data, or every part of them."""
        if self.slices is None:
            return [Part(self)]
        return [Part(self, name, self.slices.index == k) for k, name in enumerate(self.slices.names)]

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        whole = Part(self)
        found = {
            "metric": self.asked.metric.name,
            "parents": {
                end.name: {"value": whole.parents[end.name], "loss": end.loss, "error": end.error} for end in self.ends
            },
            "merge": {"value": whole.merged, "loss": self.merged_end.loss, "error": self.merged_end.error},
            "reference": self.reference,
            "reference_value": whole.reference,
            "reestimated": whole.reestimated,
            "worse_by": whole.worse_by,
            "samples": self.merge.network.data.samples,
            "content": self.merge.network.data.content,
        }
        if self.slices is None:
            return found
        counts = self.slices.counts
        parts = {p.name: {**p.facts(), "samples": count} for p, count in zip(self.parts, counts, strict=True)}
        return {**found, "by": self.asked.by, "parts": parts}


@dataclass(frozen=True)
class Part:
    """All samples of a data set, or those of a part of it, in the metric's unit."""

    task: Task
    name: str = ""
    which: Tensor | None = field(default=None, repr=False)

    def of(self, scores: Scores) -> float:
        """Return the figure of these samples."""
        return scores.value if self.which is None else scores.of(self.which).value

    @cached_property
    def parents(self) -> dict[str, float]:
        """The parents' figures."""
        return self.task.figures(self.which)

    @cached_property
    def merged(self) -> float:
        """The merge's figure."""
        return self.of(self.task.merged)

    @property
    def reestimated(self) -> float | None:
        """The merge's with BatchNorm re-estimated."""
        return None if self.task.reestimated is None else self.of(self.task.reestimated)

    @cached_property
    def reference(self) -> float:
        """What the merge is compared with."""
        return self.task.reference_of(self.parents)

    @property
    def worse_by(self) -> float:
        """By how much the merge is worse than the reference; infinite where it has no figure."""
        return self.task.asked.metric.worse_by(self.merged, self.reference)

    def bound(self, limit: float | str) -> float:
        """The limit here."""
        return bound_above(self.reference, limit)

    def within(self, value: float | None, limit: float | str) -> bool:
        """Whether another figure of the merge would do."""
        return value is not None and self.task.asked.metric.worse_by(value, self.reference) <= self.bound(limit)

    def excess(self, limit: float | str) -> float:
        """By how much the value exceeds the limit."""
        return self.worse_by - self.bound(limit)

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return f"{self.task.asked.by} {self.name}" if self.name else self.task.label

    def figure(self, weights: Mapping[str, Tensor]) -> float:
        """Measure other weights here, BatchNorm re-estimated where there is something to do it on."""
        task = self.task
        prepared = task.evaluator.weights(weights)
        again = task.reestimated is not None
        found = task.evaluator.measure(prepared, reestimate=again, label="a diagnosis")
        return self.of(task.asked.metric.scores(task.evaluator, prepared, found))

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        return {"merge": self.merged, "reference": self.reference, "worse_by": self.worse_by}


def bound_above(reference: float, limit: float | str) -> float:
    """Return a limit in the unit of the reference; a share of nothing is nothing."""
    nothing = isinstance(limit, str) and reference == 0
    return 0.0 if nothing else bound_of(limit, reference, LIMIT_OF_MERGE)


def measure_parents(merge: Merge, data: Any, asked: Asked) -> Iterator[Parents]:
    """Measure parents on each data set. Raises LmcError for what names no parent or no data."""
    if asked.by is not None and not asked.metric.on_data:
        raise LmcError(f"by = {asked.by!r}: {asked.metric.name} has documents of its own; mend: leave `by` out")
    return (_parents(measured, label, asked, against) for label, measured, against in _sets(merge, data, asked))


def count_sets(data: Any) -> int:
    """Return on how many data sets a merge is measured."""
    by_parent = isinstance(data, Mapping) and not _describes(data)
    return len(data) if by_parent or _names(data) else 1


def require_reference(merge: Merge, against: str) -> None:
    """Raise LmcError for what is neither a parent nor a rule by which one is chosen."""
    known = (*AGAINST, *merge.parents)
    if against not in known:
        raise LmcError(
            f"against = {against!r}: no such parent{nearest(against, known)}; expected one of {', '.join(known)}"
        )


def _sets(merge: Merge, data: Any, asked: Asked) -> Iterator[tuple[str, Merge, str]]:
    """Yield every data set with its label, the merge on it, and what the merge is compared with there."""
    if asked.against:
        require_reference(merge, asked.against)
    common = asked.against or BETTER
    if data is None:
        yield merge.network.data.origin, merge, common
    elif isinstance(data, Mapping) and not _describes(data):
        if wrong := [name for name in data if name not in merge.parents]:
            near = nearest(str(wrong[0]), merge.parents)
            raise LmcError(f"data.{wrong[0]}: no such parent{near}; expected one of {', '.join(merge.parents)}")
        for parent, name in data.items():
            yield f"{_label(name)} ({parent})", merge.on(name), asked.against or parent
    else:
        for name in data if _names(data) else [data]:
            yield _label(name), merge.on(name), common


def _names(data: Any) -> bool:
    """Whether data are several names of data."""
    return isinstance(data, list) and all(isinstance(name, str) for name in data)


def _describes(data: Mapping[str, Any]) -> bool:
    """Whether a table holds data, or says how they are read, ``{"jsonl": …}``, and not whose they are."""
    from lmccheck.data.described import FORMS

    return any(form in data for form in FORMS) or not all(isinstance(name, str) for name in data.values())


def _label(data: Any) -> str:
    return data if isinstance(data, str) else "data"


def _parents(merge: Merge, label: str, asked: Asked, against: str) -> Parents:
    from lmccheck.evaluate.evaluator import Evaluator

    metric = asked.metric
    evaluator = Evaluator(merge.network, merge.ends[0].theta, dtype=merge.ends.dtype)
    ends, scores = [], {}
    for name, end in merge.parents.items():
        found = evaluator.endpoint(end.theta, f"parent {name}", end.checkpoint.label)
        ends.append(end_of(name, found))
        scores[name] = metric.scores(evaluator, evaluator.weights(end.theta), found)
    required, reference = _reference({name: each.value for name, each in scores.items()}, metric, against)
    return Parents(label, merge, asked, evaluator, tuple(ends), scores, required, reference, against)


def evaluator_of(known: Parents) -> Evaluator:
    """Return what measures the merge: that of the parents, where it is of their shape.

    Raises SourceError where the recipe chose by the data that it is measured on.
    """
    from lmccheck.evaluate.evaluator import Evaluator

    merged, network = known.merge.merged, known.merge.network
    _require_unseen(known.merge)
    return known.evaluator if merged.network.module is network.module else Evaluator(merged.network, merged.theta)


def measure_merge(known: Parents) -> Task:
    """Measure the merge beside its parents."""
    found, of_merge, again = _of_merge(evaluator_of(known), known.merge, known.asked.metric)
    parents = {each.name: getattr(known, each.name) for each in fields(Parents)}
    return Task(**parents, merged=of_merge, merged_end=end_of("of the merge", found), reestimated=again)


def _of_merge(evaluator: Evaluator, merge: Merge, metric: Metric) -> tuple[Measured, Scores, Scores | None]:
    """Return the merge as it is made, and with BatchNorm statistics taken afresh, where there are any to take."""
    weights = evaluator.weights(merge.merged.theta)
    found = evaluator.measure(weights, reestimate=False, label=f"merge {merge.name}")
    as_made = metric.scores(evaluator, weights, found)
    if not evaluator.batchnorms or not evaluator.calibration or metric.name not in METRICS:
        return found, as_made, None
    again = evaluator.measure(weights, reestimate=True, label=f"merge {merge.name}, BatchNorm re-estimated")
    return found, as_made, metric.scores(evaluator, weights, again)


def _reference(values: Mapping[str, float], metric: Metric, against: str) -> tuple[tuple[str, ...], str]:
    """Return the parents that the merge is compared with, and what they are called."""
    if against in REFERENCES:
        return tuple(values), REFERENCES[against]
    if against not in AGAINST:
        return (against,), against
    best_first = sorted(values, key=values.__getitem__, reverse=metric.higher_is_better)
    chosen = best_first[0 if against == BETTER else -1]
    return (chosen,), chosen


def _require_unseen(merge: Merge) -> None:
    """Raise SourceError where the recipe chose by the very data that the merge is measured on."""
    for name, seen, common in seen_by_recipe(merge):
        if common == merge.network.data.samples:
            raise SourceError(
                f"merge {merge.name}: {merge.recipe.name} chose by {name}, and all {common} samples of "
                f"{merge.network.data.origin} are among its {seen}: it fits what it is judged by; mend: give other "
                "validation data"
            )


def seen_by_recipe(merge: Merge) -> Iterator[tuple[str, int, int]]:
    """Yield the data that the recipe looked at: name, samples, and how many of those measured on are among them."""
    from lmccheck.data.samples import common_samples

    for name, data in (merge.origin or merge).chosen_by.items():
        yield name, data.samples, common_samples(merge.network.data, data)
