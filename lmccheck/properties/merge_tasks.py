"""What a merge is measured on, and against which parent: each data set with the losses of parents and merge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, nearest
from lmccheck.finding import End, bound_of
from lmccheck.properties.remarks import end_of
from lmccheck.properties.settings import AGAINST

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge


@dataclass(frozen=True)
class Task:
    """One data set: the parents and the merge measured on it, and what the merge is compared with there."""

    label: str
    merge: Merge
    parents: tuple[End, ...]
    merged: End
    reference: End
    evaluations: int

    @property
    def value(self) -> float:
        """By how much the merge is worse than the reference; infinite where it has no loss."""
        worse = self.merged.loss - self.reference.loss
        return worse if not math.isnan(worse) else math.inf

    def bound(self, limit: float | str) -> float:
        """The limit here, in the loss's unit."""
        return bound_of(limit, self.reference.loss)

    def excess(self, limit: float | str) -> float:
        """By how much the value exceeds the limit."""
        return self.value - self.bound(limit)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        return {
            "parents": {end.name: {"loss": end.loss, "error": end.error} for end in self.parents},
            "merge": {"loss": self.merged.loss, "error": self.merged.error},
            "reference": self.reference.name,
            "reference_loss": self.reference.loss,
            "worse_by": self.value,
            "samples": self.merge.network.data.samples,
        }


def measure_tasks(merge: Merge, data: Any, against: str | None) -> list[Task]:
    """Measure parents and merge on each data set. Raises LmcError for what names no parent or no data."""
    return [_measured(measured, label, reference) for label, measured, reference in _asked(merge, data, against)]


def _asked(merge: Merge, data: Any, against: str | None) -> list[tuple[str, Merge, str]]:
    """Return every data set with its label, the merge on it, and what the merge is compared with there."""
    common = against or AGAINST[0]
    if common not in (*AGAINST, *merge.parents):
        near = nearest(common, (*merge.parents, *AGAINST))
        raise LmcError(
            f"against = {common!r}: no such parent{near}; expected one of {', '.join((*AGAINST, *merge.parents))}"
        )
    if data is None:
        return [(merge.network.data.origin, merge, common)]
    if isinstance(data, Mapping):
        for parent in data:
            if parent not in merge.parents:
                near = nearest(str(parent), merge.parents)
                raise LmcError(f"data.{parent}: no such parent{near}; expected one of {', '.join(merge.parents)}")
        return [(f"{name} ({parent})", merge.on(name), against or parent) for parent, name in data.items()]
    several = data if isinstance(data, Sequence) and not isinstance(data, (str, tuple)) else [data]
    return [(name if isinstance(name, str) else "data", merge.on(name), common) for name in several]


def _measured(merge: Merge, label: str, against: str) -> Task:
    from lmccheck.evaluate.evaluator import Evaluator

    merged = merge.merged
    thetas = [end.theta for end in merge.parents.values()]
    evaluator = Evaluator(merge.network, *thetas, merged.theta)
    parents = []
    for name, end in merge.parents.items():
        found = evaluator.endpoint(end.theta, f"parent {name}", end.checkpoint.label)
        parents.append(end_of(name, found))
    of_merge = evaluator.measure(evaluator.weights(merged.theta), reestimate=False, label=f"merge {merge.name}")
    return Task(
        label,
        merge,
        tuple(parents),
        end_of("of the merge", of_merge),
        _reference(tuple(parents), against),
        evaluator.evaluations,
    )


def _reference(parents: tuple[End, ...], against: str) -> End:
    """Return what the merge is compared with: a parent, or the mean of them."""
    if against == "mean":
        errors = [end.error for end in parents if end.error is not None]
        error = math.fsum(errors) / len(errors) if len(errors) == len(parents) else None
        return End("the mean of the parents", math.fsum(end.loss for end in parents) / len(parents), error)
    if against in AGAINST:
        choose = min if against == "better-parent" else max
        return choose(parents, key=lambda end: end.loss)
    return next(end for end in parents if end.name == against)
