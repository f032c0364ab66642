"""A folder as save_pretrained writes it is its weights; what else lies there decides whether it can be trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import look_at, open_checkpoint

STATE = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.tensor([7, 8]), "h": torch.ones(2).half()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with one file of weights and a config."""
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_its_weights(saved: Path) -> None:
    """Tensors, hash and metadata are those of the file in it; the folder is where config and tokenizer belong."""
    found, lone = look_at("m", saved.parent, "a"), look_at("m/model.safetensors", saved.parent, "a")
    assert (found.tensors, found.metadata) == (lone.tensors, {"format": "pt"})
    assert found.sha256 == lone.sha256 == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert found.files == lone.files == (saved / "model.safetensors",)
    assert found.home == lone.home == saved
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in found.read().items())


def test_one_tensor_at_a_time(saved: Path) -> None:
    """``get`` gives each tensor in its stored dtype, of memory that no file changes, and only of the bytes hashed."""
    found = look_at(saved, saved, "a")
    for name, tensor in STATE.items():
        assert found.get(name).dtype == tensor.dtype
        assert torch.equal(found.get(name), tensor)
    save_file({**STATE, "w": torch.zeros(2, 3)}, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"changed after it was loaded"):
        found.get("v")


def test_a_pin_holds_for_single_tensors_too(saved: Path) -> None:
    """No tensor is given of other bytes than those pinned."""
    with pytest.raises(CheckpointError, match=r"the pin says 000"):
        open_checkpoint(saved, saved, "a", "0" * 64).get("v")


def test_a_state_dict_gives_single_tensors(tmp_path: Path) -> None:
    """Of a source that reads all at once, too; it has no files and no home."""
    found = look_at(STATE, tmp_path, "a")
    assert torch.equal(found.get("w"), STATE["w"])
    assert (found.files, found.home) == ((), None)


def test_a_lone_file_has_no_home(tmp_path: Path) -> None:
    """Neither where no config is, nor where its name is not that of a model's weights."""
    save_file(STATE, tmp_path / "model.safetensors")
    assert look_at("model.safetensors", tmp_path, "a").home is None
    (tmp_path / "config.json").write_text("{}")
    save_file(STATE, tmp_path / "x.safetensors")
    assert look_at("x.safetensors", tmp_path, "a").home is None


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        look_at(folder, folder, "a")
    text = str(error.value)
    assert "\n" not in text
    assert "; mend: " in text
    return text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "got an empty folder, expected the folder of a saved model"),
        (["config.json"], "got a folder without model.safetensors or diffusion_pytorch_model.safetensors"),
        (["pytorch_model.bin", "training_args.bin"], "got a folder of pickles, pytorch_model.bin, which can run code"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], "got a folder of pickles"),
        (["x.pt"], "torch.load('x.pt', weights_only=True)"),
        (["adapter_config.json", "adapter_model.safetensors"], "mend: name its base, too: { base = …, adapter = … }"),
        (["adapter_config.json", "model.safetensors"], "an adapter, beside model.safetensors, a whole model"),
        (["model-00001-of-00002.safetensors"], "without model.safetensors.index.json"),
        (["model.safetensors", "model-00001-of-00002.safetensors"], "shards that no index names"),
        (["ema.safetensors"], "got ema.safetensors, and neither model.safetensors nor"),
        (["model.safetensors", "diffusion_pytorch_model.safetensors"], "the weights of two models"),
    ],
)
def test_what_is_no_folder_of_one_model(tmp_path: Path, names: list[str], words: str) -> None:
    """Is told by what lies there instead, with what to do; no pickle is opened."""
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x04nothing that could be read")
    assert words in refused(tmp_path)


def test_pickles_beside_safetensors_are_not_read(saved: Path) -> None:
    """Optimizer states and old weights may lie there."""
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert look_at(saved, saved, "a").tensors.keys() == STATE.keys()


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_an_adapter_beside_a_named_file_is_refused_as_in_a_folder(saved: Path, name: str) -> None:
    """from_pretrained of that folder puts the adapter on; where no config lies beside, no folder is loaded."""
    if name.endswith(".json"):
        (saved / "model.safetensors").rename(saved / "model-00001-of-00001.safetensors")
        placed = dict.fromkeys(STATE, "model-00001-of-00001.safetensors")
        (saved / name).write_text(json.dumps({"weight_map": placed}))
    (saved / "adapter_config.json").write_text("{}")
    (saved / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        look_at(saved / name, saved, "a")
    assert f"got adapter_config.json, an adapter, beside {name}, a whole model" in str(error.value)
    (saved / "config.json").unlink()
    assert look_at(saved / name, saved, "a").tensors.keys() == STATE.keys()


def test_a_config_that_names_other_weights_is_refused(saved: Path) -> None:
    """From a folder and from a file beside it; one that names what is read anyway is not."""
    (saved / "config.json").write_text('{"transformers_weights": "real.safetensors"}')
    for given in (saved, saved / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r'config\.json: says transformers_weights = "real\.safetensors"'):
            look_at(given, saved, "a")
    (saved / "config.json").write_text('{"transformers_weights": "model.safetensors"}')
    assert look_at(saved, saved, "a").home == saved


def test_other_weights_beside_a_single_file_are_said(saved: Path) -> None:
    """Those of the same tensors, and pickles by the name of a model's; a checkpoint of other tensors is none of it."""
    save_file({"w": torch.zeros(2, 3)}, saved / "model.fp16.safetensors")
    save_file({"other": torch.zeros(2)}, saved / "head.safetensors")
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04")
    for given in (saved, saved / "model.safetensors"):
        assert look_at(given, saved, "a").remarks == (
            "model.safetensors is read, model.fp16.safetensors beside it is not, which holds a tensor 'w', too",
            "model.safetensors is read, as from_pretrained does, pytorch_model.bin beside it is not, which programs of "
            "before safetensors load: remove it, or check that it says the same",
        )


@pytest.mark.parametrize("change", ["changed", "it is gone", "was not there"])
def test_what_belongs_to_a_folder_stays_as_it_was(saved: Path, change: str) -> None:
    """Its config and tokenizer are held from the first look; other files beside are nobody's."""
    tokenizer = saved / "tokenizer.json"
    tokenizer.write_text("{}") if change != "was not there" else None
    found = look_at(saved, saved, "a")
    (saved / "notes.json").write_text("{}")
    found.require_unchanged()
    tokenizer.unlink() if change == "it is gone" else tokenizer.write_text("{ }")
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{change}"):
        found.require_unchanged()
