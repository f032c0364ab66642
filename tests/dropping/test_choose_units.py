"""Which units are kept: exact counts, what can stand in for others, twins."""

from __future__ import annotations

import pytest
import torch
from networks.dropping import case, loss_of, mlp, pair_of
from networks.paths import bare_structure, random_state
from torch import nn

from lmccheck.dropping.choose_units import (
    Spanning,
    factors,
    important_units,
    merged_twins,
    random_units,
    scales,
    unit_counts,
)
from lmccheck.dropping.refit import Refit
from lmccheck.errors import LmcError
from lmccheck.evaluate.regression import Moments
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
    refit = Refit(pair.network, structure, canonical, split(pair.network, "tests", 200), torch.float64)
    keep = Spanning(structure, canonical, refit.seen)({structure.groups[0]: 4})
    rows = theta["0.weight"][keep[structure.groups[0]]]
    assert int(torch.linalg.matrix_rank(rows)) == 4
    state, _ = refit(0, keep, polish=False)
    assert loss_of(pair, structure, state) == pytest.approx(loss_of(pair, structure, canonical), abs=1e-4)


@pytest.mark.parametrize(
    ("size", "share", "kept"),
    [(100, 0.29, 29), (10, 0.7, 7), (3, 1 / 3, 1), (7, 3 / 7, 3), (5, 0.5, 2), (5, 0.59, 2), (4, 0.0, 0), (4, 1, 4)],
)
def test_a_share_a_rounding_error_below_a_whole_number_is_that_number(size: int, share: float, kept: int) -> None:
    """⌊keep·h⌋ of the number that was meant: 0.29 · 100 is 28.999… in floats, and 29 units."""
    structure = bare_structure(mlp(nn.ReLU, [2, size, 2]), 2)
    (group,) = structure.groups
    assert unit_counts(structure, share) == {group: kept}


def test_random_units_are_distinct_sorted_and_any() -> None:
    """Every subset of two of four turns up, each about as often."""
    structure = bare_structure(mlp(nn.ReLU, [2, 4, 2]), 2)
    (group,) = structure.groups
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(random_units(structure, {group: 2}, generator)[group].tolist()) for _ in range(600)]
    assert {*drawn} == {(i, j) for i in range(4) for j in range(i + 1, 4)}
    assert all(abs(drawn.count(pair) - 100) < 50 for pair in {*drawn})


def test_important_units_are_those_whose_part_of_what_is_read_is_large() -> None:
    """E[φ_u²]·‖out(u)‖² by hand: 9, 8, 2¼, 2, .04 and .16; by activity alone, or by Σ|out|, others would stay."""
    net = mlp(nn.ReLU, [3, 6, 2])
    theta, structure = random_state(net, 3), bare_structure(net, 3)
    (group,) = structure.groups
    theta["2.weight"] = torch.tensor([[3, 2, 1.5, 1, 0.1, 0.2], [0, 2, 0, 1, 0, 0]], dtype=torch.float64)
    hidden = torch.tensor([1, 1, 1, 1, 2, 2], dtype=torch.float64).repeat(4, 1)
    expected = [0, 1, 2]

    def seen(weight: str, of: str) -> Moments:
        assert (weight, of) == ("2.weight", group)
        moments = Moments()
        moments.add(hidden, hidden)
        return moments

    assert important_units(structure, theta, {group: 3}, seen)[group].tolist() == expected


def test_twins_hand_their_outgoing_weights_to_one_that_stays() -> None:
    """Units 0, 2 and 3 are alike, so are 1 and 4: two stay, what is read of them is the sum, the function is kept."""
    net = mlp(nn.Tanh, [3, 5, 2])
    theta, structure = random_state(net, 3), bare_structure(net, 3)
    (group,) = structure.groups
    kind = torch.tensor([0, 1, 0, 0, 1])
    theta["0.weight"], theta["0.bias"] = theta["0.weight"][kind], theta["0.bias"][kind]
    found = merged_twins(structure, theta, {group: 2})
    assert found is not None
    keep, merged = found
    a, b = keep[group].tolist()
    assert kind[a] != kind[b]
    dropped = [unit for unit in range(5) if unit not in (a, b)]
    assert bool((merged["2.weight"][:, dropped] == 0).all())
    for unit in (a, b):
        alike = kind == kind[unit]
        assert torch.allclose(merged["2.weight"][:, unit], theta["2.weight"][:, alike].sum(1), rtol=0, atol=1e-14)
    assert merged_twins(structure, theta, {group: 1}) is None  # two kinds of units


def test_factors_are_one_line_per_choice() -> None:
    """A factor for all groups or one per group; zero where a unit is not kept."""
    structure = bare_structure(mlp(nn.ReLU, [2, 3, 4, 2]), 2)
    first, second = structure.groups
    several = [
        ({first: torch.tensor([1]), second: torch.tensor([0, 3])}, 2.0),
        ({first: torch.tensor([0, 2]), second: torch.tensor([1])}, {first: 1.5, second: 4.0}),
    ]
    found = factors(structure, several)
    assert found[first].tolist() == [[0, 2, 0], [1.5, 0, 1.5]]
    assert found[second].tolist() == [[2, 0, 0, 2], [0, 4, 0, 0]]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_was_chosen_for_other_levels_changes_nothing(first: int) -> None:
    """Asked from each level on, in any order and of other numbers of units: as asked for the first time."""
    net = mlp(nn.ReLU, [4, 9, 8, 7, 3])
    theta, structure = random_state(net, 5), bare_structure(net, 4)
    generator = torch.Generator().manual_seed(3)
    seen: dict[str, Moments] = {}
    for group in structure.groups:
        rows = torch.randn(60, structure.sizes[group], generator=generator, dtype=torch.float64)
        seen[group] = Moments()
        seen[group].add(rows, rows[:, :0])

    def moments(weight: str, group: str) -> Moments:
        return seen[group]

    several = Spanning(structure, theta, moments)
    order = [first, *(k for k in range(3) if k != first)]
    for level in order:
        for count in (3, 5):
            kept = {group: count for (group,) in structure.levels[level:]}
            alone = Spanning(structure, theta, moments)(kept)
            assert {g: u.tolist() for g, u in several(kept).items()} == {g: u.tolist() for g, u in alone.items()}
    narrow = {group: (4, 3, 2)[k] for k, (group,) in enumerate(structure.levels)}
    assert {g: u.tolist() for g, u in several(narrow).items()} == {
        g: u.tolist() for g, u in Spanning(structure, theta, moments)(narrow).items()
    }
