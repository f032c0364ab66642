"""Second moments of units: of many groups at once or of one after the other, of layers or of nothing that is known."""

from __future__ import annotations

import pytest
import torch
from networks.dropping import case, pair_of
from torch import nn

from lmccheck.dropping import seen as room
from lmccheck.dropping.candidates import Candidates
from lmccheck.dropping.choose_units import SearchSettings
from lmccheck.dropping.refit import Refit
from lmccheck.evaluate.layer_data import LayerData
from lmccheck.evaluate.split import split


@pytest.mark.parametrize("name", ["cnn", "swiglu", "stream", "relu"])
@pytest.mark.parametrize("alone", [True, False])
def test_moments_of_few_groups_at_a_time_are_those_of_all(
    name: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few are held, in whichever order they are asked for; a pass is made for as many as fit, not for each."""
    pair, structure = case(name)
    theta = structure.canonical(pair.theta_a)
    parts = split(pair.network, "tests", 200)
    whole = Refit(pair.network, structure, theta, parts, torch.float64).seen
    asked = [(n, block.group) for n, blocks in structure.columns.items() for block in blocks]
    passes: list[int] = []
    taken = LayerData.second_moments
    monkeypatch.setattr(LayerData, "second_moments", lambda *args: passes.append(len(args[2])) or taken(*args))
    expected = {key: whole(*key) for key in asked}
    assert len(passes) == 1
    numbers = sum(moments.xx.numel() for moments in expected.values())
    monkeypatch.setattr(room, "HELD", 1 if alone else numbers - 1)
    few = Refit(pair.network, structure, theta, parts, torch.float64).seen
    for key in (*asked, *reversed(asked)):
        assert torch.equal(few(*key).xx, expected[key].xx)
        assert few(*key).count == expected[key].count
    assert len(passes) > 2
    assert max(passes[1:]) < len(asked)
    if alone:
        assert max(passes[1:]) == max(sum(group == g for _, group in asked) for g in structure.groups)


def test_a_search_is_the_same_however_few_moments_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units, losses and scores of every level."""
    pair, structure = case("stream")

    def found() -> list[tuple[dict[str, list[int]], float, str]]:
        candidates = Candidates(pair.a, structure, SearchSettings(profile="dev"))
        searched = [candidates.search(level)[0] for level in range(len(structure.levels))]
        return [({g: u.tolist() for g, u in one.keep.items()}, one.loss, one.how) for one in searched]

    expected = found()
    monkeypatch.setattr(room, "HELD", 1)
    assert found() == expected


def test_units_that_no_layer_reads_as_they_are_count_alike() -> None:
    """Before a transposed convolution nothing is known of them: an identity, no mean."""
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    torch.manual_seed(0)
    pair = pair_of(build, (1, 4, 4), build().state_dict())
    structure = pair.network.droppable("tests")
    theta = structure.canonical(pair.theta_a)
    seen = Refit(pair.network, structure, theta, split(pair.network, "tests", 200), torch.float64).seen
    (group,) = {block.group for block in structure.columns["2.weight"]}
    moments = seen("2.weight", group)
    size = structure.sizes[group]
    assert torch.equal(moments.xx, torch.eye(size, dtype=torch.float64))
    assert (moments.count, moments.x.tolist()) == (1, [0.0] * size)
