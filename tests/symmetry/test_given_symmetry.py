"""A permutation spec that a user hands in is used in place of the derived one, and held to the same test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS
from safetensors.torch import save_file
from torch import nn

import lmccheck
from lmccheck import SymmetryError, UnsupportedArchitecture
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.user_spec import enough_trials, require_given

CODE = """\
from torch import nn

class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x).relu()
        while x.abs().sum() > 3:
            h, x = self.again(h).relu(), x / 2
        return self.last(h)
"""
SLOTS = [
    {"tensor": "first.weight"},
    {"tensor": "first.bias"},
    {"tensor": "again.weight"},
    {"tensor": "again.bias"},
    {"tensor": "again.weight", "dim": 1},
    {"tensor": "last.weight", "dim": 1},
]
Load = Callable[..., lmccheck.ModelPair]


def text(slots: list[dict[str, Any]], more: str = "") -> str:
    lines = [", ".join(f"{key} = {value!r}" for key, value in slot.items()) for slot in slots]
    table = "\n".join(f"    {{ {line} }}," for line in lines)
    return f'schema = 1\n[[group]]\nname = "hidden"\nsize = 6\ndroppable = true\nslots = [\n{table}\n]\n{more}'


@pytest.fixture
def looping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a pair of a network that cannot be traced: b is a with its hidden units in another order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(CODE)
    torch.manual_seed(0)
    first, again, last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    parts = {"first": first, "again": again, "last": last}
    a = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    order = torch.randperm(6)
    b = {key: value[order] if not key.startswith("last") else value for key, value in a.items()}
    b = {key: value[:, order] if key in ("again.weight", "last.weight") else value for key, value in b.items()}
    for name, state in (("a", a), ("b", b)):
        save_file({key: value.contiguous() for key, value in state.items()}, str(tmp_path / f"{name}.safetensors"))
    save_file({"inputs": torch.randn(20, 4), "targets": torch.randint(0, 3, (20,))}, str(tmp_path / "data.safetensors"))

    def load(**options: Any) -> lmccheck.ModelPair:
        return lmccheck.load_pair(
            "a.safetensors", "b.safetensors", model="models:Looping", data="data.safetensors", device="cpu", **options
        )

    return load


def test_a_network_that_cannot_be_traced_is_refused_without_a_spec(looping: Load) -> None:
    """Control flow that depends on data has no graph from which symmetries could be derived."""
    with pytest.raises(UnsupportedArchitecture):
        lmccheck.align(looping())


def test_a_right_spec_opens_the_gate(looping: Load, tmp_path: Path) -> None:
    """The spec is verified, the planted permutation found, the barrier zero; the report says what was used."""
    (tmp_path / "spec.toml").write_text(text(SLOTS))
    pair = looping(symmetry="spec.toml")
    result = lmccheck.linear_connectivity(pair, limit=1e-6, points=5)
    assert result.passed
    aligned = result.witness.weights
    assert all(torch.allclose(aligned[key], pair.theta_a[key]) for key in aligned)
    assert not torch.allclose(pair.theta_b["first.weight"], pair.theta_a["first.weight"])
    alignment = result.details["alignment"]
    assert (alignment["symmetry"], alignment["spec_deviation"] <= 1e-9) == ("spec.toml", True)
    assert pair.description["symmetry"]["origin"] == "spec.toml"
    assert len(pair.description["symmetry"]["sha256"]) == 64
    assert any("permutation spec read from spec.toml" in note for note in result.details["notes"])


def test_a_spec_may_be_an_object(looping: Load) -> None:
    """Made from the same description in Python."""
    module = looping().module
    spec = lmccheck.spec_from_groups(module, [{"name": "hidden", "size": 6, "slots": SLOTS}])
    alignment = lmccheck.align(looping(symmetry=spec))
    assert (alignment.spec, alignment.summary()["symmetry"]) == (spec, "given")


def test_a_traced_spec_says_so(load: Load) -> None:
    """Where nothing was handed in the report says that the spec was derived."""
    pair = load()
    assert pair.description["symmetry"] == {"origin": "traced"}
    assert lmccheck.align(pair).summary()["symmetry"] == "traced"


@pytest.mark.parametrize("left_out", range(len(SLOTS)))
def test_a_wrong_spec_is_refused(looping: Load, tmp_path: Path, left_out: int) -> None:
    """Any slot forgotten changes the function; the message names the file, how much, the group, and the mend."""
    slots = [slot for k, slot in enumerate(SLOTS) if k != left_out]
    (tmp_path / "spec.toml").write_text(text(slots).replace("droppable = true\n", ""))
    with pytest.raises(SymmetryError) as caught:
        lmccheck.linear_connectivity(looping(symmetry="spec.toml"))
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("symmetry spec.toml: this permutation spec changes the output of model Looping by ")
    alone = "moved alone, these groups do so: 'hidden' ("
    for words in ("expected at most 1e-09", alone, f"has {slots[0]['tensor']} dim 0, ", "mend: give it a slot"):
        assert words in said


def test_only_the_wrong_groups_are_named() -> None:
    """Each group is tried with all others in place, those inside another one too."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["encoder_separate"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    assert require_given(spec, module, inputs, "mine") <= 1e-9
    wrong = "2.0.body.1.v/1"
    tensor = "2.0.body.1.v.bias"
    kept = {key: value for key, value in spec.layouts.items() if key != tensor}
    outer = spec.by_name[wrong].within[0]
    with pytest.raises(SymmetryError, match="these groups do so: ") as caught:
        require_given(dataclasses.replace(spec, layouts=kept), module, inputs, "mine")
    named = str(caught.value).partition("do so: ")[2].partition(";")[0]
    assert {name for name in spec.by_name if f"{name!r}" in named} == {wrong, outer}


def test_not_every_group_of_a_huge_network_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of those tried is at fault the message says how many were."""
    monkeypatch.setattr("lmccheck.symmetry.user_spec.MOST_GROUPS", 1)
    torch.manual_seed(0)
    module, inputs = NETWORKS["mlp"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    kept = {key: value for key, value in spec.layouts.items() if key != "2.bias"}
    with pytest.raises(SymmetryError, match="none of 1 groups tried alone, of 2, does so; mend: check the others"):
        require_given(dataclasses.replace(spec, layouts=kept), module, inputs, "mine")


def test_small_groups_get_more_trials() -> None:
    """A group of two stays where it is in half of all draws: as many are made as to move it almost surely."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    pair = [{"tensor": "0.weight"}, {"tensor": "1.weight", "dim": 1}]  # the bias is missing
    spec = lmccheck.spec_from_groups(module, [{"name": "g", "size": 2, "slots": pair}])
    assert enough_trials(spec) == 10
    inputs = (torch.randn(2, 3),)
    for seed in range(20):
        with pytest.raises(SymmetryError, match="'g'"):
            require_given(spec, module, inputs, "mine", seed=seed)
    wide = nn.Linear(2, 50)
    large = [{"name": "g", "size": 50, "slots": [{"tensor": "weight"}]}]
    assert enough_trials(lmccheck.spec_from_groups(wide, large)) == 3


def test_the_spec_of_another_network_is_refused(load: Load) -> None:
    """By the tensors it lacks, or by their shapes."""
    narrow, other = nn.Sequential(nn.Linear(4, 5)), nn.Linear(4, 6)
    for module, name in ((narrow, "0.weight"), (other, "weight")):
        spec = lmccheck.spec_from_groups(module, [{"name": "g", "size": 4, "slots": [{"tensor": name, "dim": 1}]}])
        with pytest.raises(SymmetryError, match="symmetry given: "):
            lmccheck.align(load(symmetry=spec))


def test_what_is_no_spec_is_refused(load: Load, folder: Path) -> None:
    """A missing file, another suffix, a mistake in the file, an object of another type: when the pair is loaded."""
    (folder / "spec.toml").write_text(text(SLOTS))
    for given, said in (
        ("gone.toml", r"gone\.toml: no such file, expected a TOML file"),
        ("a.safetensors", "got the suffix '.safetensors', expected .toml or .json"),
        ("spec.toml", 'spec.toml: group "hidden": slots.0..tensor: got "first.weight", expected a tensor of model'),
        (3, "symmetry: got int, expected a .toml or .json file or a PermutationSpec"),
    ):
        with pytest.raises(SymmetryError, match=said):
            load(symmetry=given)


def test_what_two_samples_do_not_show_the_data_does(looping: Load, tmp_path: Path) -> None:
    """A branch that the example inputs never take is caught on the evaluation data, before weights are given out."""
    code = CODE.replace("while x.abs().sum() > 3:", "if len(x) > 2:").replace(", x / 2", ", x")
    (tmp_path / "models.py").write_text(code)
    slots = [slot for slot in SLOTS if slot["tensor"] != "again.bias"]
    (tmp_path / "spec.toml").write_text(text(slots))
    pair = looping(symmetry="spec.toml")
    with pytest.raises(
        SymmetryError, match=r"change b's output.* mend: correct symmetry spec\.toml, which two samples"
    ):
        lmccheck.align(pair)


def test_randomised_weights_are_what_a_given_spec_is_tried_on(looping: Load) -> None:
    """Equal biases hide a slot that is missing; verification draws its own, so the spec is refused all the same."""
    module = looping().module
    nn.init.zeros_(module.first.bias)
    spec = lmccheck.spec_from_groups(module, [{"name": "g", "size": 6, "slots": [SLOTS[0], *SLOTS[2:]]}])
    weights = {key: value.double() for key, value in module.state_dict().items()}
    inputs = (torch.randn(2, 4),)
    assert spec.verify(module, inputs, weights=weights) <= 1e-9
    assert set(weights) == set(randomised(module))
    with pytest.raises(SymmetryError, match="'g'"):
        require_given(spec, module, inputs, "mine")
