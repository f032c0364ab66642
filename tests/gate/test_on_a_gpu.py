"""What a GPU computes is what a CPU computes: run by hand with ``pytest -m gpu`` where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.sets import DIGITS, shipped

import lmccheck

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]
METHODS = ("weight-matching", "activation-matching", "transport", "transport-both", "learned", "best")


def gate(device: str, report: Path) -> dict[str, Any]:
    """Return what the gate reports of the shipped pairs on a device."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lmc-models", "fixtures/lmc.toml"]
    given = [f"--lmc-device={device}", f"--lmc-report-json={report}"]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    ran = subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, timeout=300, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return dict(json.loads(report.read_text()))


def test_the_shipped_pairs_get_the_same_verdicts(tmp_path: Path) -> None:
    """Each check's verdict is that of the CPU, its value within a tenth of its limit; the card is named."""
    there, here = (gate(device, tmp_path / f"{device}.json") for device in ("cuda", "cpu"))
    found = {check["id"]: check for check in there["checks"]}
    assert {name: check["verdict"] for name, check in found.items()} == {
        check["id"]: check["verdict"] for check in here["checks"]
    }
    for check in here["checks"]:
        if check["value"] is not None:
            assert abs(check["value"] - found[check["id"]]["value"]) <= 0.1 * check["limit"], check["id"]
            print(f"{check['id']}: {check['value']:.6g} on the CPU, {found[check['id']]['value']:.6g} on the GPU")
    assert there["environment"]["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_losses_along_an_unaligned_line(kind: str) -> None:
    """The same 25 losses to 1e-5 relative, also where the user has switched TF32 on."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        there, here = (
            lmccheck.linear_connectivity(shipped(kind, device=device), align="none", limit=99.0)
            for device in ("cuda", "cpu")
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert there.details["losses"] == pytest.approx(here.details["losses"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_an_alignment_keeps_the_function(kind: str, method: str) -> None:
    """Matching and assignment on the GPU move units only: the network computes what it did, in float64."""
    alignment = lmccheck.align(shipped(kind, device="cuda"), method)
    assert alignment.function_deviation <= 1e-9
    barriers = [
        lmccheck.linear_connectivity(shipped(kind, device=device), align=method, limit=99.0).value
        for device in ("cuda", "cpu")
    ]
    print(f"{kind}, {method}: barrier {barriers[0]:.4f} on the GPU, {barriers[1]:.4f} on the CPU")
    assert barriers[0] <= barriers[1] + 0.1


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_maps_beyond_permutations_keep_the_function(kind: str) -> None:
    """Rescalings, flips, head maps and rotations are fitted on the GPU, too."""
    alignment = lmccheck.align(shipped(kind, device="cuda"), beyond="all")
    assert alignment.function_deviation <= 1e-6


def test_sets_and_two_widths() -> None:
    """Barriers of a set and of two widths, to 1e-4 nats."""
    models = [f"mlp-seed{k}.safetensors" for k in range(2)]
    sets = [lmccheck.set_connectivity(models, limit=9.0, **{**DIGITS, "device": name}) for name in ("cuda", "cpu")]
    assert sets[0].value == pytest.approx(sets[1].value, abs=1e-4)
    given = {key: value for key, value in DIGITS.items() if key != "model"}
    fused = [
        lmccheck.fused_connectivity(
            *models, model_a="models:mlp", model_b="models:mlp", limit=9.0, **{**given, "device": name}
        )
        for name in ("cuda", "cpu")
    ]
    assert fused[0].value == pytest.approx(fused[1].value, abs=1e-4)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_device_by_its_name(name: str) -> None:
    """``auto`` takes the GPU; what is measured says so."""
    assert shipped("mlp", device=name).description["device"].startswith("cuda")
