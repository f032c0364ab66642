"""Why a merge is too bad, as plain data and in three lines: which layers, which units, which samples, which parent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmccheck.diagnose.samples import hurt, hurt_most, sample_facts

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.data.load import Data


@dataclass(frozen=True)
class Lost:
    """What a network loses sample by sample: ``heights``, (n,), make up the value; ``worse_than``, (n,) by parent.

    ``which``, (n,) bool: the samples that are judged, None for all of ``data``.
    """

    data: Data
    heights: Tensor = field(repr=False)
    worse_than: Mapping[str, Tensor] = field(repr=False)
    which: Tensor | None = field(default=None, repr=False)


def explanation(lost: Lost) -> dict[str, Any]:
    """Return what carries a value; JSON-able."""
    hurts = hurt(lost.worse_than, lost.which)
    return {
        "groups": [],
        "minimal_layers": [],
        "evaluations": 1,
        "samples": sample_facts(lost.heights, lost.data, lost.which),
        "parent": hurt_most(hurts),
        "hurt": hurts,
        "budget": "",
    }
