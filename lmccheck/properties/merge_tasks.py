"""What a merge is measured on, and against which parent: each data set with the losses of parents and merge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SourceError, nearest
from lmccheck.finding import End, Examined, bound_of
from lmccheck.properties.remarks import end_of
from lmccheck.properties.settings import AGAINST

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.merging.merge import Merge


@dataclass(frozen=True)
class Task:
    """One data set: the parents and the merge measured on it, and what the merge is compared with there.

    ``required``: the parents that the reference is made of. ``reestimated``: the merge with BatchNorm statistics taken
    afresh from calibration data; None where there is neither BatchNorm nor such data.
    """

    label: str
    merge: Merge
    parents: tuple[End, ...]
    merged: End
    reference: End
    required: tuple[str, ...]
    reestimated: End | None
    evaluator: Evaluator = field(repr=False)

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

    @property
    def examined(self) -> Examined:
        """What the parents were measured on, for what must be said of them."""
        return Examined(self.merge.network, self.parents, self.required, self.label)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        return {
            "parents": {end.name: {"loss": end.loss, "error": end.error} for end in self.parents},
            "merge": {"loss": self.merged.loss, "error": self.merged.error},
            "reference": self.reference.name,
            "reference_loss": self.reference.loss,
            "reestimated_loss": None if self.reestimated is None else self.reestimated.loss,
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
    if isinstance(data, Mapping) and all(isinstance(name, str) and name in merge.parents for name in data):
        return [(f"{_label(name)} ({parent})", merge.on(name), against or parent) for parent, name in data.items()]
    if isinstance(data, Mapping) and all(isinstance(name, str) for name in data.values()) and not _describes(data):
        wrong = next(name for name in data if name not in merge.parents)
        near = nearest(str(wrong), merge.parents)
        raise LmcError(f"data.{wrong}: no such parent{near}; expected one of {', '.join(merge.parents)}")
    several = data if isinstance(data, list) and all(isinstance(name, str) for name in data) else [data]
    return [(_label(name), merge.on(name), common) for name in several]


def _describes(data: Mapping[str, Any]) -> bool:
    """Whether a table says how data are read, ``{"jsonl": …}``, and not whose they are."""
    from lmccheck.store.described import FORMS

    return any(form in data for form in FORMS)


def _label(data: Any) -> str:
    return data if isinstance(data, str) else "data"


def _measured(merge: Merge, label: str, against: str) -> Task:
    from lmccheck.evaluate.evaluator import Evaluator

    merged = merge.merged
    evaluator = Evaluator(merge.network, *(end.theta for end in merge.parents.values()))
    parents = []
    for name, end in merge.parents.items():
        found = evaluator.endpoint(end.theta, f"parent {name}", end.checkpoint.label)
        parents.append(end_of(name, found))
    own = evaluator if merged.network.module is merge.network.module else Evaluator(merged.network, merged.theta)
    of_merge, again = _of_merge(own, merge)
    reference, required = _reference(tuple(parents), against)
    _require_unseen(merge)
    return Task(label, merge, tuple(parents), of_merge, reference, required, again, evaluator)


def _of_merge(evaluator: Evaluator, merge: Merge) -> tuple[End, End | None]:
    """Return the merge as it is, and with BatchNorm statistics taken afresh, where there are any to take."""
    weights = evaluator.weights(merge.merged.theta)
    found = evaluator.measure(weights, reestimate=False, label=f"merge {merge.name}")
    as_made = end_of("of the merge", found)
    if not evaluator.batchnorms or not evaluator.calibration:
        return as_made, None
    found = evaluator.measure(weights, reestimate=True, label=f"merge {merge.name}, BatchNorm re-estimated")
    return as_made, end_of("of the merge, BatchNorm re-estimated", found)


def _reference(parents: tuple[End, ...], against: str) -> tuple[End, tuple[str, ...]]:
    """Return what the merge is compared with, a parent or the mean of them, and the parents that it is made of."""
    if against == "mean":
        errors = [end.error for end in parents if end.error is not None]
        error = math.fsum(errors) / len(errors) if len(errors) == len(parents) else None
        loss = math.fsum(end.loss for end in parents) / len(parents)
        return End("the mean of the parents", loss, error), tuple(end.name for end in parents)
    if against in AGAINST:
        choose = min if against == AGAINST[0] else max
        found = choose(parents, key=lambda end: end.loss)
    else:
        found = next(end for end in parents if end.name == against)
    return found, (found.name,)


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
    from lmccheck.store.samples import common_samples

    for name, data in (merge.origin or merge).chosen_by.items():
        yield name, data.samples, common_samples(merge.network.data, data)
