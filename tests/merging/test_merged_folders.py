"""Merges of folders as save_pretrained writes them: what is made is a folder that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.errors import CheckpointError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small tied language models; the second stores its head beside the embedding as well."""
    root = tmp_path_factory.mktemp("folders")
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    for seed, name in enumerate(("chat", "math")):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(root / name)
    state = load_file(root / "math" / "model.safetensors")
    twice = {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    save_file(twice, root / "math" / "model.safetensors", metadata={"format": "pt"})
    (root / "chat" / "tokenizer_config.json").write_text("{}")
    (root / "chat" / "training_args.bin").write_bytes(b"never copied")
    return root


NORM = "model.norm.weight"
IDS = torch.randint(0, 48, (12, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("recipe", "more"),
    [({"linear": {"chat": 0.25, "math": 0.75}}, {}), ("uniform", {"align": "weight-matching"}),
     ({"uniform": True, "dtype": "bfloat16"}, {})],
)  # fmt: skip
def test_the_merge_is_a_folder_that_its_library_loads(folders: Path, recipe: Any, more: dict[str, Any]) -> None:
    """Config and tokenizer beside it, still tied, in the dtype it was asked for; the loss is what transformers has."""
    parents = {"chat": "chat", "math": "math"}
    merge = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=folders, **more)
    result = lmccheck.merged_loss(merge, limit=9.0)
    made = merge.product.made.path
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"}
    assert {path.name for path in made.iterdir()} == names
    module = transformers.AutoModelForCausalLM.from_pretrained(made, dtype="auto").eval()
    expected = "bfloat16" if "dtype" in recipe else "float32"
    assert str(module.dtype) == f"torch.{expected}"
    assert json.loads((made / "config.json").read_text())["dtype"] == expected
    assert module.lm_head.weight is module.model.embed_tokens.weight
    with torch.no_grad():
        loss = float(module.float()(input_ids=IDS, labels=IDS).loss)
    assert result.details["merged"]["loss"] == pytest.approx(loss, abs=1e-5)


def test_a_merge_of_more_layers_is_measured_on_the_data_that_are_asked_for(folders: Path, tmp_path: Path) -> None:
    """Its network is another than its parents', the data are theirs."""
    pytest.importorskip("mergekit")
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    slices = "".join(f"  - sources: [{{model: {name}, layer_range: [0, 1]}}]\n" for name in ("chat", "math", "chat"))
    (tmp_path / "merge.yaml").write_text(f"slices:\n{slices}merge_method: passthrough\n")
    merge = lmccheck.load_merge(
        {"chat": "chat", "math": "math"}, {"mergekit": "merge.yaml"}, data=(IDS, None), base=tmp_path,
        sources={"other": (IDS.flip(0)[:5] // 2, None)},
    )  # fmt: skip
    found = lmccheck.merged_loss(merge, data="other", limit=9.0).details
    module = transformers.AutoModelForCausalLM.from_pretrained(merge.product.made.path, dtype=torch.float32).eval()
    assert len(module.model.layers) == 3
    with torch.no_grad():
        loss = float(module(input_ids=IDS.flip(0)[:5] // 2, labels=IDS.flip(0)[:5] // 2).loss)
    assert found["merged"]["loss"] == pytest.approx(loss, abs=1e-5)


def test_a_base_whose_config_is_another_is_told(folders: Path, tmp_path: Path) -> None:
    """As that of a parent: differences from it would be taken from another function."""
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    shutil.copytree(folders / "chat", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    parents, recipe = {"chat": "chat", "math": "math"}, {"linear": {"chat": 0.5, "math": 0.5}}
    with pytest.raises(CheckpointError, match=r"base.*rms_norm_eps"):
        lmccheck.load_merge(parents, recipe, data=(IDS, None), base=tmp_path, base_model="base")


def test_what_is_read_for_a_merge_is_held(folders: Path, tmp_path: Path) -> None:
    """A config of what is shipped, a base's, and the counts of a recipe: each is another by the end, or none is."""
    for name in ("chat", "math", "base", "out"):
        shutil.copytree(folders / name.replace("base", "chat").replace("out", "chat"), tmp_path / name)
    (tmp_path / "counts.json").write_text('{"chat": 1, "math": 3}')
    parents = {"chat": "chat", "math": "math"}
    given = {"data": (IDS, None), "base": tmp_path, "base_model": "base", "shipped": "out"}
    merge = lmccheck.load_merge(parents, {"fedavg": "counts.json"}, **given)
    merge.require_unchanged()
    for name in ("out/config.json", "base/generation_config.json", "chat/tokenizer_config.json", "counts.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + " ")
        with pytest.raises(CheckpointError, match=rf"{name}: changed after it was loaded"):
            merge.require_unchanged()
        (tmp_path / name).write_text(text)
    merge.require_unchanged()


def test_what_from_pretrained_leaves_out_of_a_publication_is_told(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that a consumer gets under other names, as one with an adapter on, is not what was measured."""
    parents, recipe = {"chat": "chat", "math": "math"}, {"linear": {"chat": 0.5, "math": 0.5}}
    made = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=folders).product.made.path
    shutil.copytree(made, tmp_path / "out")
    merge = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=folders, shipped=tmp_path / "out")
    monkeypatch.setattr("lmccheck.network.hub.consumed.consumed", lambda home: torch.nn.Linear(1, 1))
    result = lmccheck.shipped(merge)
    said = "from_pretrained makes a network of it without 12 of its tensors: "
    assert (result.verdict, result.details["refused"][: len(said)]) == ("fail", said)
    assert {"chat", "math", "the merge"} <= result.details["losses"].keys()


def test_other_weights_beside_what_is_shipped_are_said_with_the_verdict(folders: Path, tmp_path: Path) -> None:
    """And so are those beside a parent: a folder is read once, and others may read another file of it."""
    for name in ("chat", "math"):
        shutil.copytree(folders / name, tmp_path / name)
    parents, recipe = {"chat": "chat", "math": "math"}, {"linear": {"chat": 0.5, "math": 0.5}}
    made = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=tmp_path).product.made.path
    shutil.copytree(made, tmp_path / "out")
    for name in ("out", "math"):
        shutil.copy(tmp_path / name / "model.safetensors", tmp_path / name / "consolidated.safetensors")
    result = lmccheck.shipped(lmccheck.load_merge(parents, recipe, data=(IDS, None), base=tmp_path, shipped="out"))
    assert result.verdict == "pass"
    for name in ("shipped", "math"):
        told = f"{name}: model.safetensors is read, consolidated.safetensors beside it is not, which holds a tensor "
        assert any(note.startswith(told) for note in result.details["notes"])


def test_what_is_shipped_runs_as_its_own_config_says(folders: Path, tmp_path: Path) -> None:
    """What is published differs, and its loss is what transformers has of it with the config beside it."""
    parents, recipe = {"chat": "chat", "math": "math"}, {"linear": {"chat": 0.5, "math": 0.5}}
    merge = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=folders)
    made = merge.product.made.path
    shutil.copytree(made, tmp_path / "out")
    state = load_file(made / "model.safetensors")
    save_file({**state, NORM: state[NORM] * 1.5}, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((made / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1.0}))
    merge = lmccheck.load_merge(parents, recipe, data=(IDS, None), base=folders, shipped=tmp_path / "out")
    result = lmccheck.shipped(merge)
    assert result.verdict == "fail"
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        loss = float(module(input_ids=IDS, labels=IDS).loss)
    assert result.details["losses"]["shipped"] == pytest.approx(loss, abs=1e-5)
