"""Samples in batches: of near-equal size where lmccheck may choose, as they came where the user did."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from lmccheck.store.data import Batch, Data

ELEMENTS = 2**21  # numbers of input per batch that lmccheck chooses itself: 8 MB in float32
MOST_SAMPLES = 4096


def rebatched(data: Data, most: int | None = None) -> tuple[Batch, ...]:
    """Return batches of near-equal size: at most 4096 samples and about two million input numbers each.

    Data that came in batches of its own is returned as it came.
    """
    if not data.rebatch:
        return data.batches
    whole = data.batches[0]
    tensors = [v for v in _flat(whole.inputs) if isinstance(v, Tensor)]
    per_sample = max(1, sum(t[0].numel() for t in tensors))
    limit = min(MOST_SAMPLES, max(1, ELEMENTS // per_sample), most or MOST_SAMPLES)
    count = -(-whole.samples // limit)
    if count == 1:
        return data.batches
    edges = [round(k * whole.samples / count) for k in range(count + 1)]
    return tuple(Batch(cut(whole.inputs, start, stop), whole.targets[start:stop]) for start, stop in pairwise(edges))


def _flat(inputs: Any) -> list[Any]:
    if isinstance(inputs, dict):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]


def cut(inputs: Any, start: int, stop: int) -> Any:
    """Return samples ``start`` to ``stop`` of a batch's inputs."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    if isinstance(inputs, dict):
        return {key: cut(value, start, stop) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(cut(value, start, stop) for value in inputs)
    return inputs


def first_samples(data: Data, samples: int) -> Data:
    """Return at most ``samples`` samples; batches of a user's own as they came."""
    if not data.rebatch or data.samples <= samples:
        return data
    whole = data.batches[0]
    return Data((Batch(cut(whole.inputs, 0, samples), whole.targets[:samples]),), data.origin, True)
