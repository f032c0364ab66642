"""Weighted sums of checkpoints: exact but for one rounding, one tensor at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmccheck.errors import CheckpointError, LmcError
from lmccheck.merging.average import Sum, common_headers, rounded
from lmccheck.merging.contract import read_recipe
from lmccheck.store.checkpoint import look_at


def merged(folder: Path, recipe: object, **parents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make a merge of state dicts that were saved to files, and read it back."""
    folder.mkdir(exist_ok=True)
    for name, state in parents.items():
        save_file(state, folder / f"{name}.safetensors")
    opened = {name: look_at(f"{name}.safetensors", folder, name) for name in parents}
    made = read_recipe(recipe, tuple(parents), folder).make(opened, None, folder / "out")
    return load_file(made.path)


def neighbours(value: Tensor) -> list[Fraction]:
    """Return a number of some dtype and those beside it, by counting its bits."""
    kind = torch.int16 if value.dtype.itemsize == 2 else torch.int32
    return [Fraction(float((value.view(kind) + k).view(value.dtype))) for k in (-1, 0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sum_is_the_exact_sum_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Checked against rational arithmetic; float64 may differ from it where the sum lies within 4e-16 of a tie."""
    torch.manual_seed(0)
    weights = {"x": 0.3, "y": 0.45, "z": -0.1}
    parents = {name: {"w": torch.randn(200).to(dtype)} for name in weights}
    found = merged(tmp_path, {"linear": weights}, **parents)["w"]
    for k in range(200):
        exact = sum(Fraction(weights[n]) * Fraction(float(p["w"][k])) for n, p in parents.items())
        below, here, above = (abs(value - exact) for value in neighbours(found[k]))
        assert here <= min(below, above) + Fraction(4e-16)


def test_rounding_to_sixteen_bits_is_not_done_twice() -> None:
    """Just above half way between two bfloat16: float32 would make a tie of it, which goes to the even one below."""
    value = torch.tensor([1 + 2**-8 + 2**-40, -(1 + 2**-8 + 2**-40), 1 + 2**-8, 0.0], dtype=torch.float64)
    assert rounded(value, "bfloat16").tolist() == [1 + 2**-7, -(1 + 2**-7), 1.0, 0.0]
    below = torch.tensor([1 + 3 * 2**-8 - 2**-23 + 2**-26], dtype=torch.float64)  # half way is next to it in float32
    assert rounded(below, "bfloat16").tolist() == [1 + 2**-7]
    assert float(value[0].to(torch.bfloat16)) == 1.0  # what torch makes of it


@pytest.mark.parametrize(("dtype", "half", "least"), [("bfloat16", -8, -40), ("float16", -11, -24)])
def test_no_step_of_a_sum_is_rounded(dtype: str, half: int, least: int, tmp_path: Path) -> None:
    """1 and half a unit and the least number is nearest to one unit above 1: as a sum, and as a mean that runs."""
    parts = {n: {"w": torch.tensor([p]).to(getattr(torch, dtype))} for n, p in zip("xyz", (1, 2**half, 2**least))}  # noqa: B905
    ones = {"linear": dict.fromkeys(parts, 1.0)}
    assert merged(tmp_path, ones, **parts)["w"].tolist() == [1 + 2 * 2**half]
    opened = {n: look_at(state, tmp_path, n) for n, state in {**parts, "o": {"w": 0 * parts["x"]["w"]}}.items()}
    running = Sum(common_headers(opened, None))
    for one in opened.values():
        running = running.plus(one)
    assert running.mean()["w"].tolist() == [(1 + 2 * 2**half) / 4]


def test_the_order_of_parents_changes_no_bit(tmp_path: Path) -> None:
    """(0.1 + 0.2) + 0.3 is another number of float64 than (0.3 + 0.2) + 0.1."""
    parts = {n: {"w": torch.tensor([p], dtype=torch.float64)} for n, p in {"x": 0.1, "y": 0.2, "z": 0.3}.items()}
    there, back = (
        merged(tmp_path / n, "uniform", **p) for n, p in (("1", parts), ("2", dict(reversed(parts.items()))))
    )
    assert torch.equal(there["w"], back["w"])


def test_float64_is_summed_in_float64(tmp_path: Path) -> None:
    """Of any parent, not of the first alone: 2⁻⁴⁰ beside 1 is nothing in float32."""
    parts = {n: {"w": torch.tensor([p], dtype=torch.float64)} for n, p in {"x": 0.0, "y": 1 + 2**-40}.items()}
    assert merged(tmp_path, "uniform", **parts)["w"].tolist() == [(1 + 2**-40) / 2]


def test_a_merge_does_not_say_how_its_parent_was_merged(tmp_path: Path) -> None:
    """Of the metadata of the first, what is its own history is left out."""
    for name, said in {"x": {"lmccheck": '{"recipe": "uniform"}', "author": "me"}, "y": {}}.items():
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors", said)
    opened = {name: look_at(f"{name}.safetensors", tmp_path, name) for name in "xy"}
    made = read_recipe("uniform", ("x", "y"), tmp_path).make(opened, None, tmp_path / "out")
    with safe_open(made.path, "pt") as file:
        assert file.metadata() == {"author": "me"}


def test_of_many_weights_six_are_shown() -> None:
    """And that there are more."""
    recipe = read_recipe({"linear": dict.fromkeys("abcdefg", 0.5)}, tuple("abcdefg"), Path())
    assert recipe.text == "linear (a 0.5, b 0.5, c 0.5, d 0.5, e 0.5, f 0.5, …)"


def test_a_file_that_a_recipe_names_is_an_input(tmp_path: Path) -> None:
    """One of counts and one of a function: neither may be written to, and both are held."""
    for name in ("counts.json", "pipe.py", "other.py"):
        (tmp_path / name).touch()
    recipes: list[dict[str, object]] = [{"fedavg": "counts.json"}, {"call": "pipe:merge"}, {"uniform": True}]
    found = [read_recipe(recipe, ("x", "y"), tmp_path).inputs for recipe in recipes]
    assert found == [(tmp_path / "counts.json",), (tmp_path / "pipe.py",), ()]


def test_parents_of_other_shapes_are_refused(tmp_path: Path) -> None:
    """Though they could be summed."""
    with pytest.raises(CheckpointError, match=r"parent y: tensor 'w' has shape \(1,\), in parent x it has \(3,\)"):
        merged(tmp_path, "uniform", x={"w": torch.ones(3)}, y={"w": torch.ones(1)})


def test_the_sum_is_as_written_unless_it_is_normalised(tmp_path: Path) -> None:
    """0.5 and 0.7 of ones are 1.2; with normalize they are 1."""
    ones = {"w": torch.ones(3)}
    table = {"linear": {"x": 0.5, "y": 0.7}}
    assert merged(tmp_path, table, x=ones, y=ones)["w"].tolist() == pytest.approx([1.2] * 3)
    assert merged(tmp_path, {**table, "normalize": True}, x=ones, y=ones)["w"].tolist() == [1.0] * 3


def test_whole_numbers_are_kept_or_refused(tmp_path: Path) -> None:
    """Equal ones stay; differing ones have no mean; of BatchNorm's counters the largest is taken."""
    state = {"ids": torch.arange(3), "bn.num_batches_tracked": torch.tensor(7), "w": torch.zeros(2)}
    other = {**state, "bn.num_batches_tracked": torch.tensor(9)}
    half = {"linear": {"x": 0.5, "y": 0.5}}
    found = merged(tmp_path, half, x=state, y=other)
    assert (found["ids"].tolist(), int(found["bn.num_batches_tracked"])) == ([0, 1, 2], 9)
    with pytest.raises(CheckpointError, match="parent y: tensor 'ids' is int64 and not that of parent x"):
        merged(tmp_path, half, x=state, y={**state, "ids": torch.arange(3) + 1})


def test_infinities_in_which_parents_agree_stay(tmp_path: Path) -> None:
    """A mask is one whatever the weights: 0 times infinity is nothing."""
    mask = {"mask": torch.tensor([0.0, -torch.inf])}
    assert merged(tmp_path, {"linear": {"x": 1.0, "y": 0.0}}, x=mask, y=mask)["mask"].tolist() == [0.0, -torch.inf]


def test_parents_of_several_dtypes_need_one_said(tmp_path: Path) -> None:
    """Nobody guesses which is meant."""
    x, y = {"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.bfloat16)}
    half = {"linear": {"x": 0.5, "y": 0.5}}
    with pytest.raises(CheckpointError, match="parent y: tensor 'w' is bfloat16, in parent x it is float32; mend: say"):
        merged(tmp_path, half, x=x, y=y)
    assert merged(tmp_path, {**half, "dtype": "float16"}, x=x, y=y)["w"].dtype == torch.float16


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"liner": {}}, ": unknown recipe 'liner' (did you mean 'linear'?); expected one of "),
        ({"linear": {"x": 1, "y": 1}, "call": "m:f"}, ": got 2 recipes, linear and call, expected one"),
        ({"linear": {"x": 1, "why": 1}}, ".linear.why: no such parent; expected x, y"),
        ({"linear": {"x": 1}}, ".linear: nothing is said of parent 'y', expected weights for each"),
        ({"linear": {"x": float("nan"), "y": 1}}, ".linear.x: got nan, expected a finite number"),
        ({"linear": {"x": True, "y": 1}}, ".linear.x: got True, expected a finite number"),
        ({"linear": {"x": 1, "y": 1}, "normalize": "no"}, ".normalize: got 'no', expected true or false"),
        ({"linear": {"x": 0, "y": 0}}, ".linear: every weight is 0"),
        ({"linear": {"x": 1, "y": -1}, "normalize": True}, ".normalize: the weights sum to 0"),
        ({"linear": {"x": 1, "y": 1}, "normalise": True}, ".normalise: unknown option of linear (did you mean 'norm"),
        ({"linear": {"x": 1, "y": 1}, "dtype": "float"}, ".dtype: got 'float' (did you mean 'float"),
        ({"call": "no callable"}, ".call: got 'no callable', expected \"module:callable\""),
        (3, ": got 3, expected a table with one of "),
        ({}, ": got {}, expected a table with one of "),
    ],
)
def test_a_recipe_that_says_something_else_is_told(given: object, said: str) -> None:
    """What was got, what is expected, the nearest name."""
    with pytest.raises(LmcError) as caught:
        read_recipe(given, ("x", "y"), Path())
    assert str(caught.value).startswith(said)
