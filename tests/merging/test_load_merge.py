"""A merge is made by its recipe, once, and measured as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import seeded, small_mlp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmccheck
from lmccheck.errors import CheckpointError, LmcError, SourceError
from lmccheck.merging.contract import read_recipe

State = dict[str, Tensor]


@pytest.fixture
def load_merge(folder: Path) -> Callable[..., lmccheck.Merge]:
    """Load a merge of the folder's two checkpoints, with any argument replaced."""

    def load(recipe: Any, **changes: Any) -> lmccheck.Merge:
        parents = {"x": "a.safetensors", "y": "b.safetensors"}
        given = {"parents": parents, "model": "models:mlp", "data": "data.safetensors", "base": folder, **changes}
        return lmccheck.load_merge(given.pop("parents"), recipe, **given)

    return load


def loss_of(weights: State, folder: Path) -> float:
    """Cross entropy by torch alone."""
    module = small_mlp()
    module.load_state_dict(weights)
    data = load_file(folder / "data.safetensors")
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(module.double()(data["inputs"].double()), data["targets"]))


def test_the_merge_is_the_weighted_sum_and_its_loss_is_measured(load_merge, folder: Path) -> None:
    """Against plain torch: the weights, the parents' losses, the merge's, and what the verdict compares."""
    merge = load_merge({"linear": {"x": 0.25, "y": 0.75}})
    a, b = load_file(folder / "a.safetensors"), load_file(folder / "b.safetensors")
    expected = {name: (0.25 * a[name].double() + 0.75 * b[name].double()).float() for name in a}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merge.merged.theta.items())
    with safe_open(merge.save(folder / "saved.safetensors"), "pt") as saved:
        told = json.loads(saved.metadata()["lmccheck"])
        assert all(torch.equal(saved.get_tensor(name), tensor) for name, tensor in expected.items())
    assert told["made"]["weights"] == {"x": 0.25, "y": 0.75}
    result = lmccheck.merged_loss(merge, limit=10.0)
    losses = {"x": loss_of(a, folder), "y": loss_of(b, folder)}
    assert {end.name: end.loss for end in result.finding.endpoints} == pytest.approx(losses, abs=1e-6)
    assert result.value == pytest.approx(loss_of(expected, folder) - min(losses.values()), abs=1e-6)
    assert result.passed


def test_a_function_of_the_users_own_makes_the_merge(load_merge, folder: Path) -> None:
    """It gets the parents by name and the base; a function of one argument the parents only."""
    seen = {}

    def task_arithmetic(parents: dict[str, State], base: State) -> State:
        seen.update(parents=list(parents), base=sorted(base))
        return {n: base[n] + 6 * (parents["x"][n] - base[n]) for n in base}

    merge = load_merge({"call": task_arithmetic}, base_model="b.safetensors", parents={"x": "a.safetensors"})
    a, b = load_file(folder / "a.safetensors"), load_file(folder / "b.safetensors")
    assert all(torch.equal(t, b[n] + 6 * (a[n] - b[n])) for n, t in merge.merged.theta.items())
    assert seen == {"parents": ["x"], "base": sorted(b)}
    assert lmccheck.merged_loss(load_merge({"call": lambda parents: parents["y"]}), limit=0.0, against="y").value == 0


def wrong(name: str) -> Callable[[dict[str, State]], Any]:
    """Return a recipe that does something wrong."""

    def merge(parents: dict[str, State]) -> Any:
        state = {n: t.clone() for n, t in parents["x"].items()}
        first = "0.weight"
        if name == "raises":
            raise ValueError("out of luck")
        if name == "no table":
            return list(state.values())
        if name == "shape":
            state[first] = state[first].T
        if name == "missing":
            del state[first]
        if name == "unknown":
            state["extra"] = state[first]
        if name == "nan":
            state[first][0] = math.nan
        if name == "no tensor":
            state[first] = 3  # type: ignore[assignment]  # which is what is refused
        if name == "changes":
            parents["y"][first].mul_(0.5)
        if name == "takes away":
            del parents["y"][first]
        return state

    return merge


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "raised ValueError: out of luck"),
        ("no table", "returned list, expected a table of the merge's tensors by name"),
        ("shape", r"returned '0.weight' as \(4, 6\) float32, the parents have \(6, 4\) float32"),
        ("missing", "returned no tensor '0.weight'"),
        ("unknown", "returned a tensor 'extra' that no parent has"),
        ("nan", "returned NaN in '0.weight'"),
        ("no tensor", "returned int for '0.weight', expected a tensor"),
        ("changes", "changed its input, tensor '0.weight' of y"),
        ("takes away", "changed its input, tensor '0.weight' of y"),
    ],
)
def test_a_function_that_makes_no_merge_is_told(load_merge, name: str, said: str) -> None:
    """One line that names the tensor."""
    with pytest.raises(SourceError, match=said):
        lmccheck.merged_loss(load_merge({"call": wrong(name)}), limit=1.0)


HALF = {"linear": {"x": 0.5, "y": 0.5}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parents": {"x": "a.safetensors", "y": "./a.safetensors"}}, "parents x and y are the same file"),
        ({"parents": {"x": "a.safetensors"}, "recipe": {"linear": {"x": 1}}}, "got one, x, and no base"),
        ({"parents": ["a.safetensors"]}, "parents: got list, expected a table of checkpoints by name"),
        ({"parents": {"mean": "a.safetensors", "y": "b.safetensors"}}, "got the name 'mean', expected a text other"),
        ({"parents": {"x": "a.safetensors", "y": "c.safetensors"}}, "c.safetensors"),
        ({"recipe": {"linear": {"x": 1, "z": 1}}}, "recipe.linear.z: no such parent"),
        ({"recipe": "liner"}, r"recipe: unknown recipe 'liner' \(did you mean 'linear'\?\)"),
        ({"sha256": {"z": "0" * 64}}, "sha256: got the key 'z'"),
        ({"base_model": "gone.safetensors"}, "gone.safetensors"),
    ],
)
def test_what_is_no_merge_is_told(load_merge, changes: dict[str, Any], said: str) -> None:
    """Before anything is made."""
    given = {"recipe": HALF, **changes}
    with pytest.raises(LmcError, match=said):
        load_merge(given.pop("recipe"), **given)


def test_pins_are_those_of_parents_and_base_and_no_input_is_overwritten(load_merge, folder: Path) -> None:
    """A wrong pin of either is told with the file; what a merge is saved as is none of its parents."""
    (folder / "base.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    half = {"call": lambda parents, base: {name: (parents["y"][name] + t) / 2 for name, t in base.items()}}
    for pinned, file in (("y", "b.safetensors"), ("base", "base.safetensors")):
        with pytest.raises(CheckpointError, match=rf"{file}: sha256 is \w+, the pin"):
            _ = load_merge(half, base_model="base.safetensors", sha256={pinned: "0" * 64}).merged
    before = (folder / "b.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        load_merge(HALF).save(folder / "b.safetensors")
    assert (folder / "b.safetensors").read_bytes() == before


def test_a_link_to_a_parent_is_that_parent(load_merge, folder: Path) -> None:
    """Whatever it is called."""
    (folder / "c.safetensors").symlink_to(folder / "a.safetensors")
    with pytest.raises(CheckpointError, match="parents x and y are the same file"):
        load_merge(HALF, parents={"x": "a.safetensors", "y": "c.safetensors"})


def test_a_recipe_that_needs_the_base_is_not_made_without(load_merge, folder: Path) -> None:
    """As its declaration says; with one it is."""
    plain = read_recipe(HALF, ("x", "y"), folder)
    needy = replace(plain, declared=replace(plain.declared, needs_base=True))
    with pytest.raises(CheckpointError, match=r"recipe linear needs the base .*mend: give base_model"):
        load_merge(needy)
    (folder / "c.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    assert load_merge(needy, base_model="c.safetensors").merged.theta


def test_a_recipe_gets_the_seed_of_its_merge(load_merge, folder: Path) -> None:
    """Or the one that a check makes it again with."""
    plain, seen = read_recipe(HALF, ("x", "y"), folder), []
    drawn = replace(plain.declared, make=lambda making: seen.append(making.seed) or plain.declared.make(making))
    merge = load_merge(replace(plain, declared=drawn), seed=7)
    assert merge.merged.theta
    merge.make(folder / "again")
    merge.make(folder / "other", seed=5)
    assert seen == [7, 7, 5]


def test_a_parent_or_a_base_of_another_network_is_told(load_merge, folder: Path) -> None:
    """With both files, though the wider first layer of a base fits no module and is loaded into none."""
    state = load_file(folder / "b.safetensors")
    save_file({**state, "0.weight": torch.zeros(7, 4)}, folder / "c.safetensors")
    save_file({**state, "0.bias": state["0.bias"].long()}, folder / "d.safetensors")
    told = r"{0}\.safetensors: tensor '0.{1}' .*, in .*a\.safetensors it "
    for file, tensor in (("c", "weight"), ("d", "bias")):
        with pytest.raises(CheckpointError, match=told.format(file, tensor)):
            load_merge(HALF, parents={"x": "a.safetensors", "y": f"{file}.safetensors"})
        with pytest.raises(CheckpointError, match=told.format(file, tensor)):
            load_merge(HALF, base_model=f"{file}.safetensors")


def test_a_function_gets_tensors_of_its_own() -> None:
    """State dicts of the caller are what they were, and that the function writes into its inputs is told."""
    data = (torch.randn(12, 4), torch.randint(0, 3, (12,)))
    parents = {"x": seeded(small_mlp, 0), "y": seeded(small_mlp, 1)}
    before = parents["y"]["0.weight"].clone()
    with pytest.raises(SourceError, match=r"changed its input, tensor '0.weight' of y"):
        _ = lmccheck.load_merge(parents, {"call": wrong("changes")}, model=small_mlp, data=data).merged
    assert torch.equal(parents["y"]["0.weight"], before)


def test_against_names_a_parent_or_a_rule(load_merge) -> None:
    """The reference is the better one, the worse one, their mean, or the one that is named."""
    merge = load_merge(HALF)
    found = lmccheck.merged_loss(merge, limit=9.0)
    losses = {end.name: end.loss for end in found.finding.endpoints}
    merged = found.details["merged"]["loss"]
    references = {"better-parent": min(losses.values()), "worse-parent": max(losses.values()), **losses}
    for against, loss in {**references, "mean": sum(losses.values()) / 2}.items():
        assert lmccheck.merged_loss(merge, limit=9.0, against=against).value == pytest.approx(merged - loss)
    with pytest.raises(LmcError, match=r"against = 'z': no such parent; expected one of better-parent, worse-parent"):
        lmccheck.merged_loss(merge, against="z")


def test_several_data_sets_are_judged_by_the_worst(load_merge, folder: Path) -> None:
    """By name, each with its own limit where that is a share; a table names each parent's own task."""
    torch.manual_seed(3)
    other = (torch.randn(30, 4), torch.randint(0, 3, (30,)))
    merge = load_merge(HALF, sources={"other": other, "same": "data.safetensors"})
    both = lmccheck.merged_loss(merge, data=["same", "other"], limit=9.0)
    alone = {name: lmccheck.merged_loss(merge, data=name, limit=9.0).value for name in ("same", "other")}
    assert both.value == max(alone.values())
    assert str(both.finding.where) == f"on={max(alone, key=alone.__getitem__)}"
    own = lmccheck.merged_loss(merge, data={"x": "same", "y": "other"}, limit=9.0)
    assert [found["reference"] for found in own.details["data"].values()] == ["x", "y"]
    with pytest.raises(LmcError, match=r"data.z: no such parent; expected one of x, y"):
        lmccheck.merged_loss(merge, data={"z": "same"}, limit=9.0)


def test_the_merge_is_made_once_and_leaves_nothing(load_merge, monkeypatch, tmp_path: Path) -> None:
    """However many data sets and checks look at it; its files go with it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    calls = []

    def first(parents: dict[str, State]) -> State:
        calls.append(1)
        return parents["x"]

    merge = load_merge({"call": first}, sources={"other": "data.safetensors"})
    before = set(tmp_path.iterdir())
    lmccheck.merged_loss(merge, data=["other", "data.safetensors"], limit=1.0)
    lmccheck.merged_loss(merge, limit=1.0)
    assert len(calls) == 1
    assert set(tmp_path.iterdir()) != before
    del merge
    import gc

    gc.collect()
    assert set(tmp_path.iterdir()) == before


def test_a_state_dict_is_a_parent_too() -> None:
    """Nothing has to lie in a file."""
    data = (torch.randn(12, 4), torch.randint(0, 3, (12,)))
    parents = {"x": seeded(small_mlp, 0), "y": seeded(small_mlp, 1)}
    merge = lmccheck.load_merge(parents, HALF, model=small_mlp, data=data)
    assert torch.equal(merge.merged.theta["0.weight"], (parents["x"]["0.weight"] + parents["y"]["0.weight"]) / 2)
    with pytest.raises(CheckpointError, match=r"tensor '.*' is missing"):
        lmccheck.load_merge({**parents, "z": {}}, {"linear": {"x": 1, "y": 1, "z": 1}}, model=small_mlp, data=data)


def test_a_prefix_of_some_parents_is_taken_off(load_merge, folder: Path) -> None:
    """As DataParallel saves one of them: the merge has the module's names, and is that of plain files."""
    state = load_file(folder / "b.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, folder / "c.safetensors")
    parents = {"x": "a.safetensors", "y": "c.safetensors"}
    found, plain = load_merge(HALF, parents=parents).merged.theta, load_merge(HALF).merged.theta
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())


def test_a_name_that_no_data_have_is_told(load_merge) -> None:
    """With the nearest that there is."""
    merge = load_merge(HALF, sources={"other": "data.safetensors"})
    with pytest.raises(
        SourceError, match=r"data 'othr': no such name \(did you mean 'other'\?\), expected one of other"
    ):
        lmccheck.merged_loss(merge, data="othr", limit=1.0)
