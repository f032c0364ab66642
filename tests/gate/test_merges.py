"""``[merge.NAME]``: a merge is made, gated and reported as pairs and sets are, by the real core."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.merges import MANIFEST
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
import torch
from torch import nn

def linear():
    return nn.Linear(3, 3)

def mean(parents, base):
    return {n: (parents["x"][n] + parents["y"][n]) / 2 for n in parents["x"]}

def six(parents, base):
    return {n: base[n] + 6 * (parents["x"][n] - base[n]) for n in base}
"""


@pytest.fixture
def gates(pytester: pytest.Pytester) -> Path:
    """A manifest of three merges beside their files."""
    folder = pytester.path
    (folder / "models.py").write_text(MODELS)
    (folder / "lmc.toml").write_text(MANIFEST)
    eye = torch.eye(3)
    weights = {"x": 8 * eye, "y": 8 * eye + 1, "z": -8 * eye, "base": 8 * eye - 2 * eye[[1, 2, 0]]}
    for name, weight in weights.items():
        save_file({"weight": weight, "bias": torch.zeros(3)}, folder / f"{name}.safetensors")
    for name, seed in (("data", 0), ("other", 1)):
        noise = 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
        targets = torch.arange(60) % 3
        save_file({"inputs": eye[targets] + noise, "targets": targets}, folder / f"{name}.safetensors")
    return folder


def test_merges_are_gated_and_reported(gates: Path, pytester: pytest.Pytester) -> None:
    """A pass, a failure that says what to try, a parent that is of no use: rows, JSON, the merge that passed."""
    out = gates / "out" / "far-merged"
    out.mkdir(parents=True)
    (out / "lmccheck.json").write_text("{}")
    (out / "merged.safetensors").write_text("stale")
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-report-json=r.json", "--lmc-aligned-dir=out", "-q")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        ["*far: call (call = models:six): the merge is worse than x*", "reproduce: pytest 'lmc*"]
    )
    result.stdout.fnmatch_lines(["lost * inconclusive *"])
    report = json.loads((gates / "r.json").read_text())
    assert [entry["name"] for entry in report["merges"]] == ["far", "lost", "soup"]
    assert {check["kind"] for check in report["checks"] if check["pair"]} == {"merge"}
    soup = next(check for check in report["checks"] if check["pair"] == "soup" and check["check"] == "merged_loss")
    assert {end["name"] for end in soup["endpoints"]} == {"x", "y"}
    assert soup["worst_loss"] == soup["details"]["merged"]["loss"]
    assert soup["details"]["made"]["taken"]
    assert sorted(report["merges"][0]["files"]) == ["base", "x"]
    written = load_file(gates / "out" / "soup-merged" / "merged.safetensors")
    assert written["weight"].shape == (3, 3)
    assert json.loads((gates / "out" / "soup-merged" / "lmccheck.json").read_text())["recipe"] == "greedy_soup"
    assert not (out / "merged.safetensors").exists()  # what failed now is not left from before
