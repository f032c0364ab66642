"""Units that change no loss, however they are dropped: behind a scale of 0, before weights of 0, or never active."""

from __future__ import annotations

import torch

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Data
from lmccheck.dropping.edit import lines
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.evaluate.noisy import first_batches
from lmccheck.network.view import View
from lmccheck.symmetry.structure import Structure

SAMPLES = 32  # on which it is looked at
ROUNDING = 1e-12  # of float64, relative to 1 and to a loss: sums of other order


def idle_groups(view: View, structure: Structure) -> dict[str, list[str]]:
    """Return, per endpoint, the groups that change the loss of none of the first 32 samples when all of them drop.

    But for rounding in float64: an effect that is only small counts as one.
    """
    network = view.network
    batches = tuple(first_batches(network.data, rebatched(network.data), SAMPLES))
    runs = MaskedRuns(network, structure, Data(batches, network.data.origin, False), torch.float64)
    numbers = range(len(structure.groups) + 1)  # with nothing dropped, then with each of the groups
    factors = {
        group: torch.tensor([[float(k != at)] * structure.sizes[group] for k in numbers], dtype=torch.float64)
        for at, group in enumerate(structure.groups, 1)
    }
    found = {}
    for name, end in view.named_endpoints.items():
        runs.load(end.theta)
        own, *dropped = runs.losses(lines(structure, factors))
        same = [bool(((losses - own).abs() <= ROUNDING * (1 + own.abs())).all()) for losses in dropped]
        found[name] = [group for group, unchanged in zip(structure.groups, same, strict=True) if unchanged]
    return found
