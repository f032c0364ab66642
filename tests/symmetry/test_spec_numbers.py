"""What a spec says of itself, and what verification makes of every trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from networks import Written
from networks.small import small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import SymmetryError
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.verify import deviation, require

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def spec() -> PermutationSpec:
    """4-6-5-3: groups of 6 and of 5."""
    return lmccheck.discover_symmetry(small_mlp(), (X,))


def test_the_free_share_is_that_of_numbers_which_some_group_moves(spec: PermutationSpec) -> None:
    """All but the last layer's three biases; of a matrix it is enough that either side moves."""
    assert spec.free_share == pytest.approx(80 / 83, abs=1e-15)


def test_in_a_moving_element_no_group_stays() -> None:
    """Also of two units, which a random element leaves in place half of the time."""
    two = lmccheck.discover_symmetry(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), (X,))
    (group,) = two.groups
    assert any(two.random(seed)[group.name].tolist() == [0, 1] for seed in range(20))
    assert all(two.moving(seed)[group.name].tolist() == [1, 0] for seed in range(20))


@pytest.mark.parametrize("wrong", [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 6], [-1, 0, 1, 2, 3, 4]])
def test_what_is_no_permutation_is_never_applied(spec: PermutationSpec, wrong: list[int]) -> None:
    """Twice the same unit, one that is not there, one from the end."""
    first = spec.groups[0].name
    with pytest.raises(SymmetryError, match=r"not a permutation of 0\.\.5"):
        spec.apply(small_mlp().state_dict(), {**spec.identity(), first: torch.tensor(wrong)})


class Chosen:
    """A spec whose first element is ``first`` and whose others are ``others``."""

    def __init__(self, spec: PermutationSpec, first: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.moving, self.random = (lambda seed=0: dict(first)), (lambda seed=0: dict(others))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.spec, name)


def wrong_spec() -> PermutationSpec:
    """The first layer's rows move, and what reads them does not."""
    return lmccheck.spec_from_groups(small_mlp(), [{"name": "0", "size": 6, "slots": [{"tensor": "0.weight"}]}])


@pytest.mark.parametrize("first", [True, False])
def test_one_trial_that_shows_a_change_is_enough(first: bool) -> None:
    """The one in which every group moves, or any of the random ones."""
    spec = wrong_spec()
    still, moved = spec.identity(), spec.moving(1)
    elements = (moved, still) if first else (still, moved)
    assert deviation(Chosen(spec, *elements), small_mlp(), (X,)) > 1e-3
    assert deviation(Chosen(spec, still, still), small_mlp(), (X,)) <= 1e-12


def difference() -> nn.Module:
    """y = √(w₀ − w₁)·x."""
    return Written(lambda s, x: torch.sqrt(s.w[0] - s.w[1]) * x, w=nn.Parameter(torch.tensor([2.0, 1.0])))


def test_an_output_that_is_no_number_is_no_measurement() -> None:
    """After the element it is an infinite change; before it, nothing can be compared."""
    module = difference()
    spec = lmccheck.spec_from_groups(module, [{"name": "w", "size": 2, "slots": [{"tensor": "w"}]}])
    found = deviation(spec, module, (X,), weights={"w": torch.tensor([2.0, 1.0])}, trials=1)
    assert found == float("inf")
    with pytest.raises(SymmetryError, match="not finite on the example inputs"):
        deviation(spec, module, (X,), weights={"w": torch.tensor([1.0, 2.0])})


def test_a_measurement_needs_trials_and_an_output_that_depends_on_weights(spec: PermutationSpec) -> None:
    """Otherwise any spec would do."""
    with pytest.raises(SymmetryError, match="trials = 0, expected at least 1"):
        deviation(spec, small_mlp(), (X,), trials=0)
    deaf = Written(lambda s, x: x + 0 * s.w.sum(), w=nn.Parameter(torch.tensor([2.0, 1.0])))
    any_spec = lmccheck.spec_from_groups(deaf, [{"name": "w", "size": 2, "slots": [{"tensor": "w"}]}])
    with pytest.raises(SymmetryError, match="does not depend on its weights"):
        deviation(any_spec, deaf, (X,))


def test_both_permutations_of_a_product_are_checked(spec: PermutationSpec) -> None:
    """The first and the second alike."""
    good, bad = spec.random(1), {**spec.random(1), spec.groups[0].name: torch.zeros(6, dtype=torch.int64)}
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(SymmetryError, match="not a permutation"):
            lmccheck.symmetry.compose.compose(spec, *pair)


def test_a_spec_that_is_a_little_wrong_is_refused() -> None:
    """Units that differ by a millionth of the output are told apart."""
    nearly = Written(lambda s, x: x * (s.w[0] + s.w[1]) + 1e-6 * s.w[0], w=nn.Parameter(torch.tensor([2.0, 1.0])))
    spec = lmccheck.spec_from_groups(nearly, [{"name": "w", "size": 2, "slots": [{"tensor": "w"}]}])
    assert 1e-9 < deviation(spec, nearly, (X,)) < 1e-5
    with pytest.raises(SymmetryError, match="changes the output by"):
        require(spec, nearly, (X,))
