"""Which units are kept: exact counts, what can stand in for others, twins."""

from __future__ import annotations

import pytest
import torch
from networks.dropping import case, loss_of, mlp, pair_of
from torch import nn

from lmccheck.dropping.choose_units import random_units, scales, spanning_units, unit_counts
from lmccheck.dropping.refit import Refit
from lmccheck.errors import LmcError
from lmccheck.evaluate.split import split


def test_counts_of_kept_units() -> None:
    """⌊keep·h⌋ for odd widths and width 1, one share per group if wanted; random subsets hold exactly so many."""
    _, structure = case("width_one")
    groups = [group for several in structure.levels for group in several]
    assert [structure.sizes[group] for group in groups] == [7, 1, 5]
    assert [unit_counts(structure, 0.5)[group] for group in groups] == [3, 0, 2]
    assert [unit_counts(structure, {groups[0]: 0.3})[group] for group in groups] == [2, 1, 5]
    drawn = random_units(structure, unit_counts(structure, 0.5), torch.Generator().manual_seed(1))
    assert [len(drawn[group]) for group in groups] == [3, 0, 2]
    assert scales(structure, drawn)[groups[0]] == pytest.approx(7 / 3)
    for wrong in (1.5, -0.1, True, {"nothing": 0.5}):
        with pytest.raises(LmcError, match="keep"):
            unit_counts(structure, wrong)


def test_units_are_chosen_for_what_they_can_stand_in_for() -> None:
    """Of units that are combinations of a few, the few are kept: their refit loses nothing, a random one's does."""
    torch.manual_seed(0)
    build = lambda: mlp(nn.Identity, [6, 8, 3])  # noqa: E731  # linear: units are combinations of one another
    theta = build().state_dict()
    theta["0.weight"][4:] = torch.randn(4, 4).double() @ theta["0.weight"][:4]
    theta["0.weight"][[1, 6]] = theta["0.weight"][[6, 1]]
    pair = pair_of(build, (6,), theta)
    structure = pair.network.structure("tests")
    canonical = structure.canonical(theta)
    refit = Refit(pair, structure, canonical, split(pair.network, "tests", 200), torch.float64)
    keep = spanning_units(structure, canonical, {structure.groups[0]: 4}, refit.seen)
    rows = theta["0.weight"][keep[structure.groups[0]]]
    assert int(torch.linalg.matrix_rank(rows)) == 4
    state, _ = refit(0, keep, polish=False)
    assert loss_of(pair, structure, state) == pytest.approx(loss_of(pair, structure, canonical), abs=1e-4)
