"""From folders and a mergekit YAML to verdicts, in a manifest of eleven lines and no Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.merging.drawn_folders import llama_config, llama_shapes

pytestmark = pytest.mark.slow

MANIFEST = """schema = 1
[merge.release]
parents = { chat = "chat", math = "math" }
base = "base"
recipe = { mergekit = "merge.yaml" }
data = "data.safetensors"
shipped = "out"
check.merged_loss = { limit = 10, endpoints = "any" }
check.shipped = {}
check.merge_laws = {}
"""
YAML = """
models:
  - {model: chat, parameters: {weight: 0.7}}
  - {model: math, parameters: {weight: 0.3}}
merge_method: task_arithmetic
base_model: base
dtype: bfloat16
"""
STACKED = """
slices:
  - sources: [{model: chat, layer_range: [0, 2]}]
  - sources: [{model: math, layer_range: [1, 2]}]
merge_method: passthrough
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, two fine-tunes, text as tokens, and YAMLs."""
    pytest.importorskip("mergekit")
    shapes = llama_shapes(2, 4)
    base = {k: torch.randn(*s, generator=torch.Generator().manual_seed(k.__len__())) for k, s in shapes.items()}
    for seed, name in enumerate(("base", "chat", "math")):
        generator = torch.Generator().manual_seed(seed)
        state = {k: v + 0.1 * seed * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(llama_config(2, 4)))
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
    tokens = torch.randint(0, 3, (10, 6), generator=torch.Generator().manual_seed(9))
    save_file({"inputs": tokens}, tmp_path / "data.safetensors")
    (tmp_path / "merge.yaml").write_text(YAML)
    (tmp_path / "stacked.yaml").write_text(STACKED)
    (tmp_path / "lmc.toml").write_text(MANIFEST)
    return tmp_path


def merge(folder: Path, yaml: str = "merge.yaml", **more: object) -> lmccheck.Merge:
    given = {"data": "data.safetensors", "base_model": "base", "base": folder, "device": "cpu", **more}
    return lmccheck.load_merge({"chat": "chat", "math": "math"}, {"mergekit": yaml}, **given)  # type: ignore[arg-type]


def test_the_gate_runs_mergekit_and_compares_what_is_shipped(folder: Path) -> None:
    """The folder that mergekit made passes: its loss, its bits, its laws."""
    shutil.copytree(merge(folder).product.made.path, folder / "out")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lmc-models", "lmc.toml"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "4 passed" in run.stdout, run.stdout
    assert run.returncode == 0


def test_a_merge_of_more_layers_is_built_from_its_own_config(folder: Path) -> None:
    """Stacked layers: it is measured, what is shipped is compared, and the laws of every method hold."""
    made = merge(folder, "stacked.yaml").product.made.path
    shutil.copytree(made, folder / "out")
    stacked = merge(folder, "stacked.yaml", shipped="out")
    assert len({name.split(".")[2] for name in stacked.merged.theta if ".layers." in name}) == 3
    assert lmccheck.merged_loss(stacked, limit=10.0).passed
    assert lmccheck.shipped(stacked).passed
    assert lmccheck.merge_laws(stacked).passed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}, "rope"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps is 0.1 in shipped"),
        ({"num_hidden_layers": 1}, "does not load: "),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true in shipped"),
    ],
)
def test_a_config_that_is_not_the_merges_stops_the_folder(folder: Path, change: dict[str, object], said: str) -> None:
    """Equal bits under another config are another model, which is measured as it is."""
    shutil.copytree(merge(folder).product.made.path, folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    (folder / "out" / "config.json").write_text(json.dumps({**config, **change}))
    result = lmccheck.shipped(merge(folder, shipped="out"))
    assert result.verdict == "fail"
    assert any(said in line for line in result.lines), result.lines
    assert result.details["losses"]["the merge"] > 0
    loads = "does not load" not in "".join(result.lines)
    assert ("shipped" in result.details["losses"]) is loads


def test_float32_weights_of_a_bfloat16_merge_are_told(folder: Path) -> None:
    """The numbers are the same, the dtype is another."""
    shutil.copytree(merge(folder).product.made.path, folder / "out")
    state = load_file(folder / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    save_file({k: v.float() for k, v in state.items()}, folder / "out" / "model.safetensors", {"format": "pt"})
    lines = lmccheck.shipped(merge(folder, shipped="out")).lines
    assert "is float32, expected bfloat16; its numbers are the same" in lines[0]


def test_a_folder_that_does_not_load_is_not_shipped(folder: Path) -> None:
    """No config, or an index that is stale: the first is the property's line, the second loading's."""
    shutil.copytree(merge(folder).product.made.path, folder / "out")
    (folder / "out" / "config.json").unlink()
    result = lmccheck.shipped(merge(folder, shipped="out"))
    assert any("does not load: " in line and "config.json" in line for line in result.lines)
    (folder / "out" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-1.safetensors"}})
    )
    with pytest.raises((CheckpointError, SourceError), match="index"):
        merge(folder, shipped="out")
