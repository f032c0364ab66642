"""mergekit runs its own YAML on the parents' folders: offline, repeatably, and on no model that is not a parent."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmccheck
from lmccheck.errors import LmcError, SourceError
from lmccheck.merging.contract import Made, read_recipe
from lmccheck.merging.drawn_folders import llama_config, llama_shapes
from lmccheck.merging.mergekit_config import layers_of
from lmccheck.store.checkpoint import look_at

LAYERS, HIDDEN = 2, 4
State = dict[str, Tensor]


@pytest.fixture
def states(tmp_path: Path) -> dict[str, State]:
    """A base and two fine-tunes as folders of a tiny language model, beside one another."""
    shapes = llama_shapes(LAYERS, HIDDEN)
    found: dict[str, State] = {}
    for seed, name in enumerate(("base", "chat", "math")):
        generator = torch.Generator().manual_seed(seed)
        scale, start = (0.1, found["base"]) if seed else (1.0, None)
        noise = {k: scale * torch.randn(*shape, generator=generator) for k, shape in shapes.items()}
        found[name] = noise if start is None else {k: start[k] + v for k, v in noise.items()}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(llama_config(LAYERS, HIDDEN)))
        save_file(found[name], tmp_path / name / "model.safetensors", {"format": "pt"})
    return found


@pytest.fixture
def make(states: dict[str, State], tmp_path: Path) -> Callable[..., Made]:
    """Run a YAML on the two fine-tunes."""

    def run(text: str, parents: tuple[str, ...] = ("chat", "math"), base: str | None = "base", **options: Any) -> Made:
        (tmp_path / "gates").mkdir(exist_ok=True)
        (tmp_path / "gates" / "merge.yaml").write_text(text)
        recipe = read_recipe({"mergekit": "gates/merge.yaml", **options}, parents, tmp_path)
        recipe.look(parents)
        given = {name: look_at(name, tmp_path, name) for name in parents}
        origin = None if base is None else look_at(base, tmp_path, "base")
        number = len(list(tmp_path.iterdir()))
        return recipe.make(given, origin, tmp_path / f"made-{number}", seed=3)

    return run


def made(found: Made) -> State:
    return load_file(found.path / "model.safetensors")


LINEAR = """
models:
  - {{model: {chat}, parameters: {{weight: 0.6}}}}
  - {{model: ../math, parameters: {{weight: 0.2}}}}
merge_method: linear
parameters: {{normalize: {normalize}}}
"""


def test_the_yaml_is_run_by_mergekit_itself(make, states) -> None:
    """A sum that mergekit divides by its weights; paths are looked up beside the YAML and beside the manifest."""
    pytest.importorskip("mergekit")
    random.seed(5), torch.manual_seed(5)
    expected = random.random(), torch.rand(1)
    random.seed(5), torch.manual_seed(5)
    found = make(LINEAR.format(chat="chat", normalize="true"))
    assert (random.random(), torch.rand(1)) == expected  # nobody else's random numbers are disturbed
    for name, tensor in made(found).items():
        assert torch.allclose(tensor, 0.75 * states["chat"][name] + 0.25 * states["math"][name], atol=1e-6)
    assert found.facts["weights"] == pytest.approx({"chat": 0.75, "math": 0.25})
    assert "scale" in found.facts["claims"]
    assert found.facts["seed"] == 3
    plain = make(LINEAR.format(chat="../chat", normalize="false"))
    assert plain.facts["weights"] == {"chat": 0.6, "math": 0.2}
    assert not {"equal", "scale"} & set(plain.facts["claims"])
    assert (plain.path / "config.json").is_file()
    assert "dtype" not in found.facts


def test_the_dtype_that_a_yaml_asks_for_is_promised(make) -> None:
    """``dtype``, or ``out_dtype`` where the sum is taken in another."""
    pytest.importorskip("mergekit")
    found = make(LINEAR.format(chat="chat", normalize="true") + "dtype: float32\nout_dtype: bfloat16\n")
    assert found.facts["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in made(found).values()} == {torch.bfloat16}


PASSTHROUGH = """
slices:
  - sources: [{model: chat, layer_range: [0, 2]}]
  - sources: [{model: math, layer_range: [1, 2]}]
merge_method: passthrough
"""


def test_slices_change_the_number_of_layers(make, states) -> None:
    """Layers are stacked, bit for bit, and the config that is written says how many there are."""
    pytest.importorskip("mergekit")
    found = make(PASSTHROUGH)
    tensors = made(found)
    assert json.loads((found.path / "config.json").read_text())["num_hidden_layers"] == 3
    assert torch.equal(
        tensors["model.layers.2.mlp.up_proj.weight"], states["math"]["model.layers.1.mlp.up_proj.weight"]
    )
    assert torch.equal(
        tensors["model.layers.1.mlp.up_proj.weight"], states["chat"]["model.layers.1.mlp.up_proj.weight"]
    )
    assert found.facts["layout"] is False


RANDOM = """
models:
  - {model: chat, parameters: {weight: 0.5, density: 0.5}}
  - {model: math, parameters: {weight: 0.5, density: 0.5}}
merge_method: dare_linear
base_model: base
"""


def test_random_methods_draw_from_a_recorded_seed(make) -> None:
    """The same seed gives the same bytes, another one others."""
    pytest.importorskip("mergekit")
    first, again, other = make(RANDOM), make(RANDOM), make(RANDOM, seed=7)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(made(first)[name], made(again)[name])
    assert not torch.equal(made(first)[name], made(other)[name])
    assert (first.facts["seed"], other.facts["seed"]) == (3, 7)


def test_an_adapter_on_its_base_is_a_parent(make, states, tmp_path: Path) -> None:
    """``base+adapter``, as mergekit spells it, is the parent of these two folders: their product is merged."""
    pytest.importorskip("mergekit")
    (tmp_path / "lora").mkdir()
    layer = "model.layers.0.mlp.up_proj"
    factors = {"A": torch.randn(1, 2), "B": torch.randn(HIDDEN, 1)}
    save_file(
        {f"base_model.model.{layer}.lora_{k}.weight": v for k, v in factors.items()},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": [layer], "bias": "none"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    text = "models: [{model: base+lora, parameters: {weight: 1}}, {model: math, parameters: {weight: 1}}]\n"
    (tmp_path / "merge.yaml").write_text(text + "merge_method: linear\n")
    recipe = read_recipe({"mergekit": "merge.yaml"}, ("tuned", "math"), tmp_path)
    tuned = look_at({"base": "base", "adapter": "lora"}, tmp_path, "tuned")
    found = recipe.make({"tuned": tuned, "math": look_at("math", tmp_path, "math")}, None, tmp_path / "made")
    name = f"{layer}.weight"
    own = states["base"][name] + 2 * factors["B"] @ factors["A"]
    assert torch.allclose(made(found)[name], (own + states["math"][name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (
            LINEAR.format(chat="mistralai/Mistral-7B-v0.1", normalize="true"),
            {},
            "names the model 'mistralai/Mistral-7B-v0.1', which is no folder beside it; expected the folder of a "
            "parent or of the base; nothing is downloaded; mend: download it yourself",
        ),
        (
            LINEAR.format(chat="../base", normalize="true"),
            {"base": None},
            "model '../base' is no parent of this merge, expected one of chat = ",
        ),
        (RANDOM, {"base": None}, "base_model 'base' is no parent of this merge"),
        (
            LINEAR.format(chat="chat", normalize="true"),
            {"parents": ("chat", "math", "base"), "base": None},
            "does not name parent 'base'",
        ),
        ("merge_method: [", {}, "no YAML:"),
        ("models: []", {}, "has no merge_method"),
        ("!!python/object/apply:os.getcwd []", {}, "no YAML: could not determine a constructor"),
        ("merge_method: linear\n---\nmerge_method: linear\n", {}, "expected a single document in the stream"),
        ("merge_method: linear\nparamters: {weight: 1}\n", {}, "paramters: no key of mergekit's (did you mean 'par"),
        (
            "merge_method: linear\nmodels: [{model: chat, layer_rnage: [0, 1]}]\n",
            {},
            "models[0].layer_rnage: no key of mergekit's (did you mean 'layer_range'?)",
        ),
        ("merge_method: linear\nparameters: 3\n", {}, "parameters: got 3, expected a table"),
        ("merge_method: linear\nmodels: &a [{b: *a}]\n", {}, "holds itself, by an alias"),
    ],
)
def test_what_the_yaml_says_is_compared_with_the_parents(make, text: str, options: Any, said: str) -> None:
    """One line for a model of a hub, a model that is no parent, a parent that it does not name, and for no YAML."""
    pytest.importorskip("yaml")
    with pytest.raises(SourceError, match=r"merge\.yaml") as caught:
        make(text, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_stand_for_what_they_name(make, states) -> None:
    """An anchor under a key of its own, which mergekit passes over, gives both parents their weight."""
    pytest.importorskip("mergekit")
    text = (
        "common: &half {parameters: {weight: 0.5}}\nmodels:\n  - {model: chat, <<: *half}\n"
        "  - {model: math, <<: *half}\nmerge_method: linear\ndtype: float32\n"
    )
    found = make(text)
    assert found.facts["weights"] == {"chat": 0.5, "math": 0.5}
    name = "model.norm.weight"
    assert torch.allclose(made(found)[name], (states["chat"][name] + states["math"][name]) / 2)


def test_what_is_no_configuration_is_told_with_its_place(make) -> None:
    """The first mistake of those that mergekit finds, in words."""
    pytest.importorskip("mergekit")
    text = "merge_method: passthrough\nslices:\n  - sources: [{model: chat}]\n  - sources: [{model: math}]\n"
    with pytest.raises(SourceError, match=r"slices\.0\.sources\.0\.layer_range: Field required, got .*\(and 1 more\)"):
        make(text)


@pytest.mark.slow
def test_laws_of_a_yaml_that_makes_a_tokenizer(states, tmp_path: Path) -> None:
    """Drawn networks have none: what the YAML says of its own models' tokenizers is left out for them."""
    pytest.importorskip("mergekit")
    pytest.importorskip("transformers")
    rows = states["base"]["model.embed_tokens.weight"].shape[0]
    model = {"type": "WordLevel", "vocab": {f"t{k}": k for k in range(rows)}, "unk_token": "t0"}
    for name in states:
        (tmp_path / name / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        )
        own = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "gates").mkdir()
    text = LINEAR.format(chat="../chat", normalize="true") + "tokenizer_source: union\n"
    (tmp_path / "gates" / "merge.yaml").write_text(text)
    save_file({"inputs": torch.randint(0, rows, (4, 6))}, tmp_path / "data.safetensors")
    merge = lmccheck.load_merge(
        {"chat": "chat", "math": "math"}, {"mergekit": "gates/merge.yaml"}, data="data.safetensors", base=tmp_path
    )
    assert lmccheck.merge_laws(merge).passed


def test_modules_need_as_many_layers_as_their_slices_name() -> None:
    """Slices of a module count like those of a whole network."""
    part = {"sources": [{"model": "chat", "layer_range": [0, 2]}, {"model": "math", "layer_range": [1, 4]}]}
    assert layers_of({"modules": {"default": {"slices": [part]}}}) == layers_of({"slices": [part]})
    assert layers_of({"modules": {"default": {"slices": [part]}}}) == {"layers": 4, "layout": False}


def test_what_mergekit_says_is_passed_on_in_one_line(make) -> None:
    """A method that mergekit does not know is its own error."""
    pytest.importorskip("mergekit")
    text = LINEAR.format(chat="chat", normalize="true").replace("linear", "blender")
    with pytest.raises(SourceError, match=r"merge\.yaml: mergekit: .*blender.*mend: correct the YAML"):
        make(text)


def test_a_missing_library_is_one_line(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    pytest.importorskip("yaml")
    monkeypatch.setitem(sys.modules, "mergekit", None)
    with pytest.raises(SourceError, match=r'needs mergekit, .*; mend: pip install "lmccheck\[mergekit\]"'):
        make(LINEAR.format(chat="chat", normalize="true"))


@pytest.mark.parametrize(
    ("given", "said"), [({"mergekit": 3}, ".mergekit: got 3"), ({"mergekit": "m.yaml", "seed": -1}, ".seed: got -1")]
)
def test_settings_are_checked(given: Any, said: str) -> None:
    """Before any file is read."""
    with pytest.raises(LmcError, match=said):
        read_recipe(given, ("chat", "math"), Path())


DENSE = "parameters: {weight: 0.5, density: 0.5}"
METHODS = {
    "slerp": "parameters: {t: 0.5}",
    "ties": DENSE,
    "dare_ties": DENSE,
    "dare_linear": DENSE,
    "task_arithmetic": "parameters: {weight: 0.5}",
    "model_stock": "",
    "breadcrumbs": DENSE,
    "breadcrumbs_ties": DENSE,
    "della": "parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}",
    "della_linear": "parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}",
    "nuslerp": "parameters: {weight: 0.5}",
    "karcher": "",
    "sce": "parameters: {select_topk: 0.5}",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats(make, method: str) -> None:
    """On the same folders, twice, with the same bytes; the merge has its parents' tensors."""
    pytest.importorskip("mergekit")
    base = {"slerp": "chat", "nuslerp": None, "karcher": None}.get(method, "base")
    text = f"models: [{{model: chat}}, {{model: math}}]\nmerge_method: {method}\n{METHODS[method]}\n"
    text += f"base_model: {base}\n" if base else ""
    first, again = made(make(text)), made(make(text))
    assert {k: v.shape for k, v in first.items()} == llama_shapes(LAYERS, HIDDEN)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
