"""θ_i: a network in which the levels from i on read only some of their units (Definition 1, Kuditipudi et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmccheck.shown import one_line, some
from lmccheck.symmetry.structure import State


@one_line(lambda one: f"level {one.level}, {some(f'{len(k)} of {g}' for g, k in one.keep.items())} kept, {one.how}")
@dataclass(frozen=True)
class Dropped:
    """A network with units dropped from ``level`` on (0: from the first hidden level on, θ_1 of the paper).

    ``keep``: per group of these levels the kept units, sorted int64. ``weights``: a canonical float64 state in which
    the outgoing weights of all other units of these levels are zero; rows of the levels up to and including ``level``
    are those of θ where levels are single groups; all else, the head included, may have been refitted. ``loss``: on
    calibration data. ``how``: the candidate of the search that it is.
    """

    level: int
    keep: Mapping[str, Tensor]
    weights: State = field(repr=False)
    loss: float
    how: str
    refitted: bool
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
