"""Adapters are combined by peft itself and merged into their base; what it gets wrong, the laws show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError, SourceError
from lmccheck.merging.contract import read_recipe
from lmccheck.merging.drawn_folders import llama_config, llama_shapes

State = dict[str, Tensor]
SHAPES = {"fc1": (5, 4), "fc2": (3, 5)}


class Perceptron(nn.Module):
    """Two layers with names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def adapter(folder: Path, seed: int, shapes: dict[str, tuple[int, int]], **config: Any) -> dict[str, Tensor]:
    """Write an adapter, and return the products of its factors, unscaled."""
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "base_model_name_or_path": "base", **config}
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (rows, columns) in shapes.items():
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(told["r"], columns, generator=generator)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, told["r"], generator=generator)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**told, "target_modules": sorted(shapes)}))
    return {
        name: factors[f"base_model.model.{name}.lora_B.weight"] @ factors[f"base_model.model.{name}.lora_A.weight"]
        for name in shapes
    }


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., lmccheck.Merge]:
    """Load a merge of two adapters on a perceptron."""
    torch.manual_seed(0)
    save_file(Perceptron().state_dict(), tmp_path / "base.safetensors")

    def load(recipe: Any, **config: Any) -> lmccheck.Merge:
        for seed, name in enumerate("xy"):
            if not (tmp_path / name).exists():
                products[name] = adapter(tmp_path / name, seed, SHAPES, **config)
        parents = {name: {"base": "base.safetensors", "adapter": name} for name in "xy"}
        data = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3
        return lmccheck.load_merge(
            parents, recipe, model=Perceptron, data=data, base_model="base.safetensors", base=tmp_path, device="cpu"
        )

    products: dict[str, State] = {}
    load.products = products  # type: ignore[attr-defined]
    return load


def test_concatenated_adapters_are_the_sum_of_their_products(merge, tmp_path: Path) -> None:
    """base + α/r·Σ w·BA, by hand; the laws that cat claims hold, on drawn adapters as well."""
    pytest.importorskip("peft")
    found = merge({"adapters": {"x": 0.7, "y": -0.3}, "how": "cat"})
    base = load_file(tmp_path / "base.safetensors")
    for name in SHAPES:
        expected = base[f"{name}.weight"] + 2 * (0.7 * merge.products["x"][name] - 0.3 * merge.products["y"][name])
        assert torch.allclose(found.merged.theta[f"{name}.weight"], expected, atol=1e-5)
        assert torch.equal(found.merged.theta[f"{name}.bias"], base[f"{name}.bias"])
    result = lmccheck.merge_laws(found)
    assert result.passed, result
    assert {law for law, told in result.details["laws"].items() if told == "holds"} >= {"unit", "order", "linear"}


def test_an_rslora_adapter_at_weight_one_is_not_returned(merge) -> None:
    """peft scales what it combines once more by √r: M({x: 1}) ≠ x on the parents, and on the smallest drawn adapter."""
    pytest.importorskip("peft")
    result = lmccheck.merge_laws(merge({"adapters": {"x": 1.0, "y": 0.0}, "how": "linear"}, use_rslora=True))
    assert result.verdict == "fail"
    assert set(result.details["broken"]) == {"unit"}
    assert any("unit: M({x: 1}) ≠ x: tensor 'fc1.weight'" in line for line in result.lines), result.lines
    assert "fc1.weight" in result.details["smallest"]["unit"]


def test_a_plain_adapter_at_weight_one_is_returned(merge) -> None:
    """The same without rsLoRA keeps every law that is claimed."""
    pytest.importorskip("peft")
    result = lmccheck.merge_laws(merge({"adapters": {"x": 0.5, "y": 0.5}, "how": "linear"}))
    assert result.passed, result


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("svd", {}),
        ("svd", {"svd_rank": 1}),
        ("ties", {"density": 0.5, "majority_sign_method": "frequency"}),
        ("ties_svd", {"density": 0.5}),
        ("dare_linear", {"density": 0.5}),
        ("dare_linear_svd", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}),
        ("dare_ties_svd", {"density": 0.5}),
        ("magnitude_prune", {"density": 0.5}),
        ("magnitude_prune_svd", {"density": 0.5}),
    ],
)
def test_every_combination_runs_and_repeats(merge, how: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Random ones draw from the seed: the same bytes again."""
    pytest.importorskip("peft")
    found = merge({"adapters": {"x": 0.5, "y": 0.5}, "how": how, **options})
    again = load_file(found.make(tmp_path / "again").path)
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.merged.theta.items())
    assert not torch.equal(again["fc1.weight"], load_file(tmp_path / "base.safetensors")["fc1.weight"])


def test_a_base_with_a_config_is_loaded_by_its_own_library(tmp_path: Path) -> None:
    """The folder that is written holds the sum of products, and the base's config."""
    pytest.importorskip("peft")
    shapes = llama_shapes(1, 4)
    base = {k: torch.randn(*s, generator=torch.Generator().manual_seed(len(k))) for k, s in shapes.items()}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(llama_config(1, 4)))
    (tmp_path / "base" / "chat_template.jinja").write_text("hello")
    save_file(base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    layer = "model.layers.0.mlp.up_proj"
    product = adapter(tmp_path / "x", 0, {layer: shapes[f"{layer}.weight"]})[layer]
    from lmccheck.store.checkpoint import look_at

    parent = look_at({"base": "base", "adapter": "x"}, tmp_path, "x")
    recipe = read_recipe({"adapters": {"x": 0.5}, "how": "cat"}, ("x",), tmp_path)
    found = recipe.make({"x": parent}, look_at("base", tmp_path, "base"), tmp_path / "made")
    tensors = load_file(found.path / "model.safetensors")
    assert torch.allclose(tensors[f"{layer}.weight"], base[f"{layer}.weight"] + product, atol=1e-6)
    assert all(torch.equal(t, base[k]) for k, t in tensors.items() if k != f"{layer}.weight")
    assert json.loads((found.path / "config.json").read_text())["hidden_size"] == 2
    assert (found.path / "chat_template.jinja").read_text() == "hello"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapters": {"x": 1}}, "adapters: nothing is said of parent 'y'"),
        ({"adapters": {"x": 1, "y": 1}, "how": "liner"}, "how: got 'liner' (did you mean 'linear'?)"),
        ({"adapters": {"x": 1, "y": 1}, "how": "ties"}, "density: got None, expected the share of entries that ties"),
        ({"adapters": {"x": 1, "y": 1}, "density": 0.5}, "density: got 0.5, expected none"),
        ({"adapters": {"x": 1, "y": 1}, "svd_rank": 2}, "svd_rank: got 2"),
        ({"adapters": {"x": 1, "y": 1}, "how": "ties", "density": 1, "majority_sign_method": "x"}, "majority_sign"),
    ],
)
def test_settings_are_checked(given: Any, said: str) -> None:
    """Before any file is read."""
    with pytest.raises(LmcError) as caught:
        read_recipe(given, ("x", "y"), Path())
    assert said in str(caught.value)


def test_parents_that_are_no_adapters_and_other_ranks_are_told(merge, tmp_path: Path) -> None:
    """A plain file is no adapter; what peft refuses is its own line."""
    pytest.importorskip("peft")
    merge({"adapters": {"x": 1, "y": 1}})
    (tmp_path / "y" / "adapter_model.safetensors").unlink(), (tmp_path / "y" / "adapter_config.json").unlink()
    (tmp_path / "y").rmdir()
    adapter(tmp_path / "y", 1, SHAPES, r=1)
    with pytest.raises(SourceError, match="peft: ValueError: All adapters must have the same r value"):
        _ = merge({"adapters": {"x": 1, "y": 1}}).merged
    save_file({k: v + 1 for k, v in load_file(tmp_path / "base.safetensors").items()}, tmp_path / "z.safetensors")
    data = torch.randn(6, 4), torch.arange(6) % 3
    parents = {"x": {"base": "base.safetensors", "adapter": "x"}, "z": "z.safetensors"}
    other = lmccheck.load_merge(
        parents, {"adapters": {"x": 1, "z": 1}}, model=Perceptron, data=data, base_model="base.safetensors",
        base=tmp_path, device="cpu",
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"parent z is .*, expected an adapter on its base; mend: z = "):
        _ = other.merged
    parents = {"x": {"base": "base.safetensors", "adapter": "x"}, "y": {"base": "z.safetensors", "adapter": "y"}}
    apart = lmccheck.load_merge(
        parents, {"adapters": {"x": 1, "y": 1}}, model=Perceptron, data=data, base_model="base.safetensors",
        base=tmp_path, device="cpu",
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"parent y lies on \S*z\.safetensors, the base is .*base\.safetensors"):
        _ = apart.merged


def test_a_missing_library_is_one_line(merge, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SourceError, match=r'needs peft, .*; mend: pip install "lmccheck\[lora\]"'):
        _ = merge({"adapters": {"x": 1, "y": 1}}).merged


@pytest.mark.parametrize("how", ["linear", "cat"])
def test_rounding_of_products_breaks_no_law(merge, how: str) -> None:
    """Terms of a product cancel in some entries, whose error is that of the terms: no law is broken by it."""
    pytest.importorskip("peft")
    found = merge({"adapters": {"x": 0.7, "y": 0.3}, "how": how}, r=64, lora_alpha=640)
    result = lmccheck.merge_laws(found, examples=1)
    assert result.passed, result
