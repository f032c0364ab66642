"""What explains a network's noise stability: Gaussian noise in every unit group, and the constants of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmccheck.diagnose.chain import Chain, chain_of
from lmccheck.diagnose.cushions import cushions
from lmccheck.diagnose.noise import NoiseRuns
from lmccheck.dropping.edit import lines
from lmccheck.errors import LmcError
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.evaluate.points import working_dtype
from lmccheck.symmetry.structure import Structure

if TYPE_CHECKING:
    from lmccheck.network.pair import ModelPair

SAMPLES = 128
MASKS = 8  # of those drawn, for the interlayer smoothness
T_SMOOTH = (0.0, 0.25, 0.5, 0.75)  # of θ·t + θᵏ·(1−t), as the paper has it


def readers(structure: Structure) -> dict[str, dict[str, Tensor]]:
    """Return, per group and weight that holds its outgoing weights, the positions of its units in what is read."""
    found: dict[str, dict[str, Tensor]] = {group: {} for group in structure.groups}
    for weight, blocks in structure.columns.items():
        for block in blocks:
            known = found[block.group].get(weight)
            places = block.positions.reshape(-1)
            found[block.group][weight] = places if known is None else torch.cat([known, places])
    return {group: by for group, by in found.items() if by}


def gaussian(pair: ModelPair, structure: Structure, size: float, seed: int) -> dict[str, Any]:
    """Return what Gaussian noise does at both endpoints, see ``NoiseRuns.profile``; JSON-able."""
    dtype = working_dtype(pair.theta_a, pair.theta_b)
    batch = pair.data.batches[0].take(slice(SAMPLES))
    runs = NoiseRuns(pair.network, structure.layers, readers(structure), batch, dtype)
    return {
        "size": size,
        "samples": batch.samples,
        "source": "Arora et al. 2018: noise ‖η‖ = size·‖x‖ in what a group's layers read",
        "a": runs.profile(pair.theta_a, size, seed),
        "b": runs.profile(pair.theta_b, size, seed),
    }


def constants(
    pair: ModelPair, structure: Structure, masks: Sequence[Mapping[str, Tensor]], seed: int
) -> dict[str, Any]:
    """Return both endpoints' constants of section 4, see ``cushions``, or {"why": ...} where there are none."""
    stages = chain_of(structure)
    if isinstance(stages, str):
        return {"why": stages}
    graph = GraphRunner.of(pair.network, torch.float64)
    batch = pair.data.batches[0].take(slice(SAMPLES))
    where = f"{pair.data.origin}, diagnostics"
    given = [
        {name: line[0] for name, line in lines(structure, {g: m[None] for g, m in mask.items()}).items()}
        for mask in masks[:MASKS]
    ]
    found: dict[str, Any] = {}
    for end, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        try:
            chain = Chain(stages, graph, theta, batch.inputs, where)
            found[end] = cushions(chain, masks=given, t=T_SMOOTH, loss=pair.loss.name, seed=seed)
        except (LmcError, RuntimeError) as error:  # an op without a second derivative, a network that is no chain
            return {"why": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return found
