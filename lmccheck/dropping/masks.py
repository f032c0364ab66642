"""Dropout masks of Algorithm 1 (Kuditipudi et al. 2019), each known by its number; and the witness made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lmccheck.errors import LmcError
from lmccheck.shown import one_line, some
from lmccheck.store import files

T_GRID = (0.25, 0.5, 0.75, 1.0)
_STRIDE = 1_000_003


def mask_seed(seed: int, number: int) -> int:
    """Return the generator seed of one mask of a run."""
    return seed * _STRIDE + number


def dropout_mask(sizes: Mapping[str, int], p: float, seed: int) -> dict[str, Tensor]:
    """Return one multiplier per unit, float64 (units,) per group: 0 with probability p, else 1/(1−p), independently.

    Drawn on the CPU, so the same on every machine. Source: Kuditipudi et al. 2019, Algorithm 1; unlike there, biases
    stay and groups need not be layers.

    >>> dropout_mask({"hidden": 4}, 0.0, 7)["hidden"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for group, size in sizes.items():
        kept = torch.rand(size, generator=generator, dtype=torch.float64) >= p
        found[group] = kept.to(torch.float64) / (1 - p)
    return found


def toward(multipliers: Tensor, t: float) -> Tensor:
    """Return 1 + t·(m − 1): the multipliers of θ + t·(θ¹ − θ), which is θ at t = 0 and its dropped version at 1."""
    return 1 + t * (multipliers - 1)


@one_line(lambda found: f"{some(f'{len(q)} masks of {s}' for s, q in found.q.items())}, p = {found.p:g}")
@dataclass(frozen=True)
class NoiseWitness(files.Written):
    """Every mask of a run by its number, and what each cost: enough to recompute every q_k.

    ``q``: per endpoint ("a", "b") one number per mask, in the loss's unit, at least the 0 of t = 0; ``losses`` those of
    θ + t·(θ¹_k − θ) for every t of ``t``, which 0 is none of, (masks, len(t)); ``worst`` and ``best`` the numbers of
    masks; ``sizes`` the units per group, in the order in which they are drawn.
    """

    p: float
    seed: int
    t: tuple[float, ...]
    sizes: Mapping[str, int]
    q: Mapping[str, tuple[float, ...]]
    losses: Mapping[str, tuple[tuple[float, ...], ...]] = field(repr=False)
    worst: Mapping[str, int]
    best: Mapping[str, int]

    @property
    def masks(self) -> int:
        """How many masks were drawn."""
        return len(next(iter(self.q.values())))

    def multipliers(self, number: int) -> dict[str, Tensor]:
        """Return mask ``number`` (0 to masks − 1): what each unit's outgoing weights are multiplied by at t = 1.

        Raises LmcError for a number of no mask.
        """
        if not 0 <= number < self.masks:
            raise LmcError(f"noise witness: mask {number}; expected 0 to {self.masks - 1}")
        return dropout_mask(self.sizes, self.p, mask_seed(self.seed, number))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write q_k and losses, and the worst and best masks' multipliers, as safetensors; facts as metadata."""
        tensors: dict[str, Tensor] = {}
        for end, q in self.q.items():
            tensors[f"q.{end}"] = torch.tensor(q, dtype=torch.float64)
            tensors[f"losses.{end}"] = torch.tensor(self.losses[end], dtype=torch.float64)
            for name, number in (("worst", self.worst[end]), ("best", self.best[end])):
                for group, multipliers in self.multipliers(number).items():
                    tensors[f"{name}.{end}.{group}"] = multipliers
        facts = {
            "property": "noise_stability",
            "p": self.p,
            "seed": self.seed,
            "mask_seeds": [mask_seed(self.seed, k) for k in range(self.masks)],
            "t": list(self.t),
            "sizes": dict(self.sizes),
            "worst": dict(self.worst),
            "best": dict(self.best),
        }
        return files.save(tensors, Path(path), {"lmccheck": json.dumps(facts)}, inputs=self.inputs)


def stacked(masks: Sequence[Mapping[str, Tensor]], t: Sequence[float]) -> dict[str, Tensor]:
    """Return the multipliers of all masks at all t, (masks·len(t), units) per group, t running fastest."""
    groups = list(masks[0]) if masks else []
    return {group: torch.stack([toward(mask[group], x) for mask in masks for x in t]) for group in groups}
