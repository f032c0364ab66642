"""The best answer that looks at no input: what any network must beat, on the very data that it is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.network.loss import IGNORED, Loss
from lmccheck.network.targets import OF_TOKENS

ENOUGH = 10  # counted targets per class, below which nothing is concluded from the frequencies of this data
MANY = 1_000  # counted targets from which, below that, the frequencies of all others may answer for each
LUCK = 2.0  # standard errors that count as luck
SHARE = 0.1  # of the constant answer's loss, which luck never takes: else nothing rare could be learnt
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
AT_ONCE = 1 << 22  # cells of a table of positions and classes
ROWS = 1 << 16  # samples that are looked at together


@dataclass(frozen=True)
class ConstantAnswer:
    """The constant answer with the lowest loss on some data, weighted as the loss is.

    ``name``: what it is. ``lowest``: the least loss of any constant answer on this data; ``loss``: the same without
    the bias that fitting it to this data has, ``error`` its 0-1 error where there is one. There are ``counted`` targets
    of ``classes`` classes (1 for a regression) in ``samples`` samples; ``luck``: by how much a network that knows
    nothing may be below ``lowest``, for which only samples count: positions of one may all be alike. ``held_out``: the
    loss of answering each target by the frequencies of all others, with which few targets of many classes (tokens) are
    judged; None elsewhere.
    """

    name: str
    loss: float
    error: float | None
    lowest: float
    counted: int
    classes: int
    samples: int
    luck: float
    held_out: float | None = None

    @property
    def perfect(self) -> bool:
        """Whether it makes no mistake: all targets are one, and no network can be better."""
        return self.lowest == 0

    @property
    def needed(self) -> int:
        """How many counted targets it takes to conclude anything."""
        return ENOUGH * self.classes

    @property
    def few(self) -> bool:
        """Whether there are too few counted targets to know how good it is."""
        return self.counted < self.needed and not self.perfect

    @property
    def told(self) -> float:
        """The loss that a network is compared with, for a reader."""
        return self.held_out if self.few and self.held_out is not None else self.loss

    def beaten(self, loss: float, error: float | None) -> bool | None:
        """Whether a network of such a loss and 0-1 error does more than a constant; None where that is not known."""
        if self.perfect:
            return False
        if loss < self.lowest - self.luck:
            return True
        if error is not None and self.error is not None:
            chance = LUCK * sqrt(self.error * (1 - self.error) / self.samples)
            if error < self.error - chance:
                return True
        if self.few:
            return False if self.held_out is not None and loss >= self.held_out else None
        return False

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        return {"loss": self.told, "error": self.error, "counted": self.counted, "classes": self.classes}


def constant_answer(data: Data, loss: Loss) -> ConstantAnswer | None:
    """Return the best constant answer to data that have something counted; None for a loss without a known one.

    For classes the entropy of their counted frequencies p, plus (K − 1)/(2n) for the bias of frequencies that are
    taken from n targets themselves (Miller 1955), weighted as the loss is: every sample alike, and in it every counted
    target. Where samples of one shape are enough for it, every position has frequencies of its own, if that is better:
    a segmentation knows where the sky is without looking. For squared error the variance of every coordinate, their
    mean, times n/(n − 1).
    """
    if loss.name in ("cross_entropy", *OF_TOKENS):
        return _of_classes(data, shifted=loss.name == "next_token")
    return _of_numbers(data) if loss.name == "mse" else None


def _of_classes(data: Data, shifted: bool) -> ConstantAnswer | None:
    weights, counts = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    squares, samples, widths = 0.0, 0, set()
    for targets in _targets(data):
        if targets.is_floating_point() or (shifted and targets.ndim < 2):
            return None  # measuring says what is wrong with them
        rows, which, each = _counted(targets, shifted)
        squares += float((each * which.any(1)).sum())
        samples += int(which.any(1).sum())
        widths.add(rows.shape[1])
        held = rows[which]
        size = max(len(counts), int(held.max()) + 1) if held.numel() else len(counts)
        weights = _padded(weights, size)
        weights += torch.bincount(held, each.unsqueeze(1).expand_as(rows)[which], minlength=size)
        counts = _padded(counts, size) + torch.bincount(held, minlength=size)
    total, counted = float(weights.sum()), int(counts.sum())
    shares = weights[weights > 0] / total
    classes = len(shares)
    lowest = float(-(shares * shares.log()).sum()) if classes > 1 else 0.0
    fits = _Fit("class frequencies", lowest, 1 - float(shares.max()), (classes - 1) * squares / (2 * total**2))
    if classes > 1 and samples >= ENOUGH * classes and len(widths) == 1 and widths != {1}:
        fits = min(fits, _of_positions(data, shifted, weights > 0, squares), key=lambda fit: fit.lowest + fit.bias)
    return ConstantAnswer(
        fits.name,
        fits.lowest + fits.bias,
        fits.error,
        fits.lowest,
        counted,
        classes,
        samples,
        min(LUCK**2 / (2 * samples), SHARE * fits.lowest),
        _held_out(weights / total, counts) if MANY <= counted < ENOUGH * classes else None,
    )


class _Fit(NamedTuple):
    """Frequencies that answer for targets: their loss and error, and by how much fitting them makes it too low."""

    name: str
    lowest: float
    error: float
    bias: float


def _counted(targets: Tensor, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return classes (n, positions), which of them count, and what each of a sample's weighs, (n,)."""
    rows = (targets[:, 1:] if shifted else targets).reshape(len(targets), -1).long()
    which = (rows != IGNORED) & (rows >= 0)
    each = 1.0 / which.sum(1).clamp(min=1).double()
    return rows, which, each


def _of_positions(data: Data, shifted: bool, seen: Tensor, squares: float) -> _Fit:
    """Return the answer of every position by the frequencies of its own, some positions at a time."""
    classes, place = int(seen.sum()), (seen.cumsum(0) - 1).clamp(min=0)
    least = right = free = total = 0.0
    begin, width, step = 0, 1, max(1, AT_ONCE // classes)
    while begin < width:
        table = torch.zeros(0, dtype=torch.float64)
        for targets in _targets(data):
            rows, which, each = _counted(targets, shifted)
            width = rows.shape[1]
            held, here = rows[:, begin : begin + step], which[:, begin : begin + step]
            cells = place[held.clamp(min=0)] + classes * torch.arange(held.shape[1])
            found = torch.bincount(
                cells[here], each.unsqueeze(1).expand_as(held)[here], minlength=classes * held.shape[1]
            )
            table = _padded(table, len(found)) + found
        table = table.reshape(-1, classes)
        sums = table.sum(1, keepdim=True)
        least -= float(torch.special.xlogy(table, table / sums.where(sums > 0, 1.0)).sum())
        right += float(table.max(1).values.sum())
        free += float(((table > 0).sum(1) - 1).clamp(min=0).sum())
        total += float(sums.sum())
        begin += step
    return _Fit("class frequencies of each position", least / total, 1 - right / total, free * squares / (2 * total**2))


def _held_out(shares: Tensor, counts: Tensor) -> float:
    """Return the loss of answering every target by the frequencies of the others, smoothed over all classes up to the
    largest seen: an upper bound, but for noise, of what the best constant answer reaches.
    """
    seen = counts > 0
    others, total, classes = counts[seen] - 1, float(counts.sum()) - 1, len(counts)
    tried = [-(((others + x) / (total + x * classes)).log() * shares[seen]).sum() for x in SMOOTHINGS]
    return float(min(tried))


def _of_numbers(data: Data) -> ConstantAnswer | None:
    n = 0
    first = total = squares = torch.zeros(0, dtype=torch.float64)
    for targets in _targets(data):
        rows = targets.reshape(len(targets), -1).double()
        if n and rows.shape[1] != len(first):
            return None  # sequences of several lengths have no mean
        if not n:
            first, total, squares = rows[0], rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1])
        n += len(rows)
        total += (rows - first).sum(0)  # about one of them, lest large numbers hide how they vary
        squares += (rows - first).square().sum(0)
    lowest = float((squares / n - (total / n).square()).clamp(min=0).mean())
    if lowest <= 1e-12 * float(first.square().mean()):
        lowest = 0.0
    luck = min(LUCK**2 / n, SHARE) * lowest
    return ConstantAnswer("mean of the targets", lowest * n / max(1, n - 1), None, lowest, n, 1, n, luck)


def _targets(data: Data) -> Iterator[Tensor]:
    for batch in data.batches:
        for start in range(0, batch.samples, ROWS):
            yield batch.targets[start : start + ROWS].detach().cpu()


def _padded(values: Tensor, size: int) -> Tensor:
    return torch.cat([values, values.new_zeros(size - len(values))])
