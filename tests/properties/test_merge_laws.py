"""A merge keeps the laws that its recipe claims: on its parents and on drawn networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import seeded, small_mlp
from safetensors.torch import save_file
from torch import Tensor

import lmccheck

State = dict[str, Tensor]


@pytest.fixture
def laws(tmp_path: Path) -> Callable[..., lmccheck.Result]:
    """Try the laws of a recipe on two parents of one base."""
    base = seeded(small_mlp, 0)
    generator = torch.Generator().manual_seed(1)
    save_file(base, tmp_path / "base.safetensors")
    for name in "xy":
        noise = {k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        save_file({k: v + noise[k] for k, v in base.items()}, tmp_path / f"{name}.safetensors")

    def tried(recipe: Any, **options: Any) -> lmccheck.Result:
        parents = {n: str(tmp_path / f"{n}.safetensors") for n in "xy"}
        data = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3
        origin = str(tmp_path / "base.safetensors")
        merge = lmccheck.load_merge(parents, recipe, model=small_mlp, data=data, base_model=origin, device="cpu")
        return lmccheck.merge_laws(merge, examples=5, **options)

    return tried


def test_a_weighted_sum_keeps_its_laws(laws) -> None:
    """Weights that sum to one: all laws but scale, which they do not claim, and which is listed as such."""
    result = laws({"linear": {"x": 0.5, "y": 0.5}})
    assert result.passed
    verdicts = result.details["laws"]
    assert {law for law, verdict in verdicts.items() if verdict == "not claimed"} == {"scale"}
    assert {verdicts[law] for law in ("unit", "equal", "order", "equivariant", "linear", "seed")} == {"holds"}
    assert "not claimed by linear: scale" in result.notes
    assert result.details["drawn"] == 5


def test_weights_are_scaled_where_a_recipe_has_some(laws) -> None:
    """A plain sum that claimed to be the same of weights three times as large would break that."""
    from lmccheck.merging.contract import read_recipe

    recipe = read_recipe({"linear": {"x": 0.5, "y": 0.5}}, ("x", "y"), Path())
    result = laws(dataclasses.replace(recipe, claims=frozenset({"scale"})))
    assert result.details["laws"]["scale"] == "broken"


def test_a_normalised_sum_keeps_scale_as_well(laws) -> None:
    """Nothing is left that it does not claim."""
    result = laws({"linear": {"x": 0.7, "y": 0.7}, "normalize": True})
    assert result.passed
    assert "not claimed" not in result.details["laws"].values()


def test_a_merge_that_is_its_base_fails(laws) -> None:
    """A function that forgets to write its result into the copy returns the base: bit for bit, and no merge."""

    def forgot(parents: dict[str, State], base: State) -> State:
        merged = dict(base)
        for name in base:
            _ = (parents["x"][name] + parents["y"][name]) / 2
        return merged

    result = laws({"call": forgot})
    assert result.verdict == "fail"
    assert (result.value, result.details["laws"]["mixed"]) == (1.0, "broken")
    assert any("the merge equals the base bit for bit: nothing was merged into it" in line for line in result.lines)


def test_a_function_that_draws_without_its_seed_fails(laws) -> None:
    """Random dropping (as DARE does) must give the same bytes when it is run again."""

    def dare(parents: dict[str, State], base: State) -> State:
        return {k: b + 2 * (parents["x"][k] - b) * (torch.rand(b.shape) < 0.5) for k, b in base.items()}

    result = laws({"call": dare})
    assert result.verdict == "fail"
    assert any("seed: made twice with one seed, the merge differs: tensor '0." in line for line in result.lines)


@pytest.mark.parametrize("recipe", [{"uniform": True}, {"fedavg": {"x": 30, "y": 11}}])
def test_means_keep_every_law_that_they_claim(laws, recipe: Any) -> None:
    """The soup and the mean of clients, the latter whatever all counts are multiplied by."""
    result = laws(recipe)
    assert result.passed, result
    unclaimed = {law for law, told in result.details["laws"].items() if told == "not claimed"}
    assert unclaimed == ({"scale"} if "uniform" in recipe else set())
    assert result.details["drawn"] == 5


def test_a_soup_is_tried_on_its_own_parents_only(laws) -> None:
    """What needs validation data is not drawn, and that is said."""
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 3
    result = laws({"greedy_soup": data})
    assert result.passed, result
    assert any("greedy_soup was not tried on drawn networks" in note for note in result.notes)


def test_what_a_recipe_claims_once_it_ran_is_tried(laws) -> None:
    """Half of each, it says when it is made, and makes the first, one and a half times, integers of tables too."""
    from lmccheck.merging.average import write_tensors
    from lmccheck.merging.contract import Declared, Made, Making, read_recipe

    def make(making: Making) -> Made:
        first = next(iter(making.parents.values()))
        tensors = {name: 1.5 * first.get(name) for name in first.tensors}
        return Made(write_tensors(making, tensors), {"weights": {"x": 0.5, "y": 0.5}, "claims": ["linear"]})

    recipe = read_recipe({"uniform": True}, ("x", "y"), Path())
    late = Declared("late", make, recipe.declared.read, "true", claims=lambda settings: frozenset())
    result = laws(dataclasses.replace(recipe, declared=late, claims=frozenset()))
    assert {result.details["laws"][law] for law in ("linear", "dtypes")} == {"broken"}


@pytest.mark.parametrize("once", [True, False])
def test_a_sum_in_bfloat16_is_none_that_is_rounded_once(once: bool) -> None:
    """Rounded after every step: what a recipe may do that does not say otherwise."""
    from lmccheck.merging.average import write_tensors
    from lmccheck.merging.contract import RECIPES, Made, Making, read_recipe

    def make(making: Making) -> Made:
        def mean(name: str) -> Tensor:
            total = torch.zeros(making.parents["p0"].get(name).shape, dtype=torch.bfloat16)
            for one in making.parents.values():
                total += one.get(name) / len(making.parents)
            return total

        return Made(write_tensors(making, {name: mean(name) for name in making.parents["p0"].tensors}), facts)

    parents = {f"p{i}": {n: t.bfloat16() for n, t in seeded(small_mlp, i).items()} for i in range(3)}
    facts = {"weights": dict.fromkeys(parents, 1 / 3)}
    plain = read_recipe("uniform", tuple(parents), Path())
    steps = dataclasses.replace(RECIPES.get("uniform"), make=make, once=once, drawn="")
    recipe = dataclasses.replace(plain, declared=steps, claims=frozenset({"linear"}))
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3
    result = lmccheck.merge_laws(lmccheck.load_merge(parents, recipe, model=small_mlp, data=data, device="cpu"))
    assert result.details["laws"]["linear"] == ("broken" if once else "holds")


def test_a_recipe_that_drops_parents_beyond_the_fourth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many parents in bfloat16 one less is within what steps round; a drawn network of twelve tells it."""
    from lmccheck.merging import drawn
    from lmccheck.merging.average import write_tensors
    from lmccheck.merging.contract import RECIPES, Declared, Made, Making

    def make(making: Making) -> Made:
        first, *others = making.parents.values()
        kept = [first, *others][:-1] if len(others) > 3 else [first, *others]
        tensors = {
            n: torch.stack([one.get(n).double() for one in kept]).mean(0).to(first.get(n).dtype)
            if header.is_floating_point
            else first.get(n)
            for n, header in first.tensors.items()
        }
        return Made(write_tensors(making, tensors), {"weights": dict.fromkeys(making.parents, 1 / len(making.parents))})

    monkeypatch.setattr(drawn, "SHRINKS", 10)  # which take long
    uniform = RECIPES.get("uniform")
    base, generator = seeded(small_mlp, 0), torch.Generator().manual_seed(1)
    parents = {
        f"p{i}": {k: (v + 0.01 * torch.randn(v.shape, generator=generator)).bfloat16() for k, v in base.items()}
        for i in range(13)
    }
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3
    merge = lmccheck.load_merge(parents, {"uniform": True}, model=small_mlp, data=data, device="cpu")
    assert lmccheck.merge_laws(merge, examples=1).passed
    dropping = Declared("dropping", make, uniform.read, "true", claims=lambda settings: frozenset({"linear"}))
    merge = lmccheck.load_merge(
        parents, dataclasses.replace(merge.recipe, declared=dropping, claims=frozenset({"linear"})), model=small_mlp,
        data=data, device="cpu",
    )  # fmt: skip
    result = lmccheck.merge_laws(merge, examples=3)
    assert result.verdict == "fail"
    assert result.details["laws"]["linear"] == "broken"
    assert "p11: " in result.details["smallest"]["linear"]
