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


GATES = {"lmc.toml": 0, "known-bad.lmc.toml": 1, "hub/lmc.toml": 0, "lm/lmc.toml": 0, "lm/known-bad.lmc.toml": 1}


def gate(manifest: str, status: int, device: str, report: Path) -> dict[str, Any]:
    """Return what the gate reports of shipped checks on a device."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lmc-models", f"fixtures/{manifest}"]
    given = [f"--lmc-device={device}", f"--lmc-report-json={report}"]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    ran = subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, timeout=600, text=True)
    assert ran.returncode == status, ran.stdout + ran.stderr
    return dict(json.loads(report.read_text()))


@pytest.mark.parametrize("manifest", GATES)
def test_the_shipped_pairs_get_the_same_verdicts(manifest: str, tmp_path: Path) -> None:
    """Each check's verdict is that of the CPU, its value within a tenth of its limit; the card is named.

    Learned paths and maps end elsewhere after hundreds of rounded steps: of them only the verdict is the same.
    """
    if manifest.startswith("hub"):
        pytest.importorskip("mergekit")
    there, here = (gate(manifest, GATES[manifest], name, tmp_path / f"{name}.json") for name in ("cuda", "cpu"))
    found = {check["id"]: check for check in there["checks"]}
    assert {name: check["verdict"] for name, check in found.items()} == {
        check["id"]: check["verdict"] for check in here["checks"]
    }
    for check in here["checks"]:
        if check["value"] is not None:
            other = found[check["id"]]
            shown = [f"{each['value']:.6g} ({each['details'].get('known')})" for each in (check, other)]
            print(f"{check['id']}: {shown[0]} on the CPU, {shown[1]} on the GPU")
            assert other["details"].get("known", "")[:9] == check["details"].get("known", "")[:9], check["id"]
            if check["verdict"] == "pass":
                assert abs(check["value"] - other["value"]) <= 0.1 * check["limit"], check["id"]
    assert there["environment"]["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_certified_line(kind: str) -> None:
    """The bound over all t holds what is measured on either device, and is the same to 1e-4."""
    there, here = (
        lmccheck.linear_connectivity(
            shipped(kind, device=device), align="none", repair="none", limit=99.0, certify="always", profile="dev"
        )
        for device in ("cuda", "cpu")
    )
    assert str(there.details["known"]).startswith("certified"), there.details["certify"]
    assert there.details["certified_bound"] >= max(there.value, here.value) - 1e-6
    assert there.details["certified_bound"] == pytest.approx(here.details["certified_bound"], rel=1e-4)


@pytest.mark.parametrize(("built", "verified"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_witness_of_one_device_is_verified_on_the_other(kind: str, built: str, verified: str, tmp_path: Path) -> None:
    """Paths and dropped networks are files: where they were made does not matter."""
    made, checked = shipped(kind, device=built), shipped(kind, device=verified)
    path = lmccheck.ten_segment_path(made, epsilon=0.1)
    lmccheck.save_path(path.witness, tmp_path / "path.safetensors")
    again = lmccheck.verify_path(checked, tmp_path / "path.safetensors", epsilon=0.1)
    assert (again.verdict, path.verdict) == ("pass", "pass")
    assert again.value == pytest.approx(path.value, abs=1e-5)
    dropped = lmccheck.dropout_stability(made, epsilon=0.1)
    again = lmccheck.verify_dropout(checked, dropped.witness, epsilon=0.1)
    assert (again.verdict, dropped.verdict) == ("pass", "pass")
    assert again.value == pytest.approx(dropped.value, abs=1e-5)


def test_a_learned_path() -> None:
    """Bends are trained on the GPU, and verified on the CPU without training."""
    made, checked = shipped("transformer", device="cuda"), shipped("transformer", device="cpu")
    path = lmccheck.ten_segment_path(made, form="learned", epsilon=0.5, profile="dev")
    again = lmccheck.verify_path(checked, path.witness, epsilon=0.5, profile="dev")
    print(f"learned path: excess {path.value:.4f} on the GPU, {again.value:.4f} on the CPU, {path.seconds:.0f} s")
    assert again.value == pytest.approx(path.value, abs=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_coefficients_of_layers(kind: str) -> None:
    """The loss where every layer has a coefficient of its own is that of the CPU at the point that was found."""
    there, here = (
        lmccheck.box_connectivity(shipped(kind, device=device), limit=99.0, examples=30, align="none")
        for device in ("cuda", "cpu")
    )
    assert there.value == pytest.approx(here.value, rel=1e-3)


def test_warnings_may_be_errors() -> None:
    """A process whose first backward pass is a check's, under ``-W error``: torch warns of cuBLAS without a context."""
    code = (
        "import lmccheck; from networks.sets import shipped; "
        "found = lmccheck.noise_stability(shipped('mlp', device='cuda'), p=0.1, diagnostics=True); print(found.verdict)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], env=environment, cwd=ROOT, capture_output=True,
        timeout=300, text=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["pass"], ran.stderr


class Hungry(torch.nn.Linear):
    """A layer that asks for more memory than a card has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what a linear layer does, if there is memory for 8 TiB."""
        return super().forward(x) + torch.empty(2**43, dtype=torch.uint8, device=x.device)[0]


def test_memory_that_a_card_lacks_is_one_line() -> None:
    """What was asked for, and the mend; no traceback of the driver."""
    theta = {"weight": torch.randn(3, 4), "bias": torch.zeros(3)}
    with pytest.raises(lmccheck.LmcError, match=r"out of memory: 8192\.00 GiB asked for.*mend:"):
        lmccheck.linear_connectivity(
            lmccheck.load_pair(
                theta,
                {name: tensor + 1 for name, tensor in theta.items()},
                model=lambda: Hungry(4, 3),
                data=(torch.randn(8, 4), torch.arange(8) % 3),
                device="cuda",
            ),
            align="none",
        )


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
