"""What explains a network's noise stability: Gaussian noise in every unit group, and the constants of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmccheck.diagnose.chain import Chain, chain_of
from lmccheck.diagnose.cushions import cushions
from lmccheck.diagnose.noise import group_profile
from lmccheck.dropping.edit import lines
from lmccheck.errors import LmcError
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.evaluate.noisy import Noise, NoisyRuns
from lmccheck.evaluate.points import working_dtype
from lmccheck.network.endpoint import Endpoint
from lmccheck.symmetry.structure import Structure

SAMPLES = 128
MASKS = 8  # of those drawn, for the interlayer smoothness
T_SMOOTH = (0.0, 0.25, 0.5, 0.75)  # of θ·t + θᵏ·(1−t), as the paper has it


def gaussian(ends: Mapping[str, Endpoint], structure: Structure, size: float, seed: int) -> dict[str, Any]:
    """Return what Gaussian noise does at every endpoint, see ``group_profile``; JSON-able."""
    dtype, network = working_dtype(*(end.theta for end in ends.values())), next(iter(ends.values())).network
    batch, runs = network.data.batches[0].take(slice(SAMPLES)), NoisyRuns(network, dtype)
    read: dict[str, dict[str, None]] = {group: {} for group in structure.groups}
    for weight, blocks in structure.columns.items():
        for block in blocks:
            read[block.group][weight] = None
    groups = {group: tuple(names) for group, names in read.items() if names}
    return {
        "size": size,
        "samples": batch.samples,
        "source": "Arora et al. 2018: noise ‖η‖ = size·‖x‖ in what a group's layers read",
        **{name: group_profile(runs, end.theta, groups, batch, Noise(size, seed, 0)) for name, end in ends.items()},
    }


def constants(
    ends: Mapping[str, Endpoint], structure: Structure, masks: Sequence[Mapping[str, Tensor]], seed: int
) -> dict[str, Any]:
    """Return every endpoint's constants of section 4, see ``cushions``, or {"why": ...} where there are none."""
    stages = chain_of(structure)
    if isinstance(stages, str):
        return {"why": stages}
    network = next(iter(ends.values())).network
    graph = GraphRunner.of(network, torch.float64, structure.trace)
    batch = network.data.batches[0].take(slice(SAMPLES))
    where = f"{network.data.origin}, diagnostics"
    given = [
        {name: line[0] for name, line in lines(structure, {g: m[None] for g, m in mask.items()}).items()}
        for mask in masks[:MASKS]
    ]
    found: dict[str, Any] = {}
    for name, end in ends.items():
        try:
            chain = Chain(stages, graph, end.theta, batch.inputs, where)
            found[name] = cushions(chain, masks=given, t=T_SMOOTH, loss=network.loss.name, seed=seed)
        except (LmcError, RuntimeError) as error:  # an op without a second derivative, a network that is no chain
            return {"why": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return found
