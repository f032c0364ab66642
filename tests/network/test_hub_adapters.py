"""An adapter names the tensors of a model; its base may name them otherwise, and is converted first then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.hub import batch, built, folder
from safetensors.torch import save_file

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import look_at

pytest.importorskip("transformers")


def adapter(path: Path, targets: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Write an adapter of rank 2 and α 4; return what it adds to the tensors of modules of these shapes."""
    path.mkdir()
    tensors, added = {}, {}
    for k, (module, (outs, ins)) in enumerate(targets.items()):
        generator = torch.Generator().manual_seed(k)
        a, b = torch.randn(2, ins, generator=generator), torch.randn(outs, 2, generator=generator)
        tensors |= {f"base_model.model.{module}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
        added[f"{module}.weight"] = 2 * b @ a
    save_file(tensors, path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(targets)}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return added


@pytest.mark.parametrize("family", ["Llama", "ViT", "Mixtral"])
def test_an_adapter_on_a_folder(tmp_path: Path, family: str) -> None:
    """W + s·BA under the module's names, also where the file has older ones, or each expert by itself."""
    model = built(family, 3)
    folder(tmp_path / "base", model)
    state = model.state_dict()
    names = [name for name in state if ".layers.0." in name and "q_proj.weight" in name]
    assert names
    added = adapter(tmp_path / "ad", {name.removesuffix(".weight"): tuple(state[name].shape) for name in names})
    given = {"base": "base", "adapter": "ad"}
    pair = lmccheck.load_pair("base", given, data=batch(family), device="cpu", base=tmp_path)
    for name, tensor in state.items():
        assert torch.allclose(pair.theta_b[name], tensor + added.get(name, 0), atol=1e-6), name
    files = {path.name for path in pair.inputs}
    assert files >= {"model.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.json"}
    pinned = {"b": look_at(given, tmp_path, "b").sha256}
    again = lmccheck.load_pair("base", given, data=batch(family), device="cpu", base=tmp_path, sha256=pinned)
    assert all(torch.equal(tensor, again.theta_b[name]) for name, tensor in pair.theta_b.items())
    with pytest.raises(CheckpointError, match="the pin says"):
        lmccheck.load_pair("base", given, data=batch(family), device="cpu", base=tmp_path, sha256={"b": "0" * 64})


def test_an_adapter_of_no_such_module(tmp_path: Path) -> None:
    """Is refused when the model's own names are known, or at once where no config says them."""
    folder(tmp_path / "base", built("ViT", 3))
    adapter(tmp_path / "ad", {"vit.layers.7.attention.q_proj": (8, 8)})
    given = {"base": "base", "adapter": "ad"}
    with pytest.raises(CheckpointError, match=r"is of tensor 'vit\.layers\.7\.attention\.q_proj\.weight', which"):
        lmccheck.load_pair("base", given, data=batch("ViT"), device="cpu", base=tmp_path)
    with pytest.raises(CheckpointError, match="is of tensor"):
        look_at(given, tmp_path, "b").read()
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is of tensor"):
        look_at(given, tmp_path, "b")
