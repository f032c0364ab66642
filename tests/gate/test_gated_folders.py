"""The gate on folders: shards beside a single file, a base with an adapter, what reports say of them."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmccheck.store.checkpoint import look_at

SHAPES = {"0.weight": (12, 6), "0.bias": (12,), "2.weight": (3, 12), "2.bias": (3,)}
MODELS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
"""
MANIFEST = """
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"

[pair.shards]
a = "whole"
b = "shards"
check.linear_connectivity = { limit = 1e-5 }

[pair.adapter]
a = "whole"
b = { base = "shards", adapter = "ad" }
check.linear_connectivity = { limit = 1e-5, align = "weight-matching" }

[set.all]
models = ["whole", "shards/model.safetensors.index.json", { base = "whole", adapter = "ad" }]
check.set_connectivity = { limit = 1e-4, align = "weight-matching" }
"""


@pytest.fixture
def gated(pytester):
    """A network in a folder, the same with its hidden units shuffled in shards, and an adapter that adds next to
    nothing; every file's names begin with what torch.compile adds in the shards.
    """
    generator = torch.Generator().manual_seed(0)
    a = {name: 3 * torch.randn(*shape, generator=generator) for name, shape in SHAPES.items()}
    order = torch.randperm(12, generator=generator)
    b = {**a, "0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order], "2.weight": a["2.weight"][:, order]}
    inputs = torch.randn(40, 6, generator=generator)
    targets = (torch.relu(inputs @ a["0.weight"].T + a["0.bias"]) @ a["2.weight"].T + a["2.bias"]).argmax(1)
    save_file({"inputs": inputs, "targets": targets}, pytester.path / "data.safetensors")
    for name in ("whole", "shards", "ad"):
        (pytester.path / name).mkdir()
    save_file(a, pytester.path / "whole" / "model.safetensors")
    placed = {f"_orig_mod.{name}": f"model-0000{k}-of-00004.safetensors" for k, name in enumerate(b, 1)}
    for name, shard in placed.items():
        tensor = b[name.removeprefix("_orig_mod.")].contiguous()
        save_file({name: tensor}, pytester.path / "shards" / shard)
    (pytester.path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    factors = {"A": 1e-4 * torch.ones(2, 6), "B": 1e-4 * torch.ones(12, 2)}
    save_file(
        {f"base_model.model.0.lora_{name}.weight": tensor for name, tensor in factors.items()},
        pytester.path / "ad" / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"]}
    (pytester.path / "ad" / "adapter_config.json").write_text(json.dumps(said))
    (pytester.path / "models.py").write_text(MODELS)
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    return pytester


def test_folders_are_gated_as_files_are(gated):
    """Verdicts, what ships, and the report: one hash for all files of a checkpoint, and the prefix in a note."""
    result = gated.runpytest_inprocess(
        "--lmc-models", "-p", "no:cacheprovider", "--lmc-report-json=out.json", "--lmc-aligned-dir=ship",
        "--lmc-attest=statement.json",
    )  # fmt: skip
    result.assert_outcomes(passed=4)
    report = json.loads((gated.path / "out.json").read_text())
    pairs = {pair["name"]: pair["files"] for pair in (*report["pairs"], *report["sets"])}
    index = sorted((gated.path / "shards").iterdir())
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in index)
    assert pairs["shards"]["b"]["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert pairs["shards"]["b"]["path"] == "shards"
    statement = json.loads((gated.path / "statement.json").read_text())
    subjects = {subject["digest"]["sha256"] for subject in statement["subject"]}
    assert subjects >= {hashlib.sha256(file.read_bytes()).hexdigest() for file in index}
    assert pairs["adapter"]["b"]["adapter"]["r"] == 2
    assert pairs["adapter"]["b"]["base"] == "shards"
    assert pairs["all"].keys() == {"whole", "shards", "ad"}
    assert str(gated.path) not in json.dumps(pairs)
    notes = {check["id"].split("::")[1]: check.get("notes", []) for check in report["checks"]}
    prefix = "b: names are taken without their prefix '_orig_mod.' (as torch.compile saves them)"
    assert prefix in notes["shards"]
    assert prefix in notes["adapter"]
    aligned = look_at("ship/shards-b-aligned", gated.path, "written")
    whole = load_file(gated.path / "whole" / "model.safetensors")
    assert aligned.shards == {name: f"model-0000{k}-of-00004.safetensors" for k, name in enumerate(SHAPES, 1)}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in aligned.read().items())
    folders = {"whole-aligned", "shards-aligned", "ad-aligned"}
    files = {f"{name}.permutation.safetensors" for name in folders}
    assert {path.name for path in (gated.path / "ship" / "all").iterdir()} == folders | files


def test_a_folder_that_fails_now_is_not_left_to_be_shipped(gated):
    """What an earlier run wrote is removed where the pair fails, in folders too; what others put there stays."""
    arguments = ("--lmc-models", "-p", "no:cacheprovider", "--lmc-aligned-dir=ship", "-k", "shards")
    gated.runpytest_inprocess(*arguments).assert_outcomes(passed=1)
    written = gated.path / "ship" / "shards-b-aligned"
    (written / "NOTES").write_text("mine")
    (gated.path / "lmc.toml").write_text(MANIFEST.replace("limit = 1e-5 }", 'limit = 1e-5, align = "none" }'))
    result = gated.runpytest_inprocess(*arguments)
    result.stdout.fnmatch_lines(["*shards-b-aligned/model-00001-of-00004.safetensors, of an earlier run, was removed*"])
    assert not list(written.parent.rglob("*.safetensors"))
    assert (written / "NOTES").read_text() == "mine"


@pytest.mark.parametrize(
    "target", ["whole/model.safetensors", "shards/model.safetensors.index.json", "ad/adapter_config.json"]
)
def test_no_file_of_a_folder_is_written_over(gated, target):
    """A report at its place is a usage error before anything is written."""
    before = (gated.path / target).read_bytes()
    result = gated.runpytest_inprocess("--lmc-models", "-p", "no:cacheprovider", f"--lmc-report-json={target}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --lmc-report-json: {target} is an input, *"])
    assert (gated.path / target).read_bytes() == before


def test_a_stale_file_is_an_error_before_anything_is_measured(gated):
    """The manifest item names both, and so does the pair."""
    save_file({"0.bias": torch.zeros(12)}, gated.path / "shards" / "model.safetensors")
    result = gated.runpytest_inprocess("--lmc-models", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=4)
    words = "*shards/model.safetensors.index.json: lies beside model.safetensors, a single file *"
    result.stdout.fnmatch_lines([f"pair.shards.b: {words}"])
