"""Laws of merging: what a recipe claims holds on the parents themselves, and on small networks that are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmccheck.finding import Finding, Where
from lmccheck.properties.registry import check
from lmccheck.properties.settings import DecideFiles, Examples, Profile, Seed

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge
    from lmccheck.properties.lawful import Tried


@check(
    of="merge",
    claim="M({x: 1}) = x, M(π·base; π·θ) = π·M(base; θ) and the other laws that the recipe claims",
    quantifier="on the parents, and on small networks drawn",
    certifies="that no law that the recipe claims was seen broken",
)
def merge_laws(
    merge: Merge, *, examples: Examples = 20, seed: Seed = 0, profile: Profile = "ci", decide: DecideFiles = "data"
) -> Finding:
    """Assert that a merge keeps the laws that its recipe claims, and those of every merge.

    Of every recipe: names, shapes and dtypes are those promised; tied tensors stay tied; integers and constant buffers
    are those of the parents; the same seed gives the same bytes; the merge is not the base, nor one of several parents,
    bit for bit. Claimed by some: M({x: 1}) = x; equal parents give that parent; order and scale of weights do not
    matter; units that are permuted in all parents and the base are permuted in the merge; M = Σ w·θ. Equality is to the
    rounding of the dtype. What a recipe does not claim is listed, and never fails.

    value: how many laws are broken. Each is tried on the parents and on ``examples`` small networks, on which a broken
    law shrinks to a smallest example. ``details`` hold ``laws`` (by name: holds, broken or not claimed), ``broken`` and
    ``drawn``. Raises LmcError where the recipe cannot be run.
    Source: Wortsman et al. 2022 (soups), Ilharco et al. 2023 (task arithmetic).
    """
    from lmccheck.properties.lawful import tried_laws

    examples = {"dev": min(examples, 5), "thorough": 5 * examples}.get(profile, examples)
    tried = tried_laws(merge, examples=examples, seed=seed)
    return Finding(
        float(len(tried.broken)),
        0.0,
        "broken laws",
        where=Where(layer=next((one.tensor for one in tried.broken.values() if one.tensor), None)),
        notes=tried.notes,
        failure=_failure(merge, tried) if tried.broken else None,
        witness=merge,
        facts={**tried.facts(), "recipe": merge.recipe.facts()},
        of_losses=False,
        known="on the parents and on networks drawn",
    )


def _failure(merge: Merge, tried: Tried) -> list[str]:
    lines: list[Any] = [f"{merge.name}: {merge.recipe.text} breaks {len(tried.broken)} of {len(tried.laws)} laws"]
    for law, one in tried.broken.items():
        lines.append(f"{one.words}, {tried.where[law]}")
        if law in tried.examples:
            lines.append(f"smallest example of {law}: {tried.examples[law]}")
    return [*lines, f"losses do not count here; not claimed by the recipe: {', '.join(tried.unclaimed) or 'nothing'}"]
