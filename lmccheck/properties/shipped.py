"""What is published is what was measured: the shipped file compared with the merge, tensor by tensor, and loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.errors import CheckpointError
from lmccheck.finding import End, Finding, Where
from lmccheck.properties.registry import check
from lmccheck.properties.settings import DecideFiles, Tolerance

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge
    from lmccheck.properties.publication import Publication


WRITTEN = (
    "--lmc-aligned-dir=DIR with the merge's other checks, this one left out: what the recipe makes is written there, "
    "to be shipped"
)


@check(
    of="merge",
    claim="shipped = M(θ_1, …, θ_n), tensor by tensor",
    quantifier="for every tensor",
    certifies="the published files hold what the recipe makes, load by their own library, and are no parent's",
)
def shipped(merge: Merge, *, tolerance: Tolerance = "bits", decide: DecideFiles = "data") -> Finding:
    """Assert that what is published is the merge that the recipe makes, and none of its parents.

    value = max |shipped − merge| over all tensors; −0 and 0, and kinds of NaN, differ in their bits only. Where that is
    within the tolerance and something else is wrong, it is how many things are: tensors, files, keys of configs.
    ``tolerance``: ``"bits"`` (names, shapes, dtypes and all bits are the same), ``"rounded"`` (the merge, rounded to
    the dtype that is shipped), or the largest difference allowed, a number. The published folder must load by its own
    library, a file into the network; its config and tokenizer must be the merge's. It must not be a parent or the base,
    bit for bit, unless the recipe takes that one alone.

    Where it differs, it is measured itself, as it is: ``details`` hold ``losses`` (of the parents, the merge and
    what is shipped), ``differing`` tensors, ``worst``, ``missing``, ``unknown``, ``shapes``, ``dtypes``, ``equals`` and
    ``explanations``: another recipe that gives what is shipped, and what happened to tensors.
    Raises LmcError where the merge has nothing that is shipped, or cannot be made.
    """
    from lmccheck.properties.publication import published
    from lmccheck.properties.remarks import origin_remarks

    if merge.shipped is None:
        raise CheckpointError(
            f'merge {merge.name}: nothing is shipped, expected what will be published; mend: shipped = "out/", the '
            "folder or the file"
        )
    found = published(merge, merge.shipped)
    lines = found.problems(tolerance)
    worst = found.worst
    value = 0.0 if found.as_rounded(tolerance) else found.comparison.largest
    limit, unit = (0.0 if isinstance(tolerance, str) else float(tolerance)), ""
    if lines and value <= limit:  # what is wrong is no number of a tensor
        value, limit, unit = float(found.count(tolerance)), 0.0, "differences"
    return Finding(
        value,
        limit,
        unit,
        endpoints=tuple(End(name, loss) for name, loss in found.losses.items() if name in merge.parents),
        verdict="fail" if lines else "pass",
        where=Where(tensor=worst.name) if worst else Where(),
        notes=[*([] if lines else found.notes(tolerance)), *found.accepted, *origin_remarks(merge)],
        failure=_failure(merge, found, lines) if lines else None,
        advice=[WRITTEN] if lines else (),
        witness=merge,
        evaluations=len(found.losses),
        facts={
            **found.facts(),
            **({"worst_layer": worst.name} if worst else {}),
            "tolerance": tolerance,
            "recipe": merge.recipe.facts(),
        },
        of_losses=False,
        known="exact",
    )


def _failure(merge: Merge, found: Publication, lines: list[str]) -> list[str]:
    """Return what is wrong, the first of it as the headline, what explains it, and what it costs."""
    first, *others = lines
    losses = ", ".join(f"{name} {loss:.4g}" for name, loss in found.losses.items())
    told = [f"losses in {merge.network.loss.unit}, each as it is: {losses}"] if losses else []
    return [f"{merge.name}: {found.label} {first}", *others, *found.explanations, *told, *found.mends]
