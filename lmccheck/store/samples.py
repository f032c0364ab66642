"""Samples by their content: which of one data set occur in another, in whatever order and batches."""

from __future__ import annotations

import torch
from torch import Tensor

from lmccheck.store.data import Batch, Data
from lmccheck.store.trees import input_tensors

GLANCE = 64  # numbers of a sample, spread over it, of which most samples that differ differ in one
AT_ONCE = 1 << 22  # numbers that are hashed together
ODD = (-7046029254386353131, -4417276706812531889)  # two of xxHash's primes, as signed numbers


def common_samples(data: Data, other: Data) -> int:
    """Return how many samples of ``data`` have the very inputs of a sample of ``other``.

    Numbers are compared as float32 or as int64, so that one sample stored in two precisions is the same, and in their
    order, whatever their shape. Few numbers of each sample are looked at first, and all of them only where those agree.
    """
    if data is other:
        return data.samples
    mine, theirs = _hashes(data, GLANCE), _hashes(other, GLANCE)
    alike, seen = torch.isin(mine, theirs), torch.isin(theirs, mine)
    if not alike.any():
        return 0
    return int(torch.isin(_hashes(_some(data, alike)), _hashes(_some(other, seen))).sum())


def _some(data: Data, which: Tensor) -> Data:
    """Return the samples that ``which``, (n,) bool, is true of."""
    parts = which.split([batch.samples for batch in data.batches])  # type: ignore[no-untyped-call]  # torch leaves it without types
    return data.only(parts)


def _hashes(data: Data, most: int | None = None) -> Tensor:
    """Return one number for each sample, (n,) int64, made of all its inputs, or of ``most`` numbers of each."""
    return torch.cat([_of_batch(batch, most) for batch in data.batches])


def _of_batch(batch: Batch, most: int | None) -> Tensor:
    found = torch.zeros(batch.samples, dtype=torch.int64)
    for tensor in input_tensors(batch.inputs):
        if tensor.ndim and len(tensor) == batch.samples:
            found = _mixed(found * ODD[0] + _of_tensor(tensor, most))
    return found


def _of_tensor(tensor: Tensor, most: int | None) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    rows = real.detach().reshape(len(tensor), -1)
    width = rows.shape[1]
    places = torch.linspace(0, width - 1, most).long() if most is not None and width > most else None
    factors = _factors(width if places is None else len(places))
    parts = []
    for start in range(0, len(rows), max(1, AT_ONCE // max(1, width))):
        part = rows[start : start + max(1, AT_ONCE // max(1, width))].cpu()
        words = _words(part if places is None else part[:, places])
        parts.append((_mixed(words) * factors).sum(1))
    return torch.cat([*parts, torch.zeros(0, dtype=torch.int64)])


def _words(rows: Tensor) -> Tensor:
    """Return numbers as whole ones, equal where they are: the bits of float32, or int64."""
    if rows.is_floating_point():
        return (rows.float() + 0.0).contiguous().view(torch.int32).long()  # -0.0 is 0.0
    return rows.long()


def _mixed(words: Tensor) -> Tensor:
    """Spread what differs over all bits."""
    words = words * ODD[1]
    return words ^ (words >> 32)


def _factors(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (count,), generator=generator, dtype=torch.int64) * 2 + 1
