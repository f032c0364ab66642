"""Merges of folders as save_pretrained writes them: what is made is a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lmccheck

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small tied language models; the second stores its head beside the embedding as well."""
    from safetensors.torch import load_file, save_file

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
