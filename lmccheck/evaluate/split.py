"""Calibration data in two parts: one to fit on, one to choose by, in batches of one size so that it is traced once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lmccheck.data.batches import ELEMENTS, numbers
from lmccheck.data.load import Batch, Data
from lmccheck.errors import SourceError
from lmccheck.evaluate.graph import value_sizes
from lmccheck.network.network import Network
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.trace import Trace

PARTS = 4  # every fourth batch is held out


@dataclass(frozen=True)
class Split:
    """Calibration data: ``fit`` and ``held`` out batches, no sample in both."""

    fit: tuple[Batch, ...]
    held: tuple[Batch, ...]
    origin: str

    def first(self, samples: int) -> tuple[Data, Tensor]:
        """Return about ``samples`` samples (a batch of each part at least), and which of them are held out, (n,)."""
        share = samples / max(1, sum(batch.samples for batch in (*self.fit, *self.held)))
        held, fit = (_some(part, share) for part in (self.held, self.fit))
        count = sum(batch.samples for batch in held)
        total = count + sum(batch.samples for batch in fit)
        return Data((*held, *fit), self.origin, False), torch.arange(total) < count


def _some(batches: tuple[Batch, ...], share: float) -> tuple[Batch, ...]:
    return batches[: max(1, min(len(batches), round(share * len(batches))))]


def split(network: Network, purpose: str, samples: int, seed: int = 0, *, most: int = 512) -> Split:
    """Return at most ``samples`` samples of a pair's calibration data, drawn at random, a quarter of them held out.

    Batches have at most ``most`` samples; a user's own are taken as they come. Raises SourceError where there is no
    calibration data, or a single sample.
    """
    data = network.require_labelled(f"searching {purpose}")
    if data.rebatch or len(data.batches) < PARTS:
        batches = [part for batch in data.batches for part in _parts(batch, samples // len(data.batches), seed, most)]
    else:
        batches, seen = [], 0
        for batch in data.batches:
            if len(batches) < PARTS or seen + batch.samples <= samples:
                batches.append(batch)
                seen += batch.samples
    if len(batches) < 2:
        raise SourceError(
            f"{data.origin}: {data.samples} sample(s) of calibration data, expected at least 2: some are fitted to, "
            "others are held out; mend: give more of them"
        )
    every = min(PARTS, len(batches))
    held = tuple(batch for k, batch in enumerate(batches) if k % every == every - 1)
    fit = tuple(batch for k, batch in enumerate(batches) if k % every != every - 1)
    return Split(fit, held, data.origin)


def _parts(batch: Batch, samples: int, seed: int, most: int) -> list[Batch]:
    """Cut a batch, shuffled, into batches of one size; a rest that does not fill one is left out."""
    total = min(batch.samples, samples)
    size = max(1, min(most, ELEMENTS // numbers(batch), total // PARTS))
    order = torch.randperm(batch.samples, generator=torch.Generator().manual_seed(seed))
    return [batch.take(order[start : start + size]) for start in range(0, total - size + 1, size)]


def work(traced: Trace, layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many multiplications layers need for one sample; ``traced`` is a trace on two samples."""
    made = value_sizes(traced, {layer.node for layer in layers})
    total = 0
    for layer in layers:
        shape = shapes[layer.weight]
        total += prod(shape) * made.get(layer.node, 0) // shape[layer.out] // 2
    return max(1, total)
