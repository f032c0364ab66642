"""The loss of a merge: is it no worse than what it was made of, on the data that matter?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.finding import Failure, Finding, Seen, Where
from lmccheck.properties.merge_tasks import Task, measure_tasks
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import measured_on
from lmccheck.properties.settings import Against, Limit, MergeData

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
        witness=merge,
        evaluations=sum(task.evaluations for task in tasks),
        facts={
            "reference": worst.reference.name,
            "merged": {"loss": worst.merged.loss, "error": worst.merged.error},
            "data": {task.label: task.facts() for task in tasks},
            "recipe": merge.recipe.facts(),
            "made": dict(merge.product.made.facts),
        },
    )
    return found.explained(lambda: _failure(merge, worst, tasks, found))


def _failure(merge: Merge, worst: Task, tasks: list[Task], found: Finding) -> Failure:
    return Failure(
        f"{merge.name}: {merge.recipe.text}",
        f"the merge is worse than {worst.reference.name}",
        f"merge {worst.merged.loss:.4g}, {worst.reference.name} {worst.reference.loss:.4g}; worse by",
        f"the merge of {', '.join(merge.parents)}",
        measured_on(worst.merge.network.data),
        [Seen(task.value, f"on {task.label}", task.bound(found.limit)) for task in tasks],
        "data sets",
    )
