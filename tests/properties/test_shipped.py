"""What is published is what was measured: the merge, none of its parents, in its dtype, and it loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.beside import folder, words
from networks.small import seeded, small_batchnorm, small_mlp
from safetensors.torch import save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError

State = dict[str, Tensor]
HALF = {"linear": {"x": 0.5, "y": 0.5}}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, State]:
    """Two parents and their base, on disk."""
    base = seeded(small_mlp, 0)
    generator = torch.Generator().manual_seed(1)
    noise = {n: {k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()} for n in "xy"}
    states = {"base": base, **{n: {k: v + noise[n][k] for k, v in base.items()} for n in "xy"}}
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    return states


@pytest.fixture
def shipped(given: dict[str, State], tmp_path: Path) -> Callable[..., lmccheck.Result]:
    """Judge a state as what is shipped of a merge of the two parents."""

    def judge(state: State, recipe: Any = HALF, tolerance: Any = "bits", **changes: Any) -> lmccheck.Result:
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "out.safetensors")
        inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
        options = {
            "model": small_mlp, "data": (inputs, torch.arange(30) % 3), "base_model": "base.safetensors",
            "base": tmp_path, "device": "cpu", "shipped": "out.safetensors", **changes,
        }  # fmt: skip
        merge = lmccheck.load_merge({n: f"{n}.safetensors" for n in "xy"}, recipe, **options)
        return lmccheck.shipped(merge, tolerance=tolerance)

    return judge


def total(given: dict[str, State], x: float, y: float) -> State:
    """The weighted sum, in float64 and rounded once."""
    return {k: (x * given["x"][k].double() + y * given["y"][k].double()).float() for k in given["x"]}


def test_the_merge_itself_passes(shipped, given) -> None:
    """The sum made by hand, rounded once, is the recipe's bit for bit; nothing is measured that need not be."""
    result = shipped(total(given, 0.5, 0.5))
    assert (result.verdict, result.value, result.details["differing"]) == ("pass", 0.0, {})
    assert "next" not in result.details


@pytest.mark.parametrize(
    ("weights", "normalize", "ships", "said"),
    [
        ((0.7, 0.7), False, (0.5, 0.5), "what is shipped is the sum divided by the weights' sum (a normalised sum)"),
        ((0.7, 0.7), True, (0.7, 0.7), "what is shipped is the weighted sum (0.7·x, 0.7·y), not divided by"),
        ((0.9, 0.1), False, (0.5, 0.5), "what is shipped is the plain mean of the parents"),
        ((0.9, 0.1), False, (0.1, 0.9), "what is shipped is the same weights given to other parents"),
        ((0.5, 0.5), False, (0.25, 0.75), "what is shipped is 0.25·x + 0.75·y"),
        ((0.5, 0.5), False, (1.0, 1.0), "what is shipped is the plain sum of the parents"),
    ],
)
def test_another_recipe_is_named(shipped, given, weights, normalize, ships, said) -> None:
    """Weighted or normalised, other weights, exchanged weights: the failure says which sum is shipped, and where."""
    recipe = {"linear": dict(zip("xy", weights, strict=True)), "normalize": normalize}
    result = shipped(total(given, *ships), recipe)
    assert result.verdict == "fail"
    assert result.details["next"][0].startswith("--lmc-aligned-dir=DIR with the merge's other checks")
    assert any(said in line for line in result.lines), result.lines
    shown = {k: (1 / sum(weights) if normalize else 1) * v for k, v in total(given, *weights).items()}
    largest = max(float((shown[k] - v).abs().max()) for k, v in total(given, *ships).items())
    assert result.value == pytest.approx(largest, rel=1e-5)
    assert f"furthest: tensor {result.details['worst']['tensor']!r}" in result.lines[0]
    assert {"x", "y", "the merge", "shipped"} == result.details["losses"].keys()


def test_a_sum_is_claimed_only_of_the_tensors_that_are_one(shipped, given) -> None:
    """One tensor of four was added up and never divided; the others are the merge."""
    state = {**total(given, 0.5, 0.5), "2.weight": total(given, 1.0, 1.0)["2.weight"]}
    text = "\n".join(shipped(state).lines)
    assert f"what differs, 1 of {len(state)} tensors, is the plain sum of the parents, never divided" in text
    assert "what is shipped is" not in text


def test_one_number_is_found(shipped, given) -> None:
    """One entry of one tensor, one unit in the last place off, fails bits and passes a tolerance above it."""
    state = total(given, 0.5, 0.5)
    state["2.weight"][3, 1] = torch.nextafter(state["2.weight"][3, 1], torch.tensor(9.0))
    result = shipped(state)
    assert result.verdict == "fail"
    assert result.details["worst"]["tensor"] == "2.weight"
    assert result.details["worst"]["index"] == [3, 1]
    assert "(1 units in the last place); 1 of 30 entries differ" in result.lines[0]
    assert shipped(state, tolerance=1e-6).passed
    far = shipped(state, tolerance=1e-9)
    assert "differs from what the recipe makes by more than 1e-09" in far.lines[0]
    assert not far.passed


@pytest.mark.parametrize(("name", "who"), [("base", "the base"), ("x", "parent x")])
def test_a_parent_or_the_base_is_no_merge(shipped, given, name: str, who: str) -> None:
    """What equals one of them bit for bit fails, whatever the tolerance."""
    result = shipped(given[name], tolerance=100.0)
    assert result.verdict == "fail"
    assert f"equals {who} bit for bit: nothing was merged into it" in result.lines[0]


@pytest.mark.parametrize("weights", [{"x": 0.5, "y": 0.0}, {"x": 1.0, "y": 0.25}])
def test_a_share_of_a_parent_or_more_than_it_is_not_that_parent(shipped, given, weights) -> None:
    """Half of x, or x and a quarter of y: x itself was never merged."""
    result = shipped(given["x"], {"linear": weights})
    assert result.verdict == "fail"
    assert "equals parent x bit for bit: nothing was merged into it" in result.lines[0]


def test_a_recipe_that_takes_one_parent_ships_that(shipped, given) -> None:
    """Weight 1 of one parent is that parent: a note, no failure."""
    result = shipped(given["x"], {"linear": {"x": 1.0, "y": 0.0}})
    assert result.passed
    assert "it is parent x, which the recipe takes alone" in result.notes


def test_another_dtype_is_explained_by_rounding(shipped, given) -> None:
    """A float32 merge in bfloat16 is not the same bits; ``rounded`` says that it is meant, and nothing more passes."""
    narrow = {k: v.bfloat16() for k, v in total(given, 0.5, 0.5).items()}
    result = shipped(narrow)
    assert result.verdict == "fail"
    assert "is bfloat16, expected float32; it is the merge rounded to that" in result.lines[0]
    rounded = shipped(narrow, tolerance="rounded")
    assert rounded.passed
    assert "rounded from float32 to bfloat16, by" in rounded.notes[0]
    narrow["0.weight"][0, 0] *= 1.01
    assert not shipped(narrow, tolerance="rounded").passed


def test_what_is_wrong_beside_numbers_is_counted(shipped, given) -> None:
    """Six tensors of another dtype; one renamed is one missing, one unknown, and a file that does not load."""
    made = total(given, 0.5, 0.5)
    exact = {k: (v * 64).round() / 64 for k, v in made.items()}  # which float64 holds as well
    recipe = {"call": lambda parents: exact}
    found = shipped({k: v.double() for k, v in exact.items()}, recipe)
    assert (found.verdict, found.value, found.limit, found.unit) == ("fail", 6.0, 0.0, "differences")
    renamed = {k.replace("4.weight", "head.weight"): v for k, v in made.items()}
    for tolerance in ("bits", 10.0):
        found = shipped(renamed, tolerance=tolerance)
        assert (found.verdict, found.value, found.limit) == ("fail", 3.0, 0.0)
    parent = shipped(given["x"], tolerance=100.0)
    assert (parent.verdict, parent.value, parent.limit, parent.unit) == ("fail", 1.0, 0.0, "differences")


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(("missing", "count"), [((), 0), (("tokenizer.json",), 1)])
def test_what_lies_beside_is_counted(given, tmp_path: Path, missing: tuple[str, ...], count: int, share: float) -> None:
    """A folder without its tokenizer differs in that one, all numbers being those of the merge, or of one parent alone
    where the recipe takes that."""
    for name in ("x", "y", "out"):
        state = total(given, share, 1 - share) if name == "out" else given[name]
        save_file(state, folder(tmp_path / name, {"tokenizer.json": words()}) / "model.safetensors", {"format": "pt"})
    for name in missing:
        (tmp_path / "out" / name).unlink()
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    merge = lmccheck.load_merge(
        {"x": "x", "y": "y"}, {"linear": {"x": share, "y": 1 - share}}, model=small_mlp,
        data=(inputs, torch.arange(30) % 3), base=tmp_path, device="cpu", shipped="out",
    )  # fmt: skip
    found = lmccheck.shipped(merge)
    assert (found.value, found.limit, found.verdict) == (count, 0.0, "fail" if count else "pass"), found.lines


def test_missing_and_unknown_tensors_are_named(shipped, given) -> None:
    """A renamed tensor is missing under the one name and unknown under the other; the file does not load."""
    state = total(given, 0.5, 0.5)
    state["head.weight"] = state.pop("4.weight")
    lines = shipped(state).lines
    assert "lacks 1 of 6 tensors of the merge: 4.weight" in lines[0]
    assert any("has 1 tensors that the merge has not: head.weight" in line for line in lines)
    assert any("does not load:" in line for line in lines)
    assert any("'4.weight' is there, bit for bit, under the name 'head.weight'" in line for line in lines)


def test_unaveraged_batchnorm_statistics_are_measured_as_they_are(tmp_path: Path) -> None:
    """The average of clients with one client's statistics differs, its own loss is told, and what would mend it."""
    states = {n: seeded(small_batchnorm, k) for k, n in enumerate("xy")}
    for state in states.values():
        state["1.running_var"] *= 0.01
    mean = {k: (states["x"][k] + states["y"][k]) / 2 if v.is_floating_point() else v for k, v in states["x"].items()}
    wrong = {**mean, "1.running_mean": torch.full((4,), -5.0), "1.running_var": torch.full((4,), 1e-4)}
    for name, state in {**states, "out": wrong}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    inputs = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    data = inputs, torch.arange(40) % 3
    merge = lmccheck.load_merge(
        {n: f"{n}.safetensors" for n in "xy"}, HALF, model=small_batchnorm, data=data, calibration=data, base=tmp_path,
        device="cpu", shipped="out.safetensors",
    )  # fmt: skip
    result = lmccheck.shipped(merge)
    assert result.verdict == "fail"
    assert "tensor '1.running_mean'" in result.lines[0]
    module = small_batchnorm()
    module.load_state_dict(wrong)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(module.eval()(inputs), data[1])
    assert result.details["losses"]["shipped"] == pytest.approx(float(expected), rel=1e-5)
    assert any("its BatchNorm statistics are not those of its weights: re-estimated on 40" in x for x in result.lines)


def test_a_merge_without_anything_shipped_is_told_so(given, tmp_path: Path) -> None:
    """The property needs what is published."""
    data = torch.randn(6, 4), torch.arange(6) % 3
    parents = {n: str(tmp_path / f"{n}.safetensors") for n in "xy"}
    merge = lmccheck.load_merge(parents, HALF, model=small_mlp, data=data, device="cpu")
    with pytest.raises(
        CheckpointError, match='nothing is shipped, expected what will be published; mend: shipped = "out/"'
    ):
        lmccheck.shipped(merge)


def test_files_are_judged_also_where_parents_are_of_no_use(shipped, given) -> None:
    """That a file is not the merge does not depend on what its parents can do."""
    inputs = torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
    data = inputs, torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(3))
    result = shipped(given["x"], data=data)
    assert result.verdict == "fail"


def test_a_tensor_that_is_not_finite_is_named(shipped, given) -> None:
    """One NaN, or all: the tensor is told, and no recipe is fitted to it."""
    for many in (False, True):
        state = total(given, 0.5, 0.5)
        name = next(iter(state))
        state[name].view(-1)[slice(None) if many else slice(1)] = float("nan")
        result = shipped(state)
        assert result.verdict == "fail"
        text = str(result.details["failure"])
        assert name in text
        assert "nan" in text.lower()
        assert "what is shipped is" not in text


def test_another_order_of_roundings_is_said(shipped, given) -> None:
    """The recipe's own sum, an ulp away here and there: no other recipe is claimed."""
    state = total(given, 0.5, 0.5)
    name = max(state, key=lambda k: state[k].numel())
    state[name] = torch.nextafter(state[name], torch.full_like(state[name], torch.inf))
    text = str(shipped(state).details["failure"])
    assert "the recipe's own sum, rounded otherwise" in text
