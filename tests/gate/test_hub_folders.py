"""Manifests of folders, which say their model themselves."""

from __future__ import annotations

import pytest
import torch
from networks.hub import batch, built, folder
from safetensors.torch import save_file

pytest.importorskip("transformers")

MANIFEST = """
schema = 1
[pair.twins]
a = "models/a"
b = "models/b"
data = "tokens.safetensors"
check.linear_connectivity = { align = "none", limit = 10.0, points = 3, endpoints = "any" }

[pair.lone]
a = "models/lone.safetensors"
b = "models/b"
data = "tokens.safetensors"
check.linear_connectivity = { align = "none", limit = 10.0, points = 3, endpoints = "any" }
"""


def test_a_manifest_of_folders_needs_no_model_and_no_loss(pytester):
    """Of folders the config says the model and the loss; of a lone file the missing model is told."""
    for seed, name in enumerate("ab"):
        folder(pytester.path / "models" / name, built("Llama", seed))
    save_file({"w": torch.ones(2)}, pytester.path / "models/lone.safetensors")
    save_file({"inputs": batch("Llama")["input_ids"]}, pytester.path / "tokens.safetensors")
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    result = pytester.runpytest_inprocess(
        "--lmc-models", "-q", "-W", "error", "--lmc-device=cpu", "-k", "linear or manifest"
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*pair.lone.model: missing in the pair and in *defaults*"])
    assert "Loading weights" not in result.stdout.str() + result.stderr.str()
