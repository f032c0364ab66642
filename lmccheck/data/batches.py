"""Samples in batches: of near-equal size where lmccheck may choose, as they came where the user did."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import input_tensors

ELEMENTS = 2**21  # numbers of input per batch that lmccheck chooses itself: 8 MB in float32
MOST_SAMPLES = 4096


def rebatched(data: Data, most: int | None = None) -> tuple[Batch, ...]:
    """Return batches of near-equal size: at most 4096 samples and about two million input numbers each.

    Data that came in batches of its own is returned as it came.
    """
    if not data.rebatch:
        return data.batches
    whole = data.batches[0]
    limit = min(MOST_SAMPLES, max(1, ELEMENTS // numbers(whole)), most or MOST_SAMPLES, data.most or MOST_SAMPLES)
    count = -(-whole.samples // limit)
    return data.batches if count == 1 else in_parts(whole, count, whole.samples)


def numbers(batch: Batch) -> int:
    """Return how many numbers the inputs of one sample hold, at least 1."""
    return max(1, sum(tensor[0].numel() for tensor in input_tensors(batch.inputs) if tensor.ndim))


def targets_each(data: Data) -> int:
    """Return how many numbers are to be predicted for one sample: 1 for a class, as many as tokens for a text."""
    first = data.batches[0]
    return max(1, first.targets.numel() // max(1, first.samples))


def in_parts(whole: Batch, count: int, samples: int) -> tuple[Batch, ...]:
    """Return the first ``samples`` samples of a batch as ``count`` batches of near-equal size."""
    edges = [round(k * samples / count) for k in range(count + 1)]
    return tuple(whole.take(slice(start, stop)) for start, stop in pairwise(edges))


def count_first(data: Data, samples: int | None) -> int:
    """Return how many samples ``first_samples`` returns, all of them for None."""
    return data.samples if samples is None or not data.rebatch else min(samples, data.samples)


def first_samples(data: Data, samples: int) -> Data:
    """Return at most ``samples`` samples; batches of a user's own as they came."""
    if not data.rebatch or data.samples <= samples:
        return data
    columns = {name: values[:samples] for name, values in data.columns.items()}
    batches = (data.batches[0].take(slice(samples)),)
    return replace(data, batches=batches, columns=columns, places=data.places[:samples])
