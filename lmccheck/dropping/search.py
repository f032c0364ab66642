"""Finding θ_i: which units to keep, with which weights, so that the losses stay those of θ.

Definition 1 of Kuditipudi et al. (2019) asks only that some subset exists; every candidate is one more try.
All of it looks at calibration data alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmccheck.dropping.candidates import Candidates
from lmccheck.dropping.choose_units import SearchSettings
from lmccheck.dropping.dropped import Dropped
from lmccheck.errors import LmcError
from lmccheck.modules.memory import give_back
from lmccheck.network.endpoint import Endpoint
from lmccheck.symmetry.structure import Structure


@dataclass(frozen=True)
class Search:
    """What was found for every level: the ``best`` of all candidates and of those without refit, ``plain``."""

    best: dict[int, Dropped]
    plain: dict[int, Dropped]
    facts: dict[str, Any] = field(repr=False)


def find_dropped(end: Endpoint, structure: Structure, levels: Sequence[int], settings: SearchSettings) -> Search:
    """Return, per level, the network nearest to θ in its losses that reads ⌊keep·h⌋ units of each group.

    Candidates are compared by mean |ℓ_i − ℓ|, their per-sample losses against those of θ: an upper bound of
    |L(θ_i) − L(θ)| that a network does not lower by being more certain on data θ was trained on.

    ``levels``: from which hidden level on units are dropped; 0 is θ_1 of the paper.

    The result does not depend on which levels are asked for together. ``Dropped.loss`` is the mean on held out
    calibration data. Raises SourceError without calibration data, LmcError for options that make no sense.
    Source: Kuditipudi et al. 2019 (random subsets, scale 1/keep), Nguyen et al. 2021 (refits).
    """
    wrong = [level for level in levels if level not in range(len(structure.levels))]
    if wrong:
        raise LmcError(f"find_dropped: level {wrong[0]}; the network has levels 0 to {len(structure.levels) - 1}")
    known = end.once(_nothing_yet, structure.levels, *settings.key)
    missing = dict.fromkeys(level for level in levels if level not in known)
    if missing:
        candidates = Candidates(end, structure, settings)
        for level in missing:
            known[level] = candidates.search(level)
            give_back()
    facts = {
        "seed": settings.seed,
        "profile": settings.profile,
        "random_subsets": settings.subsets,
        "levels": {level: known[level][2] for level in levels},
    }
    return Search({k: known[k][0] for k in levels}, {k: known[k][1] for k in levels}, facts)


def _nothing_yet(end: Endpoint, *search: object) -> dict[int, tuple[Dropped, Dropped, dict[str, Any]]]:
    """Return what is known, per level, at the beginning of a search with these settings."""
    return {}
