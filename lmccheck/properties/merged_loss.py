"""The loss of a merge: is it no worse than what it was made of, on the data that matter?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Tasks
from lmccheck.explain import number
from lmccheck.finding import End, Failure, Finding, Seen, Where
from lmccheck.properties.early import Early
from lmccheck.properties.early_merge import require_means, settled_merge
from lmccheck.properties.merge_compared import compared
from lmccheck.properties.merge_tasks import (
    Asked,
    Parents,
    Part,
    Task,
    bound_above,
    count_sets,
    measure_merge,
    measure_parents,
    seen_by_recipe,
)
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import measured_on, precision_of
from lmccheck.properties.settings import Against, By, EarlyFail, MergeData, MergeLimit, Metric, Seed
from lmccheck.shown import some

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge
    from lmccheck.properties.merge_diagnosis import Diagnosis

UNEXPLAINED = (
    "explain: nothing is told of layers and samples, where the metric has documents of its own or the merge tensors of "
    "other shapes than its better parent"
)


@check(
    of="merge",
    claim="m(M(θ_1, …, θ_n)) − m(θ_ref) ≤ limit for a metric m, the merge as the recipe makes it",
    quantifier="for the merge, on every data set named and every part of it",
    certifies="the merge's own loss (or metric) on this data, beside that of its parents",
)
def merged_loss(
    merge: Merge,
    *,
    data: MergeData = None,
    against: Against | None = None,
    metric: Metric = "loss",
    by: By | None = None,
    limit: MergeLimit = 0.05,
    explain: bool | None = None,
    early_fail: EarlyFail = False,
    seed: Seed = 0,
) -> Finding:
    """Assert that a merge, as its recipe makes it, is at most ``limit`` worse than what it was made of.

    value = max over data of m(merge) − m(reference), m the ``metric``: ``loss`` (mean per sample), ``token-loss``,
    ``perplexity``, ``error`` or ``accuracy`` (in points), ``"module:callable"`` (model, batches -> per-sample values),
    ``{"lm_eval": "task"}``. ``against``: ``better-parent`` (default), ``worse-parent``, ``mean`` (of the parents), or a
    parent's name. ``data``: by default that of the merge; a name, a list of names, or a table of a name for each
    parent, by which every parent is measured on its own task and is the reference there. ``by``: ``class`` or a column
    of the data: the worst part is judged, against the same parent. ``limit``: in the metric's unit, or ``"2%"`` of the
    reference's. ``explain`` says what carries the difference: by default of failures; true: of passes, too. Nothing is
    re-estimated or aligned beyond what the recipe does: what is measured is what is made. ``early_fail``: an error rate
    (1e-6) at which a fail may be settled on some of the samples, as of ``linear_connectivity``.

    ``details`` hold ``data`` (for each the parents' figures, the merge's, the reference and the difference; ``parts``),
    ``reference``, ``merged``, ``made`` and more; the witness is the Merge. A pass is about this data; a fail about this
    merge. Raises LmcError (CheckpointError, SourceError, SymmetryError) when nothing sound can be said.
    """
    from lmccheck.evaluate.metrics import metric as metric_of

    measured = metric_of(metric, merge.network.base, unit=merge.network.loss.unit)
    if early_fail:
        require_means(measured, merge.network)
    tasks: list[Task] = []
    for known in measure_parents(merge, data, Asked(measured, against or "", by)):
        early = settled_merge(known, limit, early_fail, count_sets(data), seed) if early_fail else None
        if early is not None:
            return _early(early, known, limit, [*tasks, known])
        tasks.append(measure_merge(known))
    worst = max((part for task in tasks for part in task.parts), key=lambda part: part.excess(limit))
    found = _explained(_finding(merge, tasks, worst, limit), merge, worst, tasks, explain)
    return replace(found, evaluations=sum(task.evaluator.evaluations for task in tasks))


def _finding(merge: Merge, tasks: list[Task], worst: Part, limit: float | str) -> Finding:
    metric = worst.task.asked.metric
    return Finding(
        worst.worse_by,
        limit if worst.reference else worst.bound(limit),
        metric.unit,
        reference=worst.reference,
        endpoints=_ends(worst),
        worst_loss=worst.merged,
        where=_where(worst, tasks),
        curve=Tasks(
            [_row(part, limit, len(tasks) > 1) for task in tasks for part in task.parts],
            metric.name,
            metric.higher_is_better,
        ),
        merge=End("of the merge", worst.merged, worst.task.merged_end.error, worst.task.merged_end.token_loss),
        notes=_notes(tasks, worst, limit),
        alignment=_alignment(merge),
        witness=merge,
        examined=tuple(task.examined for task in sorted(tasks, key=lambda task: task is not worst.task)),
        facts=_facts(merge, worst, tasks),
        known="exact",
        compared=[each for task in tasks for part in task.parts for each in compared(part, limit)],
    )


def _early(early: Early, known: Parents, limit: float | str, looked_at: Sequence[Parents]) -> Finding:
    """Return the finding of a merge that failed early, on the last of the data sets that were looked at."""
    merge, metric = known.merge, known.asked.metric
    gate = early.settled.gate
    name = "" if known.slices is None else known.slices.names[gate]
    which = None if known.slices is None else known.slices.index == gate
    figures = known.figures(which)
    reference = known.reference_of(figures)
    where = [known.label] if len(looked_at) > 1 else []
    found = Finding(
        0.0,
        limit if reference else bound_above(reference, limit),
        metric.unit,
        reference=reference,
        endpoints=tuple(End(e.name, figures[e.name], None if name else e.error) for e in known.ends),
        where=Where(data=", ".join([*where, *([f"{known.asked.by} {name}"] if name else [])]) or None),
        merge=End("of the merge, an estimate,", early.figure),
        notes=list(merge.product.made.notes),
        alignment=_alignment(merge),
        witness=merge,
        examined=tuple(each.examined for each in reversed(looked_at)),
        facts={
            "metric": metric.name,
            "reference": known.reference,
            "merged": {"value": early.figure, "loss": None, "error": None},
            "recipe": merge.recipe.facts(),
            "made": dict(merge.product.made.facts),
            "precision": precision_of(known.evaluator),
        },
        evaluations=sum(each.evaluator.evaluations for each in looked_at),
    )
    data = merge.network.data
    found = early.finding(found, data, "the merge on all samples, other data and parts, what carries the difference")
    subject, what = f"{merge.name}: {merge.recipe.text}", f"the merge is worse than {known.reference}"
    measured = f"{'' if metric.name == 'loss' else metric.name + ' '}{early.figure:.4g} of the merge, an estimate, "
    measured += f"{reference:.4g} of {known.reference}: worse by"
    return replace(found, failure=early.failure(found, subject, what, measured, data))


def _explained(found: Finding, merge: Merge, worst: Part, tasks: list[Task], explain: bool | None) -> Finding:
    """Return the finding with why it fails, or, where that is asked of a pass, with what carries most of it."""
    from lmccheck.properties.merge_diagnosis import diagnose, of_a_pass

    passed = found.judged == "pass"
    why = of_a_pass(worst, explain) if passed else diagnose(worst, found.limit, explain)
    said = [*why.lines] if passed else []
    if explain and why.explanation is None:
        said.append(UNEXPLAINED)
    found = replace(found, notes=[*found.notes, *said], explanation=why.explanation)
    return found.explained(lambda: _failure(merge, worst, tasks, found, why))


def _ends(worst: Part) -> tuple[End, ...]:
    """Return the parents' figures as reports show endpoints; 0-1 errors are those of all the data."""
    whole = worst.which is None
    return tuple(End(e.name, worst.parents[e.name], e.error if whole else None) for e in worst.task.ends)


def _row(part: Part, limit: float | str, several: bool) -> dict[str, Any]:
    """Return a part of the data as a report draws it; ``bound`` is the worst figure that the limit allows."""
    allowed = -part.bound(limit) if part.task.asked.metric.higher_is_better else part.bound(limit)
    return {
        "name": f"{part.task.label}, {part.label}" if several and part.name else part.label,
        "parents": part.parents,
        "merge": part.merged,
        "reference": part.task.reference,
        "reference_value": part.reference,
        "bound": part.reference + allowed,
    }


def _where(worst: Part, tasks: list[Task]) -> Where:
    parts = [worst.task.label] if len(tasks) > 1 else []
    return Where(data=", ".join([*parts, *([worst.label] if worst.name else [])]) or None)


def _facts(merge: Merge, worst: Part, tasks: list[Task]) -> dict[str, Any]:
    end = worst.task.merged_end
    return {
        "metric": worst.task.asked.metric.name,
        "reference": worst.task.reference,
        "merged": {"value": worst.merged, "loss": end.loss, "error": end.error},
        "data": {task.label: task.facts() for task in tasks},
        "recipe": merge.recipe.facts(),
        "made": dict(merge.product.made.facts),
        "precision": precision_of(worst.task.evaluator),
    }


def _alignment(merge: Merge) -> dict[str, Any] | None:
    if merge.align == "none":
        return None
    made = (merge.origin or merge).alignments
    return {"method": merge.align, "parents": {name: found.summary() for name, found in made.items()}}


def _notes(tasks: list[Task], worst: Part, limit: float | str) -> list[str]:
    """Say what became of BatchNorm, which part is judged, and which data the recipe looked at before."""
    from lmccheck.properties.publication import note_of_one

    notes = [*note_of_one(tasks[0].merge), *tasks[0].merge.product.made.notes]
    if worst.task.slices is not None:
        parts = worst.task.slices
        notes.append(
            f"the worst of {sum(len(task.parts) for task in tasks)} parts by {parts.by!r} is judged, "
            f"{worst.label} ({parts.counts[parts.names.index(worst.name)]} samples); on all of {worst.task.label} the "
            f"merge is {number(Part(worst.task).worse_by)} {worst.task.asked.metric.unit} worse"
        )
    for task in tasks:
        on, whole = f"on {task.label}: " if len(tasks) > 1 else "", Part(task)
        if whole.reestimated is not None:
            notes.append(
                f"{on}the merge is measured as it is made, {whole.merged:.4g} {task.asked.metric.unit}; with BatchNorm "
                f"re-estimated on {_samples(task)} calibration samples it has {whole.reestimated:.4g}, "
                f"{'within' if whole.within(whole.reestimated, limit) else 'above'} the limit"
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


def _failure(merge: Merge, worst: Part, tasks: list[Task], found: Finding, why: Diagnosis) -> Failure:
    task = worst.task
    metric = task.asked.metric
    better = [name for name, value in worst.parents.items() if metric.worse_by(worst.merged, value) > 0]
    beaten = f"worse than {task.reference}"
    if len(better) == len(worst.parents) > 1:
        beaten += ", and than every parent" if len(better) > 2 else ", and than both parents"
    named = "" if metric.name == "loss" else f"{metric.name} "
    on = f"{worst.label} of {measured_on(task.merge.network.data)}" if worst.name else None
    return Failure(
        f"{merge.name}: {merge.recipe.text}",
        f"the merge is {beaten}",
        f"{named}{worst.merged:.4g} of the merge, {worst.reference:.4g} of {task.reference}: worse by",
        f"the merge of {some(merge.parents)}",
        on or measured_on(task.merge.network.data),
        [Seen(part.worse_by, f"on {part.label}", part.bound(found.limit)) for each in tasks for part in each.parts],
        "parts of the data" if task.slices is not None else "data sets",
        next=why.next,
        diagnosis=why.lines,
    )
