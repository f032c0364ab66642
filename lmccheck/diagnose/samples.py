"""Which samples carry what a network loses, and which of its parents they were better answered by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.errors import SourceError
from lmccheck.evaluate.slices import CLASS, slices

SHOWN = 100  # indices that are told, of those that lose most first
CLEARLY = 1.1  # times as much as the other: a parent that is hurt more


def carriers(heights: Tensor) -> Tensor:
    """Return the fewest samples whose heights make up half of the sum of all, highest first: indices, (k,) int64.

    ``heights``, (n,) float64: by how much each sample is worse. What is no number, or infinite, carries all of it; of a
    sum that is not above 0 there is no half, and nothing is returned.
    """
    broken = (~heights.isfinite()).nonzero().flatten()
    if len(broken):
        return broken
    total = float(heights.sum())
    if not total > 0:
        return torch.empty(0, dtype=torch.int64)
    order = heights.argsort(descending=True, stable=True)
    reached = heights[order].cumsum(0) >= total / 2
    return order[: int(reached.int().argmax()) + 1]


def sample_facts(heights: Tensor, data: Data, which: Tensor | None = None) -> dict[str, Any]:
    """Return which samples carry half of what is lost; JSON-able.

    ``heights``, (n,): by how much each sample of ``data`` is worse; ``which``, (n,) bool: the samples that are judged.
    ``half``: how many carry half, ``of`` so many, the ``share`` that is; ``indices``, the worst first, 100 at most;
    ``classes``: how many of them are of each, the most frequent first; empty where samples have no classes; ``places``:
    the rows that the indices are from, where the data know them.
    """
    judged = torch.ones(len(heights), dtype=torch.bool) if which is None else which
    places = judged.nonzero().flatten()
    found = places[carriers(heights[judged])].tolist()
    try:
        parts = slices(data, CLASS)
        classes = Counter(parts.names[k] for k in parts.index[found].tolist()) if found else Counter()
    except SourceError:  # no classes, or one only
        classes = Counter()
    told = {
        "half": len(found),
        "of": len(places),
        "share": len(found) / len(places),
        "indices": found[:SHOWN],
        "indices_left_out": max(0, len(found) - SHOWN),
        "classes": dict(classes.most_common()),
    }
    return {**told, "places": [data.places[k] for k in found[:SHOWN]]} if data.places else told


def hurt(worse_than: Mapping[str, Tensor], which: Tensor | None = None) -> dict[str, float]:
    """Return by parent what is lost, per sample of all, on those that it answers best.

    ``worse_than``, (n,) by parent: by how much the network is worse on each sample than that parent. A sample that
    several answer equally well is nobody's.
    """
    stacked = torch.stack(list(worse_than.values()))  # (parents, n)
    if which is not None:
        stacked = stacked[:, which]
    best = stacked == stacked.amax(0)
    own = best & (best.sum(0) == 1)
    sums = torch.where(own, stacked, torch.zeros_like(stacked)).sum(1) / max(1, stacked.shape[1])
    return dict(zip(worse_than, sums.tolist(), strict=True))


def hurt_most(losses: Mapping[str, float]) -> str | None:
    """Return the parent that clearly loses more than every other, None where there is none.

    >>> hurt_most({"a": 0.5, "b": 0.1}), hurt_most({"a": 0.5, "b": 0.49})
    ('a', None)
    """
    first, *others = sorted(losses, key=lambda name: -losses[name])
    if not others or not losses[first] > max(CLEARLY * losses[others[0]], 0.0):
        return None
    return first
