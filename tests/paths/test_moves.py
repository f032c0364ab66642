"""What each move may change, on a perceptron small enough to say by hand."""

from __future__ import annotations

import pytest
import torch
from networks.paths import bare_structure, mlp, random_state
from torch import Tensor, nn

from lmccheck.paths.moves import alive_units, folded_columns, immovable, violation
from lmccheck.paths.path import Segment
from lmccheck.symmetry.structure import Structure

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def structure() -> Structure:
    """3-4-5-2: groups "0" of four units and "2" of five, the head is layer 4."""
    return bare_structure(mlp([3, 4, 5, 2]), 3)


@pytest.fixture
def state() -> State:
    return random_state(mlp([3, 4, 5, 2]), 1)


def edited(state: State, name: str, place: object, value: float) -> State:
    """Return a state with some numbers of one tensor replaced."""
    tensor = state[name].clone()
    tensor[place] = value
    return {**state, name: tensor}


def clause(
    structure: Structure, kind: str, first: State, second: State, twins: dict[str, Tensor] | None = None
) -> str | None:
    return violation(structure, Segment(kind, "", twins or {}), first, second)


def test_a_changes_the_head_only(structure: Structure, state: State) -> None:
    """Weight and bias of the last layer may change, whatever else changes is named."""
    for name in ("4.weight", "4.bias"):
        assert clause(structure, "a", state, edited(state, name, 0, 7.0)) is None
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert clause(structure, "a", state, edited(state, name, 0, 7.0)) == (
            f"tensor {name!r} changes, only the head may"
        )


def test_b_changes_rows_of_units_that_nothing_reads(structure: Structure, state: State) -> None:
    """A unit's incoming weights may change where its outgoing ones are zero at both ends, not at one."""
    unread = edited(state, "2.weight", (slice(None), 1), 0.0)
    for name in ("0.weight", "0.bias"):
        assert clause(structure, "b", unread, edited(unread, name, 1, 7.0)) is None
        assert clause(structure, "b", unread, edited(unread, name, 2, 7.0)) == (
            f"tensor {name!r} changes at position 2 of dimension 0, whose unit is read"
        )
    assert clause(structure, "b", unread, edited(state, "0.bias", 1, 7.0)) is not None  # read again at the end
    assert "only incoming weights" in str(clause(structure, "b", unread, edited(unread, "4.bias", 0, 7.0)))


def test_a_unit_read_by_dead_units_alone_is_dead(structure: Structure, state: State) -> None:
    """Whatever reaches nothing may change, through any number of layers; b moves know it."""
    cut = edited(state, "4.weight", (slice(None), [0, 1]), 0.0)  # units 0 and 1 of the last level reach nothing
    cut = edited(cut, "2.weight", ([2, 3, 4], 3), 0.0)  # unit 3 is read by those two alone
    alive = alive_units(structure, cut)
    assert alive["2"].tolist() == [False, False, True, True, True]
    assert alive["0"].tolist() == [True, True, True, False]
    assert clause(structure, "b", cut, edited(cut, "0.weight", 3, 7.0)) is None
    both = alive_units(structure, cut, state)  # read at one end is read on the way
    assert both["0"].all()
    assert both["2"].all()


def test_c_moves_outgoing_weights_between_twins(structure: Structure, state: State) -> None:
    """Units with equal rows share their outgoing weights as they like, as long as the sum stays."""
    for name in ("0.weight", "0.bias"):
        state = edited(state, name, 2, state[name][0])
    state["2.weight"][:, [0, 2]] = torch.tensor([1.0, 0.5], dtype=torch.float64)  # sums that floats hold exactly
    twins = {"0": torch.tensor([[0, 2]])}
    moved = edited(edited(state, "2.weight", (slice(None), 0), 0.0), "2.weight", (slice(None), 2), 1.5)
    assert clause(structure, "c", state, moved, twins) is None
    lost = edited(moved, "2.weight", (0, 2), 1.0)
    assert "more than outgoing weights moved" in str(clause(structure, "c", state, lost, twins))
    apart = edited(state, "0.bias", 2, 7.0), edited(moved, "0.bias", 2, 7.0)
    assert clause(structure, "c", *apart, twins) == "twins of group '0' differ in tensor '0.bias'"
    for wrong in ([[0, 0]], [[0, 2], [2, 1]], [[0, 4]], [[-1, 0]]):
        assert clause(structure, "c", state, moved, {"0": torch.tensor(wrong)}) == (
            "the twins of group '0' are no pairs of its units"
        )


def test_folded_columns_are_sums(structure: Structure, state: State) -> None:
    """The second of each pair gives its column to the first and keeps zero."""
    folded = folded_columns(structure, "2.weight", state["2.weight"], {"0": torch.tensor([[0, 2], [3, 1]])})
    expected = state["2.weight"].clone()
    expected[:, 0] += expected[:, 2]
    expected[:, 3] += expected[:, 1]
    expected[:, [1, 2]] = 0
    assert torch.equal(folded, expected)
    assert folded_columns(structure, "0.weight", state["0.weight"], {"2": torch.tensor([[0, 1]])}) is state["0.weight"]


def test_d_claims_nothing_but_finite_numbers_of_the_same_tensors(structure: Structure, state: State) -> None:
    """Any change passes; a missing tensor, or one that is not finite, is no point of a path."""
    assert clause(structure, "d", state, random_state(mlp([3, 4, 5, 2]), 2)) is None
    for number in (float("nan"), float("inf"), -float("inf")):
        assert clause(structure, "d", state, edited(state, "2.bias", 0, number)) == "tensor '2.bias' is not finite"
    fewer = {name: tensor for name, tensor in state.items() if name != "2.bias"}
    assert clause(structure, "d", state, fewer) == "tensor '2.bias' is only at one end"


def test_what_no_move_can_change_is_found(structure: Structure, state: State) -> None:
    """Every weight of a perceptron moves; a tensor that no unit owns does not."""
    assert immovable(structure, state, random_state(mlp([3, 4, 5, 2]), 2)) is None
    other = {**state, "scale": torch.ones(())}
    assert immovable(structure, {**state, "scale": torch.zeros(())}, other) == (
        "scale", "it is neither a unit's incoming weight nor the last layer's",
    )  # fmt: skip


def test_a_channel_is_read_where_one_of_its_places_is() -> None:
    """Behind a flatten: three of its four columns are zero, and it is alive all the same."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    channels = bare_structure(nn.Sequential(*layers), 1, 2, 2)
    (group,) = channels.groups
    state = random_state(nn.Sequential(*layers), 1)
    state["3.weight"][:, [4, 5, 7]] = 0.0
    assert alive_units(channels, state)[group].tolist() == [True, True, True]
    state["3.weight"][:, 6] = 0.0
    assert alive_units(channels, state)[group].tolist() == [True, False, True]


def test_a_negative_running_variance_is_no_point_of_a_path() -> None:
    """At either end, for every kind; zero is one."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)]
    channels = bare_structure(nn.Sequential(*layers), 1, 2, 2)
    good = random_state(nn.Sequential(*layers), 1)
    for number, said in ((-1e-9, "running variance '1.running_var' is negative"), (0.0, None)):
        bad = edited(good, "1.running_var", 2, number)
        assert [clause(channels, "d", *ends) for ends in ((good, bad), (bad, good))] == [said, said]
