"""Edits of single units are edits of rows and columns, written out on a perceptron and on flattened channels."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from networks.paths import bare_structure, mlp, random_state
from torch import Tensor, nn

from lmccheck.dropping.edit import (
    Multiplied,
    changed,
    cleared,
    copied,
    instead,
    keep_factors,
    lines,
    multiplied,
    switched,
    written,
)
from lmccheck.symmetry.structure import Structure

State = dict[str, Tensor]
WIDTHS = [3, 4, 5, 2]


@pytest.fixture(scope="module")
def structure() -> Structure:
    """3-4-5-2: groups "0" of four units and "2" of five."""
    return bare_structure(mlp(WIDTHS), 3)


@pytest.fixture(scope="module")
def channels() -> Structure:
    """Three channels with BatchNorm, flattened at 2·2 places into a linear layer."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    return bare_structure(nn.Sequential(*layers), 1, 2, 2)


def state(seed: int = 1, widths: list[int] = WIDTHS) -> State:
    return random_state(mlp(widths), seed)


def differs(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> set[str]:
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_multiplied_scales_outgoing_weights(structure: Structure) -> None:
    """Columns times factors; rows stay, and so does the given state."""
    theta = state()
    factor = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    result = multiplied(structure, theta, {"0": factor})
    assert torch.equal(result["2.weight"], theta["2.weight"] * factor)
    assert differs(theta, result) == {"2.weight"}
    assert result["0.weight"] is theta["0.weight"]


def test_a_multiplied_state_makes_a_tensor_when_it_is_asked_for(structure: Structure) -> None:
    """It equals the dict; nothing is held of what was made, and tensors that are given instead are those."""
    theta = state()
    factors = {"0": torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)}
    lazy = Multiplied(structure, theta, factors)
    assert list(lazy) == list(theta)
    assert len(lazy) == len(theta)
    expected = multiplied(structure, theta, factors)
    assert not differs(expected, lazy)
    assert lazy["2.weight"] is not lazy["2.weight"]
    other = torch.zeros_like(theta["2.weight"])
    changed = instead(lazy, {"2.weight": other})
    assert changed["2.weight"] is other
    assert list(changed) == list(theta)
    assert differs(lazy, changed) == {"2.weight"}
    assert torch.equal(lazy["2.weight"], expected["2.weight"])


def test_a_channels_outgoing_weights_are_all_its_places(channels: Structure) -> None:
    """Behind a flatten a channel's factor goes to each of its four columns."""
    (group,) = channels.groups
    factor = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    (found,) = lines(channels, {group: factor}).values()
    assert torch.equal(found, torch.stack([row.repeat_interleave(4) for row in factor]))


def test_keep_factors_are_zero_for_dropped_units(structure: Structure) -> None:
    found = keep_factors(structure, {"2": torch.tensor([1, 4])}, 2.5)
    assert found.keys() == {"2"}
    assert found["2"].tolist() == [0.0, 2.5, 0.0, 0.0, 2.5]


def test_written_takes_rows_and_moves_the_columns_they_read(structure: Structure) -> None:
    """Rows of units 0 and 3 become units 4 and 1, reading unit 2 of the level before where the source reads unit 0."""
    target, source = state(1), state(2)
    rows = {"2": (torch.tensor([0, 3]), torch.tensor([4, 1]))}
    columns = {"0": (torch.tensor([0]), torch.tensor([2]))}
    result = written(structure, target, source, rows, columns)
    expected = target["2.weight"].clone()
    expected[[4, 1]] = 0
    expected[[4, 1], 2] = source["2.weight"][[0, 3], 0]
    assert torch.equal(result["2.weight"], expected)
    assert torch.equal(result["2.bias"][[4, 1]], source["2.bias"][[0, 3]])
    assert torch.equal(result["2.bias"][[0, 2, 3]], target["2.bias"][[0, 2, 3]])
    assert differs(target, result) == {"2.weight", "2.bias"}


def test_written_heads_read_where_units_have_gone(structure: Structure) -> None:
    """With head the last layer is the source's, bias too, its columns at the new places and zero elsewhere."""
    target, source = state(1), state(2)
    result = written(structure, target, source, {}, {"2": (torch.tensor([1, 2]), torch.tensor([3, 0]))}, head=True)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    expected[:, [3, 0]] = source["4.weight"][:, [1, 2]]
    assert torch.equal(result["4.weight"], expected)
    assert torch.equal(result["4.bias"], source["4.bias"])
    assert differs(target, result) == {"4.weight", "4.bias"}


def test_units_of_a_narrower_network_are_written_too(structure: Structure) -> None:
    """``origin`` gives the source's own places: its only unit of the second level becomes unit 2 of five."""
    widths = [3, 2, 1, 2]
    narrow, target, source = bare_structure(mlp(widths), 3), state(1), state(3, widths)
    rows = {"2": (torch.tensor([0]), torch.tensor([2]))}
    columns = {"0": (torch.arange(2), torch.tensor([3, 0]))}
    result = written(structure, target, source, rows, columns, origin=narrow)
    expected = torch.zeros(4, dtype=torch.float64)
    expected[[3, 0]] = source["2.weight"][0]
    assert torch.equal(result["2.weight"][2], expected)
    others = [0, 1, 3, 4]
    assert torch.equal(result["2.weight"][others], target["2.weight"][others])


def test_copied_units_compute_the_same(structure: Structure) -> None:
    """The row goes over literally; the outgoing weights of both stay."""
    theta = state()
    result = copied(structure, theta, {"0": (torch.tensor([1]), torch.tensor([3]))})
    for name in ("0.weight", "0.bias"):
        assert torch.equal(result[name][3], theta[name][1])
        assert torch.equal(result[name][:3], theta[name][:3])
    assert differs(theta, result) == {"0.weight", "0.bias"}


def test_switched_outgoing_weights_leave_nothing_behind(structure: Structure) -> None:
    """Unit 3 reads for unit 1 from now on; chains of units are moved at once, not one after the other."""
    theta = state()
    result = switched(structure, theta, {"0": (torch.tensor([1, 3]), torch.tensor([3, 0]))})
    expected = theta["2.weight"].clone()
    expected[:, 3], expected[:, 0], expected[:, 1] = theta["2.weight"][:, 1], theta["2.weight"][:, 3], 0
    assert torch.equal(result["2.weight"], expected)
    assert differs(theta, result) == {"2.weight"}


def test_cleared_rows_are_zero_and_variances_one(channels: Structure) -> None:
    """Nothing is divided by zero; outgoing weights stay."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    theta = random_state(nn.Sequential(*layers), 1)
    (group,) = channels.groups
    result = cleared(channels, theta, {group: torch.tensor([2])})
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(result[name][:2], theta[name][:2])
        assert bool((result[name][2] == (1.0 if name == "1.running_var" else 0.0)).all())
    assert torch.equal(result["4.weight"], theta["4.weight"])


def test_changed_compares_numbers_not_objects() -> None:
    first = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    second = {"a": first["a"], "b": torch.ones(2), "c": torch.zeros(2)}
    assert changed(["a", "b", "c"], first, second) == ["c"]
    assert changed(["a"], first, second) == []
