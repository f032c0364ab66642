"""What noise was drawn in a run, and what each draw cost: enough to recompute every figure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lmccheck.errors import LmcError
from lmccheck.evaluate.normals import key_of, normals
from lmccheck.shown import one_line, some
from lmccheck.store import files


@one_line(lambda found: f"{some(f'{len(q)} draws for {s}' for s, q in found.q.items())}, ‖η‖ = {found.size:g}·‖x‖")
@dataclass(frozen=True)
class GaussianWitness(files.Written):
    """Every draw of noise of a run by its number, and what each cost.

    ``size`` is ‖η‖/‖x‖; ``layers``: how often each layer that got noise read a value; per endpoint ``q`` and the mean
    losses with noise ``losses``, one number per draw, and the numbers of the ``worst`` and ``best`` draw.
    """

    size: float
    seed: int
    layers: Mapping[str, int]
    q: Mapping[str, tuple[float, ...]]
    losses: Mapping[str, tuple[float, ...]] = field(repr=False)
    worst: Mapping[str, int]
    best: Mapping[str, int]

    @property
    def draws(self) -> int:
        """How many draws there were."""
        return len(next(iter(self.q.values())))

    def normals(self, number: int, layer: str, call: int, samples: int, count: int, first: int = 0) -> Tensor:
        """Return z of value ``call`` of a layer in draw ``number``, (samples, count) float64 from sample ``first`` on.

        ``count`` numbers for each sample: position after position, and at each the numbers that the layer reads there.
        The noise of a position is η = size·‖x‖·z/‖z‖, over what is read there. Raises LmcError for a number of no draw
        and the name of no layer.
        """
        if not 0 <= number < self.draws:
            raise LmcError(f"noise witness: draw {number}; expected 0 to {self.draws - 1}")
        if layer not in self.layers:
            raise LmcError(f"noise witness: layer {layer!r}; expected one of {some(self.layers)}")
        return normals(key_of(self.seed, number, layer, call), torch.arange(first, first + samples), count)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write q_k and losses as safetensors; what draws are made of (seed, size, layers) as metadata."""
        tensors = {f"q.{end}": torch.tensor(q, dtype=torch.float64) for end, q in self.q.items()}
        tensors |= {f"losses.{end}": torch.tensor(of, dtype=torch.float64) for end, of in self.losses.items()}
        facts = {
            "property": "noise_stability",
            "noise": "gaussian",
            "size": self.size,
            "seed": self.seed,
            "draws": self.draws,
            "layers": dict(self.layers),
            "worst": dict(self.worst),
            "best": dict(self.best),
        }
        return files.save(tensors, Path(path), {"lmccheck": json.dumps(facts)}, inputs=self.inputs)
