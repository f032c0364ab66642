"""``--lmc-witness-dir``: what proves each verdict is written, on the real core."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmccheck

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""
DEFAULTS = """
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"
calibration = "data.safetensors"
"""
PAIR = '[pair.{name}]\na = "a.safetensors"\nb = "b.safetensors"\n'
CHECKS = """
check.linear_connectivity = { limit = 1e-6, points = 3 }
check.naive = { property = "linear_connectivity", align = "none", limit = 0.0, points = 3 }
check.dropout_path = { epsilon = 1e-9, form = "short" }
"""


@pytest.fixture
def real(pytester):
    """A folder with a network, the same network with its hidden units shuffled, data, and a manifest."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    a = {name: 2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    order = torch.randperm(8, generator=generator)
    b = {name: value[:, order] if name == "2.weight" else value[order] for name, value in a.items() if name != "2.bias"}
    save_file(a, pytester.path / "a.safetensors")
    save_file(
        {**{name: value.contiguous() for name, value in b.items()}, "2.bias": a["2.bias"]},
        pytester.path / "b.safetensors",
    )
    inputs = torch.randn(40, 6, generator=generator)
    hidden = torch.relu(inputs @ a["0.weight"].T + a["0.bias"])
    targets = (hidden @ a["2.weight"].T + a["2.bias"]).argmax(1)
    save_file({"inputs": inputs, "targets": targets}, pytester.path / "data.safetensors")
    (pytester.path / "models.py").write_text(MODELS)
    (pytester.path / "lmc.toml").write_text(DEFAULTS + PAIR.format(name="planted") + CHECKS)
    return pytester


def run(real, *arguments):
    return real.runpytest_inprocess("--lmc-models", "--lmc-profile=dev", *arguments)


def test_every_verdict_leaves_its_proof(real):
    """A file per check of passes and fails alike; a check without a witness says so. The ini file gives way."""
    real.makeini("[pytest]\nlmc_witness_dir = kept\n")
    result = run(real, "--lmc-witness-dir=proof/new", "--lmc-report-json=report.json")
    report = json.loads((real.path / "report.json").read_text())
    verdicts = {check["id"].split("::", 1)[1]: check["verdict"] for check in report["checks"]}
    assert verdicts == {
        "manifest": "pass",
        "planted::linear_connectivity": "pass",
        "planted::naive": "fail",
        "planted::dropout_path": "fail",
    }
    files = sorted(path.name for path in (real.path / "proof" / "new").iterdir() if "permutation" not in path.name)
    assert files == ["planted-dropout_path.safetensors", "planted-linear_connectivity.safetensors"]
    assert not (real.path / "kept").exists()
    lines = [f"witness written to */proof/new/{name}" for name in files]
    result.stdout.fnmatch_lines_random([*lines, "witness of planted::naive not written: it has none"])
    aligned = load_file(real.path / "proof" / "new" / files[1])
    assert all(torch.equal(aligned[name], value) for name, value in load_file(real.path / "a.safetensors").items())
    path = lmccheck.load_path(real.path / "proof" / "new" / files[0])
    assert all(
        torch.equal(value.float(), aligned[name]) for name, value in path.at(0.0).items()
    )  # it begins at a, which the aligned b equals


def test_the_ini_file_may_name_the_folder(real):
    """Relative to the ini file."""
    real.makeini("[pytest]\nlmc_witness_dir = kept\n")
    run(real, "-k", "linear_connectivity and not naive")
    assert (real.path / "kept" / "planted-linear_connectivity.safetensors").is_file()


def test_a_folder_that_cannot_be_written_is_an_error_of_the_check(real):
    """One line that names option and file; what was measured is still reported."""
    (real.path / "proof").write_text("a file in the way")
    result = run(real, "--lmc-witness-dir=proof", "-k", "planted and not naive and not dropout_path")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*--lmc-witness-dir: cannot write *proof/planted-linear_connectivity.safetensors: *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_two_pairs_of_one_name_are_refused(real):
    """Their files would overwrite each other; nothing is measured."""
    (real.path / "more.lmc.toml").write_text((real.path / "lmc.toml").read_text())
    result = run(real, "--lmc-witness-dir=proof")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-witness-dir: *both have a pair 'planted', *; mend: rename one of them"])
    assert not (real.path / "proof").exists()
