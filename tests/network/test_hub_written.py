"""What is written of folders has the names of their files, and is what from_pretrained makes of it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from networks.hub import batch, built, folder
from networks.quick import slowly
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.network.hub import names
from lmccheck.network.hub.consumed import consumed
from lmccheck.store.writing import write_like

pytest.importorskip("transformers")


def pair_of(tmp_path, family, dtype=torch.float32, **saved):
    a, b = (folder(tmp_path / name, built(family, k).to(dtype), **saved) for k, name in enumerate("ab"))
    given = batch(family)
    return lmccheck.load_pair(a, b, data=given, calibration=given, device="cpu")


def beside(config_of, target):
    """Return a folder of the file ``target`` with the config of another folder."""
    shutil.copyfile(config_of / "config.json", target.parent / "config.json")
    return target.parent


@pytest.mark.parametrize("family", ["Mixtral", "ViT", "BERT, masked"])
def test_a_merge_is_written_under_the_names_of_the_file(tmp_path, family):
    """Experts are taken apart and names put back, dtypes kept, in one file of what were shards, and it loads."""
    pair = pair_of(tmp_path, family, torch.bfloat16, max_shard_size="2KB")
    target = lmccheck.save_merged(pair, None, tmp_path / "out" / "model.safetensors")
    files = [load_file(file) for file in (tmp_path / "a").glob("*.safetensors")]
    assert load_file(target).keys() == {name for held in files for name in held}
    state = consumed(beside(tmp_path / "a", target)).state_dict()
    ends = [consumed(tmp_path / name).state_dict() for name in "ab"]
    for name, tensor in state.items():
        middle = (ends[0][name].float() + ends[1][name].float()) / 2 if tensor.is_floating_point() else ends[0][name]
        assert torch.equal(tensor, middle.to(tensor.dtype)), name


@pytest.mark.slow
def test_an_aligned_model_is_written_so_that_it_loads(tmp_path):
    """θ_B permuted loads as its own library loads it, and answers as θ_B does."""
    pair = pair_of(tmp_path, "ViT")
    alignment = lmccheck.align(pair)
    assert not alignment.is_identity
    target = lmccheck.save_aligned(alignment, tmp_path / "out" / "model.safetensors")
    assert load_file(target).keys() == load_file(tmp_path / "b/model.safetensors").keys()
    pixels = batch("ViT")["pixel_values"]
    with torch.no_grad():
        one, other = (consumed(path).eval()(pixels).logits for path in (beside(tmp_path / "b", target), tmp_path / "b"))
    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.equal(one, torch.zeros_like(one))


@pytest.mark.parametrize(("family", "size"), [slowly("Mixtral", "2KB"), ("BERT, masked", "1GB")])
def test_a_folder_is_written_as_its_consumer_loads_it(tmp_path, family, size):
    """Aligned and merged: the shards, the index, the config and the tokenizer's files of the source, no code, no
    pickle; transformers loads it by itself, with the aligned numbers bit for bit, and it answers as θ_B does in
    float32.
    """
    pair_of(tmp_path, family, max_shard_size=size)
    a, b = tmp_path / "a", tmp_path / "b"
    for path in b.glob("*.safetensors"):
        save_file(load_file(path), path)  # without metadata, as other programs do
    given = batch(family)
    pair = lmccheck.load_pair(a, b, data=given, calibration=given, device="cpu")
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "modeling_own.py", "old.bin"):
        (b / name).write_text(f'{{"of": "{name}"}}')
    (b / "additional_chat_templates").mkdir()
    (b / "additional_chat_templates" / "tools.jinja").write_text("{}")
    alignment = lmccheck.align(pair)
    assert not alignment.is_identity
    written = lmccheck.save_aligned(alignment, tmp_path / "out" / "v1.5")
    assert {path.name for path in written.parent.iterdir()} == {"v1.5", "v1.5.permutation.safetensors"}
    left = {"modeling_own.py", "old.bin"}
    assert {path.name for path in written.iterdir()} == {path.name for path in b.iterdir()} - left | {"lmccheck.json"}
    for path in b.rglob("*.j*"):
        assert (written / path.relative_to(b)).read_bytes() == path.read_bytes() or path.name.endswith("index.json")
    for index in b.glob("*.index.json"):
        ours, theirs = (json.loads((home / index.name).read_text()) for home in (written, b))
        assert ours["weight_map"] == theirs["weight_map"]
        assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    for path in written.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            assert opened.metadata()["format"] == "pt"  # without which transformers 4 reads no file
    state = consumed(written).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in alignment.weights.items())
    given = {name: tensor for name, tensor in batch(family).items() if name != "labels"}
    with torch.no_grad():
        one, other = (consumed(path).eval()(**given).logits for path in (written, b))
    assert torch.allclose(one, other, atol=1e-5)
    merged = lmccheck.save_merged(pair, alignment, tmp_path / "out" / "merged")
    ends = pair.theta_a, alignment.weights
    for name, tensor in consumed(merged).state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, (ends[0][name] + ends[1][name]) / 2, atol=1e-7), name
    assert json.loads((merged / "lmccheck.json").read_text())["t"] == 0.5


def test_a_folder_is_never_written_over_an_input_or_over_others(tmp_path):
    """Not over a, b, or a folder that lmccheck did not write; again over its own; nothing is left of what failed."""
    pair = pair_of(tmp_path, "Llama")
    alignment = lmccheck.align(pair)
    for name, words in {"a": "was read from it", "b": "was read from it", "mine": "holds notes"}.items():
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "notes").write_text("")
        before = sorted(path for path in tmp_path.rglob("*"))
        with pytest.raises(CheckpointError, match=words) as caught:
            lmccheck.save_aligned(alignment, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert sorted(path for path in tmp_path.rglob("*")) == before
    for _ in range(2):
        lmccheck.save_aligned(alignment, tmp_path / "again")
    assert consumed(tmp_path / "again")


def test_settings_of_the_config_may_be_replaced(tmp_path):
    """What a file of other weights needs said is said in its config.json; all else stays."""
    pair = pair_of(tmp_path, "Llama")
    b = pair.origins[1]
    written = write_like(
        b, pair.theta_b, tmp_path / "out", {}, inputs=(), config={"tie_word_embeddings": False, "n": 1}
    )
    before, now = (json.loads((home / "config.json").read_text()) for home in (tmp_path / "b", written))
    assert now == {**before, "tie_word_embeddings": False, "n": 1}


@pytest.mark.slow
def test_the_modules_own_layout_is_kept(tmp_path):
    """A file in which experts are stacked already is written stacked."""
    pair = pair_of(tmp_path, "Mixtral")
    save_file(dict(pair.theta_a), tmp_path / "a" / "model.safetensors", {"format": "pt"})
    other = lmccheck.load_pair(tmp_path / "a", tmp_path / "b", data=batch("Mixtral"), device="cpu")
    assert all(torch.equal(other.theta_a[name], tensor) for name, tensor in pair.theta_a.items())
    target = lmccheck.save_merged(other, None, tmp_path / "out" / "model.safetensors")
    assert load_file(target).keys() == pair.theta_a.keys()


@pytest.mark.parametrize("given", [False, True])
def test_a_layout_without_a_way_back_is_refused(tmp_path, monkeypatch, given):
    """Where what transformers would write is not the file's layout, or ``given`` in it not the weights, nothing is
    written, in one line."""
    pair = pair_of(tmp_path, "Mixtral")
    monkeypatch.setattr(names, "_reverted", lambda weights, model, held: dict(held if given else weights))
    with pytest.raises(CheckpointError, match="no way back from MixtralForCausalLM of") as caught:
        lmccheck.save_merged(pair, None, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_consumed_is_what_from_pretrained_makes(tmp_path):
    """In the stored dtypes; a folder that lacks a tensor does not load, nor one of pickles."""
    model = built("Llama", 4).to(torch.bfloat16)
    path = folder(tmp_path / "a", model)
    state = consumed(path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    tensors = load_file(path / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "lm_head.weight"}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"tensor 'lm_head\.weight' is missing"):
        consumed(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(SourceError, match="never run"):
        consumed(path)
