"""Losses of a network with Gaussian noise in what its layers read (Arora et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import tensors_in
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.evaluate.layers_read import Change, LayersRead, Read
from lmccheck.evaluate.normals import TOGETHER, key_of, normals
from lmccheck.evaluate.points import upcast
from lmccheck.modules.runner import Runner
from lmccheck.network.loss import LOSSES, logits_of, measured
from lmccheck.network.network import Network


@dataclass(frozen=True)
class Noise:
    """Noise η in every value x that a layer reads, ‖η‖ = size·‖x‖, independent of layer, call, sample and position.

    x is what a layer reads at one position of one sample, (features,), or, where a layer mixes positions (a
    convolution, a norm of maps), all of a sample, (channels, *places). η = size·‖x‖·z/‖z‖ with z standard normal: its
    length is exact, its direction uniform. Where x is zero there is none. ``layers``: those that get
    it, all where None.
    """

    size: float
    seed: int
    draw: int
    layers: Collection[str] | None = field(default=None)

    def normals(self, layer: str, call: int, samples: Tensor, count: int) -> Tensor:
        """Return z of some samples, (samples, count) float64: ``count`` numbers of each, position after position."""
        return normals(key_of(self.seed, self.draw, layer, call), samples, count)


@dataclass
class Seen:
    """What a run showed of a layer: how often it read a value, at how many positions, and where they were zero."""

    calls: int = 0
    positions: int = 0
    zeros: int = 0


class NoisyRuns:
    """Runs one network, as it is written, on data with noise in what its layers read; evaluation mode, no dropout.

    BatchNorm keeps its own statistics. ``evaluations`` counts full passes over the data. Of the weights last run with
    ``each``, ``seen`` is what its layers read, in their order; ``fused`` are those of them whose steps run inside of
    one call of torch's; ``unseen`` are weights that multiply number by number, where no layer is seen. Raises
    SourceError when the network or the loss cannot run.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.network = network
        self.runner = Runner(network.module, network.torch_device, dtype)
        self.batches = rebatched(network.data)
        self.evaluations = 0
        self.alone_samples = 0
        self.seen: dict[str, Seen] = {}
        self.fused: dict[str, None] = {}
        self.unseen: dict[str, None] = {}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights, every name of the state dict."""
        self.runner.load(upcast(weights, self.runner.dtype, self.runner.device))

    def each(self, noises: Sequence[Noise]) -> tuple[Tensor, Tensor, Tensor]:
        """Return per-sample losses without noise (n,), with each (k, n), and by how much outputs move, (k, n).

        That is ‖Δ‖²/‖f(x)‖² over a sample's outputs (what the loss reads of them), NaN where they are zero. All float64
        on the CPU.
        """
        self.seen, self.fused, self.unseen = {}, {}, {}
        self.evaluations += 1 + len(noises)
        return self._losses(self.batches, noises, self._note)

    def alone(self, noise: Noise, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same of noise in one layer of ``seen`` after the other, on about the first ``samples``."""
        batches = first_batches(self.network.data, self.batches, samples)
        self.alone_samples = sum(batch.samples for batch in batches)
        noises = [replace(noise, layers=(layer,)) for layer in self.seen]
        self.evaluations += math.ceil((1 + len(noises)) * self.alone_samples / self.network.data.samples)
        return self._losses(batches, noises, lambda samples, read: None)

    def _losses(
        self, batches: Sequence[Batch], noises: Sequence[Noise], note: Callable[[int, Read], None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        own: list[Tensor] = []
        losses: list[list[Tensor]] = [[] for _ in noises]
        movements: list[list[Tensor]] = [[] for _ in noises]
        number = 0
        for batch in batches:
            clean, values, _ = self.run(batch, partial(note, batch.samples))
            own.append(values)
            for k, noise in enumerate(noises):
                change = partial(_with_noise, noise, batch.samples, number)
                output, changed, _ = self.run(batch, change) if noise.size else (clean, values, None)
                losses[k].append(changed)
                movements[k].append(moved(clean, output, batch.samples))
            number += batch.samples
        return torch.cat(own), _stacked(losses), _stacked(movements)

    def run(self, batch: Batch, change: Change) -> tuple[list[Tensor], Tensor, dict[str, str]]:
        """Return outputs of one batch, one tensor or several, per-sample losses, and ``LayersRead.sources``."""
        where = f"{self.network.data.origin}, with noise in the activations"
        run = LayersRead(self.runner.module, batch.inputs, change)
        with run:
            output = self.runner(batch.inputs, where)
        output = run.outputs(output)
        if not run.calls:
            raise UnsupportedArchitecture(
                f"{where}: no layer of {type(self.network.module).__name__} was seen to read anything, so there is "
                "nothing to put noise into; mend: compute with torch's functions on the tensors that forward is given"
            )
        self.fused |= run.fused
        self.unseen |= run.unseen
        values, _ = measured(self.network.loss, output, self.runner.cast(batch.targets), where)
        judged = [logits_of(output)] if self.network.loss.name in LOSSES else tensors_in(output)
        return [tensor.detach() for tensor in judged], values.cpu(), run.sources

    def _note(self, samples: int, read: Read) -> None:
        seen = self.seen.setdefault(read.layer, Seen())
        positions, _ = _positions(read, samples)
        seen.calls = max(seen.calls, read.call + 1)
        seen.positions += positions[..., 0].numel()
        seen.zeros += int((positions == 0).all(2).sum())


def first_batches(data: Data, batches: Sequence[Batch], samples: int) -> list[Batch]:
    """Return about the first samples; batches of a user's own as they came."""
    if data.rebatch:
        return [batches[0].take(slice(samples))]
    found: list[Batch] = []
    for batch in batches:
        if sum(one.samples for one in found) < samples:
            found.append(batch)
    return found


def _with_noise(noise: Noise, samples: int, first: int, read: Read) -> Tensor | None:
    return noisy(read, noise, samples, first) if noise.layers is None or read.layer in noise.layers else None


def noisy(read: Read, noise: Noise, samples: int, first: int) -> Tensor:
    """Return x + η for what a layer reads in a batch of ``samples``, the first of which has number ``first``.

    Where no dimension is known to be that of the samples (tokens sent to an expert), all of it is the first sample's.
    """
    rows, back = _positions(read, samples)
    numbers = torch.arange(first, first + len(rows), device=rows.device)
    count = rows[:1].numel()
    step = max(1, TOGETHER // max(1, count))
    changed = torch.empty_like(rows)
    for start in range(0, len(rows) if count else 0, step):
        x = rows[start : start + step].double()
        z = noise.normals(read.layer, read.call, numbers[start : start + step], count).reshape(x.shape)
        length = noise.size * x.norm(dim=2, keepdim=True) / z.norm(dim=2, keepdim=True)
        changed[start : start + step] = (x + length * z).to(rows.dtype)
    return back(changed)


def _positions(read: Read, samples: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return what a layer reads as (samples, positions, numbers of one position), and what turns such a tensor back.

    The samples' dimension is the first or second where that is as long as they are many, else the first where that is
    a multiple: windows, heads and steps of a sample lie within it. In no other case anything is known, and there is one
    row.
    """
    value, along = read.value, read.along
    turned = value if along is None else value.movedim(along, -1)
    lead = turned.shape[:1] if along is None else turned.shape[:-1]
    second = len(lead) > 1 and lead[0] != samples and lead[1] == samples
    turned = turned.transpose(0, 1) if second else turned
    rows = samples if second or (lead and lead[0] % samples == 0) else 1
    one = turned[:1].numel() if along is None else turned.shape[-1]
    shape = turned.shape

    def back(changed: Tensor) -> Tensor:
        restored = changed.reshape(shape)
        restored = restored.transpose(0, 1) if second else restored
        return restored if along is None else restored.movedim(-1, along)

    return turned.reshape(rows, -1, max(1, one)), back


def moved(clean: Sequence[Tensor], noisy: Sequence[Tensor], samples: int) -> Tensor:
    """Return ‖noisy − clean‖²/‖clean‖² of every sample, float64 (samples,); NaN where clean is zero."""
    change, size = (torch.zeros(samples, dtype=torch.float64) for _ in range(2))
    for before, after in zip(clean, noisy, strict=True):
        rows = samples if before.ndim and before.shape[0] == samples else 1  # else all of it, for each of them
        first, second = (tensor.reshape(rows, -1).to("cpu", torch.float64) for tensor in (before, after))
        change += (second - first).square().sum(1)
        size += first.square().sum(1)
    return torch.where(size > 0, change / size, torch.nan)


def _stacked(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.cat(list(parts)) for parts in rows])
