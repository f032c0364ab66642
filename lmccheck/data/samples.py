"""Samples by their content: which of one data set occur in another, in whatever order and batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import input_tensors

GLANCE = 64  # numbers of a sample, spread over it, of which most samples that differ differ in one
AT_ONCE = 1 << 22  # numbers that are hashed together
ODD = (-7046029254386353131, -4417276706812531889)  # two of xxHash's primes, as signed numbers


def common_samples(data: Data, other: Data) -> int:
    """Return how many samples of ``data`` have the very inputs of a sample of ``other``.

    Numbers are compared as whole ones, or in the narrower of the two dtypes, so that one sample stored in two
    precisions is the same, and in their order, whatever their shape. Few numbers of each sample are looked at first,
    and all of them only where those agree.
    """
    if data is other:
        return data.samples
    narrow = _narrower(data, other)
    mine, theirs = _hashes(data, narrow, GLANCE), _hashes(other, narrow, GLANCE)
    alike, seen = torch.isin(mine, theirs), torch.isin(theirs, mine)
    if not alike.any():
        return 0
    return int(torch.isin(_hashes(_some(data, alike), narrow), _hashes(_some(other, seen), narrow)).sum())


def distinct_samples(data: Data) -> int:
    """Return how many samples have inputs and targets that no sample before them has.

    Inputs are compared as by ``common_samples``. One answer to an input is not another: a table of few columns, or a
    prompt with several completions, repeats inputs and is no copy.
    """
    narrow = _narrower(data, data)
    seen = len(set(_hashes(data, narrow, GLANCE).tolist()))
    if seen == data.samples:
        return seen
    targets = torch.cat([_of_tensor(batch.targets, torch.float32, None) for batch in data.batches])
    return len(set(_mixed(_hashes(data, narrow) * ODD[0] + targets).tolist()))


def _narrower(data: Data, other: Data) -> list[torch.dtype]:
    """Return, for the inputs in their order, the narrower float dtype of two data sets; float32 at most."""
    kinds = [[tensor.dtype for tensor in input_tensors(held.batches[0].inputs)] for held in (data, other)]
    real = [[torch.float32 if not kind.is_floating_point else kind for kind in several] for several in kinds]
    return [min(torch.float32, *pair, key=lambda kind: torch.finfo(kind).bits) for pair in zip(*real, strict=False)]


def _some(data: Data, which: Tensor) -> Data:
    """Return the samples that ``which``, (n,) bool, is true of."""
    parts = which.split([batch.samples for batch in data.batches])  # type: ignore[no-untyped-call]  # torch leaves it without types
    return data.only(parts)


def _hashes(data: Data, narrow: Sequence[torch.dtype], most: int | None = None) -> Tensor:
    """Return one number for each sample, (n,) int64, made of all its inputs, or of ``most`` numbers of each."""
    return torch.cat([_of_batch(batch, narrow, most) for batch in data.batches])


def _of_batch(batch: Batch, narrow: Sequence[torch.dtype], most: int | None) -> Tensor:
    found = torch.zeros(batch.samples, dtype=torch.int64)
    for tensor, kind in zip_longest(input_tensors(batch.inputs), narrow, fillvalue=torch.float32):
        if (
            isinstance(tensor, Tensor)
            and isinstance(kind, torch.dtype)
            and tensor.ndim
            and len(tensor) == batch.samples
        ):
            found = _mixed(found * ODD[0] + _of_tensor(tensor, kind, most))
    return found


def _of_tensor(tensor: Tensor, kind: torch.dtype, most: int | None) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    rows = real.detach().reshape(len(tensor), -1)
    width = rows.shape[1]
    places = torch.linspace(0, width - 1, most).long() if most is not None and width > most else None
    count, generator = width if places is None else len(places), torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (count,), generator=generator, dtype=torch.int64) * 2 + 1
    parts = []
    for start in range(0, len(rows), max(1, AT_ONCE // max(1, width))):
        part = rows[start : start + max(1, AT_ONCE // max(1, width))].cpu()
        words = _words(part if places is None else part[:, places], kind)
        parts.append((_mixed(words) * factors).sum(1))
    return torch.cat([*parts, torch.zeros(0, dtype=torch.int64)])


def _words(rows: Tensor, kind: torch.dtype) -> Tensor:
    """Return numbers as whole ones, equal where they are: the bits of float32, rounded to ``kind``, or int64."""
    if rows.is_floating_point():
        return (rows.to(kind).float() + 0.0).contiguous().view(torch.int32).long()  # -0.0 is 0.0
    return rows.long()


def _mixed(words: Tensor) -> Tensor:
    """Spread what differs over all bits."""
    words = words * ODD[1]
    return words ^ (words >> 32)
