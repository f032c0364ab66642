"""The samples in parts, by class or by a column of the data: what holds on the mean may fail for one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.errors import SourceError, nearest
from lmccheck.shown import one_line

MOST = 10_000  # parts
CLASS = "class"
Made = TypeVar("Made")


@one_line(lambda slices: f"{len(slices.names)} of {slices.by!r}")
@dataclass(frozen=True)
class Slices:
    """Parts of samples: ``names`` in order, ``index`` (n,) int64 says to which each sample belongs."""

    by: str
    names: tuple[str, ...]
    index: Tensor = field(repr=False)

    @property
    def counts(self) -> list[int]:
        """How many samples each part has."""
        return torch.bincount(self.index, minlength=len(self.names)).tolist()

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of (n,) values over each part, float64 (parts,)."""
        sums = torch.zeros(len(self.names), dtype=torch.float64).index_add_(0, self.index, values.double())
        return sums / torch.tensor(self.counts, dtype=torch.float64)

    def each(self, of: Callable[[Tensor], Made]) -> dict[str, Made]:
        """Return ``of(which)`` by name, ``which`` (n,) bool the samples of a part."""
        return {name: of(self.index == k) for k, name in enumerate(self.names)}


def slices(data: Data, by: str) -> Slices:
    """Return the parts of data by ``"class"`` or by the name of a column.

    Raises SourceError where the data have no such column, a sample no value in it, or all are one part.
    """
    values = _values(data, by)
    names = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(names) < 2:
        raise SourceError(
            f"{data.origin}: by = {by!r}: all {data.samples} samples are one part, {names[0]!r}, expected two or more; "
            "mend: leave `by` out"
        )
    if len(names) > MOST:
        raise SourceError(f"{data.origin}: by = {by!r}: got {len(names)} parts, expected at most {MOST}")
    numbers = {name: k for k, name in enumerate(names)}
    return Slices(by, tuple(map(str, names)), torch.tensor([numbers[value] for value in values], dtype=torch.int64))


def _values(data: Data, by: str) -> list[str | int | float | bool]:
    if by in data.columns:
        values = list(data.columns[by])
        if None in values:
            place = data.places[values.index(None)] if data.places else f"sample {values.index(None)}"
            raise SourceError(f"{place}: no {by!r}, by which samples are told apart; mend: give each row one")
        return values
    known = (*data.columns, *([CLASS] if CLASS not in data.columns else []))
    if by != CLASS:
        raise SourceError(
            f"{data.origin}: by = {by!r}: no such column{nearest(by, known)}; expected one of {', '.join(known)}"
        )
    targets = [batch.targets for batch in data.batches]
    if any(each.ndim != 1 or each.is_floating_point() or each.is_complex() for each in targets):
        shape = tuple(targets[0].shape)
        raise SourceError(
            f"{data.origin}: by = 'class': targets of shape {shape} are no classes of samples, expected (n,) integers; "
            f"mend: by a column ({', '.join(data.columns) or 'there is none'})"
        )
    return [int(target) for each in targets for target in each.tolist()]
