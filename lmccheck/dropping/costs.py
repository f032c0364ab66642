"""What dropping the units of one level alone costs: where a network's redundancy ends."""

from __future__ import annotations

import torch

from lmccheck.data.batches import first_samples
from lmccheck.dropping.choose_units import factors, scales
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import lines
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.network.endpoint import Endpoint
from lmccheck.symmetry.structure import Structure

SAMPLES = 4096


def level_costs(end: Endpoint, structure: Structure, dropped: Dropped) -> dict[str, float]:
    """Return, per level of a dropped network, what it costs to drop that level's units and no others.

    In the loss's unit, on the first calibration samples; kept units are scaled by units over kept ones, nothing is
    refitted. A level of several groups is named by its first.
    """
    if end.network.labelled is None:
        return {}
    runs = MaskedRuns(end.network, structure, first_samples(end.network.labelled, SAMPLES))
    runs.load(end.theta)
    levels = structure.levels[dropped.level :]
    everything = {group: torch.arange(structure.sizes[group]) for group in dropped.keep}
    choices = [{**everything, **{group: dropped.keep[group] for group in level}} for level in levels]
    multipliers = factors(structure, [(keep, scales(structure, keep)) for keep in [*choices, everything]])
    found = runs.losses(lines(structure, multipliers)).mean(1).tolist()
    return {level[0]: loss - found[-1] for level, loss in zip(levels, found, strict=False)}
