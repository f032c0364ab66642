"""Gaussian noise in what one unit group's layers read, and how much of it is left further on (Arora et al. 2018)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lmccheck.data.load import Batch
from lmccheck.evaluate.layers_read import Read
from lmccheck.evaluate.noisy import Noise, NoisyRuns, moved, noisy


@dataclass(frozen=True)
class _Run:
    """What a run gave, and what its layers read; ``sources``: by weight, the layer whose value it multiplies."""

    outputs: list[Tensor]
    loss: float
    values: dict[str, Tensor]
    sources: Mapping[str, str]


def group_profile(
    runs: NoisyRuns, weights: Mapping[str, Tensor], groups: Mapping[str, Collection[str]], batch: Batch, noise: Noise
) -> dict[str, dict[str, Any]]:
    """Return, per unit group, what noise in the values that its outgoing weights multiply does; JSON-able.

    ``groups``: the names of those weights by group. ``loss_change``: of the mean loss. ``output_error`` and ``errors``
    (per other group that the noise reaches): ‖Δ‖²/‖x‖²; ``output_attenuation`` and ``attenuation``: ψ, the same over
    ‖η‖²/‖x‖². All are means over samples, without those where the clean value is zero.
    """
    runs.load(weights)
    clean = _run(runs, batch, None)
    places = {
        group: list(dict.fromkeys(clean.sources[name] for name in names if name in clean.sources))
        for group, names in groups.items()
    }
    scale, found = noise.size**2 or 1.0, {}
    for number, group in enumerate(groups):
        run = _run(runs, batch, Noise(noise.size, noise.seed, number, places[group])) if noise.size else clean
        others = {other: at[0] for other, at in places.items() if other != group and at}
        errors = {other: _mean([clean.values[at]], [run.values[at]], batch) for other, at in others.items()}
        reached = {other: error for other, error in errors.items() if error > 0}
        output_error = _mean(clean.outputs, run.outputs, batch)
        found[group] = {
            "loss_change": run.loss - clean.loss,
            "output_error": output_error,
            "output_attenuation": output_error / scale,
            "errors": reached,
            "attenuation": {other: error / scale for other, error in reached.items()},
        }
    return found


def _run(runs: NoisyRuns, batch: Batch, noise: Noise | None) -> _Run:
    values: dict[str, Tensor] = {}
    outputs, losses, sources = runs.run(batch, partial(_changed, values, noise, batch.samples))
    return _Run(outputs, float(losses.mean()), values, sources)


def _changed(values: dict[str, Tensor], noise: Noise | None, samples: int, read: Read) -> Tensor | None:
    """Keep what a layer reads first, and put noise into it where there is to be some."""
    given = noise is not None and noise.layers is not None and read.layer in noise.layers
    other = noisy(read, noise, samples, 0) if noise is not None and given else None
    values.setdefault(read.layer, read.value if other is None else other)
    return other


def _mean(clean: list[Tensor], after: list[Tensor], batch: Batch) -> float:
    return float(moved(clean, after, batch.samples).nanmean().nan_to_num(0.0))
