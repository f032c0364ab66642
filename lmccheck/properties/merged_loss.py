"""The loss of a merge: is it no worse than what it was made of, on the data that matter?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.finding import Failure, Finding, Seen, Where
from lmccheck.properties.merge_tasks import Task, measure_tasks, seen_by_recipe
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import measured_on, precision_of
from lmccheck.properties.settings import Against, Limit, MergeData
from lmccheck.shown import some

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge


@check(
    of="merge",
    claim="L(M(θ_1, …, θ_n)) − L(θ_ref) ≤ limit, the merge as the recipe makes it",
    quantifier="for the merge, on every data set named",
    certifies="the merge's own loss on this data, beside that of its parents",
)
def merged_loss(
    merge: Merge, *, data: MergeData = None, against: Against | None = None, limit: Limit = 0.05
) -> Finding:
    """Assert that a merge, as its recipe makes it, is at most ``limit`` worse than what it was made of.

    value = max over data of L(merge) − L(reference), each the mean loss on that data. ``against``: ``better-parent``
    (default; the parent of lowest loss), ``worse-parent``, ``mean`` (of the parents' losses), or a parent's name.
    ``data``: by default that of the merge; a name, a list of names, or a table of a name for each parent, by which
    every parent is measured on its own task and is the reference there. ``limit``: in the loss's unit, or ``"2%"`` of
    the reference's. Nothing is re-estimated or aligned beyond what the recipe does: what is measured is what is made.

    ``details`` hold ``data`` (for each the parents' losses, the merge's, the reference and the difference),
    ``reference``, ``merged`` and more. A pass is about this data; a fail about this merge.
    Raises LmcError (CheckpointError, SourceError, SymmetryError) when nothing sound can be said.
    """
    tasks = measure_tasks(merge, data, against)
    worst = max(tasks, key=lambda task: task.excess(limit))
    found = Finding(
        worst.value,
        limit,
        merge.network.loss.unit,
        reference=worst.reference.loss,
        endpoints=worst.parents,
        worst_loss=worst.merged.loss,
        where=Where(data=worst.label) if len(tasks) > 1 else Where(),
        merge=worst.merged,
        notes=_notes(tasks, limit),
        alignment=_alignment(merge),
        witness=merge,
        examined=tuple(task.examined for task in (worst, *(task for task in tasks if task is not worst))),
        facts=_facts(merge, worst, tasks),
    )
    explained = found.explained(lambda: _failure(merge, worst, tasks, found))
    return replace(explained, evaluations=sum(task.evaluator.evaluations for task in tasks))


def _facts(merge: Merge, worst: Task, tasks: list[Task]) -> dict[str, Any]:
    return {
        "reference": worst.reference.name,
        "merged": {"loss": worst.merged.loss, "error": worst.merged.error},
        "data": {task.label: task.facts() for task in tasks},
        "recipe": merge.recipe.facts(),
        "made": dict(merge.product.made.facts),
        "precision": precision_of(worst.evaluator),
    }


def _alignment(merge: Merge) -> dict[str, Any] | None:
    if merge.align == "none":
        return None
    made = (merge.origin or merge).alignments
    return {"method": merge.align, "parents": {name: found.summary() for name, found in made.items()}}


def _notes(tasks: list[Task], limit: float | str) -> list[str]:
    """Say what became of BatchNorm, and which data the recipe looked at before."""
    notes = list(tasks[0].merge.product.made.notes)
    for task in tasks:
        on = f"on {task.label}: " if len(tasks) > 1 else ""
        if task.reestimated is not None:
            within = task.reestimated.loss - task.reference.loss <= task.bound(limit)
            notes.append(
                f"{on}the merge is measured as it is made, loss {task.merged.loss:.4g}; with BatchNorm re-estimated on "
                f"{_samples(task)} calibration samples it has {task.reestimated.loss:.4g}, "
                f"{'within' if within else 'above'} the limit (do so before it is published)"
            )
        elif task.evaluator.batchnorms:
            notes.append(
                f"{on}{task.evaluator.batchnorms} BatchNorm layer(s) have the statistics that the recipe made; give "
                "calibration data to see what re-estimating them does"
            )
        for name, samples, common in seen_by_recipe(task.merge):
            if common:
                notes.append(f"{on}{common} samples are among the {samples} of {name}, by which the recipe chose")
    return notes


def _samples(task: Task) -> int:
    data = task.merge.network.calibration
    return 0 if data is None else data.samples


def _failure(merge: Merge, worst: Task, tasks: list[Task], found: Finding) -> Failure:
    from lmccheck.properties.merge_diagnosis import diagnose

    why = diagnose(worst, found.limit)
    better = [end.name for end in worst.parents if end.loss < worst.merged.loss]
    beaten = f"worse than {worst.reference.name}"
    if len(better) == len(worst.parents) > 1:
        beaten += ", and than every parent" if len(better) > 2 else ", and than both parents"
    return Failure(
        f"{merge.name}: {merge.recipe.text}",
        f"the merge is {beaten}",
        f"{worst.merged.loss:.4g} of the merge, {worst.reference.loss:.4g} of {worst.reference.name}: worse by",
        f"the merge of {some(merge.parents)}",
        measured_on(worst.merge.network.data),
        [Seen(task.value, f"on {task.label}", task.bound(found.limit)) for task in tasks],
        "data sets",
        next=why.next,
        diagnosis=why.lines,
    )
