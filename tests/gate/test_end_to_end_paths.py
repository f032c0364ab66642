"""The gate on the real core: stability and paths of tiny networks whose verdicts are known beforehand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import lmccheck

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
from torch import nn

def mlp(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

def narrow():
    return mlp(3)

def normed():
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))
"""

MANIFEST = """
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"
calibration = "data.safetensors"
loss = "mse"

[pair.doubled]
a = "doubled-a.safetensors"
b = "doubled-b.safetensors"
check.dropout_stability = { endpoints = "any", epsilon = 1e-9 }
check.noise_stability = { endpoints = "any", epsilon = 10.0, p = 0.1, masks = 20 }
check.ten_segment_path = { endpoints = "any", epsilon = 1e-9 }
check.dropout_path = { endpoints = "any", epsilon = 1e-9, form = "short" }

[pair.doubled.check.through]
property = "dropout_path"
endpoints = "any"
epsilon = 100.0
through = "narrow.safetensors"
through_model = "models:narrow"


[pair.random]
a = "random-a.safetensors"
b = "random-b.safetensors"
data = "exact.safetensors"
calibration = "exact.safetensors"
check.dropout_stability = { epsilon = 1e-3, keep = { "0" = 0.25 } }
check.ten_segment_path = { epsilon = 1e-3, form = "short" }
check.dropout_path = { epsilon = 1e-3 }

[pair.normed]
model = "models:normed"
a = "normed-a.safetensors"
b = "normed-b.safetensors"
check.ten_segment_path = { epsilon = 0.01, form = "ten" }
"""


def random(width: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.randn(width, 6, generator=generator),
        "0.bias": torch.randn(width, generator=generator),
        "2.weight": torch.randn(3, width, generator=generator),
        "2.bias": torch.randn(3, generator=generator),
    }


def doubled(seed: int) -> dict[str, torch.Tensor]:
    """Every one of six units twice, with half its outgoing weights."""
    small = random(6, seed)
    order = torch.arange(6).repeat(2)
    return {
        "0.weight": small["0.weight"][order],
        "0.bias": small["0.bias"][order],
        "2.weight": small["2.weight"][:, order] / 2,
        "2.bias": small["2.bias"],
    }


@pytest.fixture
def real(pytester):
    """A folder with pairs of networks, one of a duplicated kind, and a narrow one."""
    states = {"doubled-a": doubled(1), "doubled-b": doubled(2), "random-a": random(12, 3)}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))  # both fit exact.safetensors exactly
    given = states["random-a"]
    states["random-b"] = {
        k: v[:, order] if k == "2.weight" else v[order] if k[0] == "0" else v for k, v in given.items()
    }
    states["narrow"] = random(3, 5)
    for side in "ab":
        given = {("3" + k[1:] if k[0] == "2" else k): v for k, v in states[f"random-{side}"].items()}
        states[f"normed-{side}"] = {**given, "1.weight": torch.ones(12), "1.bias": torch.zeros(12)}
    for name, state in states.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, pytester.path / f"{name}.safetensors")
    generator = torch.Generator().manual_seed(9)
    inputs, targets = torch.randn(80, 6, generator=generator), torch.randn(80, 3, generator=generator)
    save_file({"inputs": inputs, "targets": targets}, pytester.path / "data.safetensors")
    weights = [states["random-a"][name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    fitted = (inputs @ weights[0].T + weights[1]).relu() @ weights[2].T + weights[3]
    save_file({"inputs": inputs, "targets": fitted}, pytester.path / "exact.safetensors")
    (pytester.path / "models.py").write_text(MODELS)
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    return pytester


def test_verdicts_rows_and_failures(real):
    """What must pass passes, what must not says where and why, and what theory does not cover is refused."""
    result = real.runpytest_inprocess("--lmc-models", "--lmc-report-json=report.json", "--lmc-profile=dev")
    report = json.loads((real.path / "report.json").read_text())
    verdicts = {check["id"].split("::", 1)[1]: check["verdict"] for check in report["checks"]}
    assert verdicts == {
        "manifest": "pass",
        "doubled::dropout_stability": "pass",
        "doubled::noise_stability": "pass",
        "doubled::ten_segment_path": "pass",
        "doubled::dropout_path": "pass",
        "doubled::through": "pass",
        "random::dropout_stability": "fail",
        "random::ten_segment_path": "fail",
        "random::dropout_path": "fail",
        "normed::ten_segment_path": "error",
    }
    by_id = {check["id"].split("::", 1)[1]: check for check in report["checks"]}
    assert by_id["doubled::through"]["details"]["kinds"] == "dbabbcbcbbabd"
    assert len(by_id["doubled::ten_segment_path"]["details"]["segments"]) == 10
    assert all(count == 3 for count in by_id["random::dropout_stability"]["details"]["found"]["a"][0]["kept"].values())
    result.stdout.fnmatch_lines(
        [
            "random: no path of low loss found: *",
            "excess * squared error, limit * squared error; the maximum on the path, *, is known",
            "where: segment * of 12 (abbabbcbcbba), kind *, *; layer 0 costs most when dropped: *",
            "reproduce: pytest 'lmc.toml::random::dropout_path' --lmc-profile=dev",
        ]
    )
    result.stdout.fnmatch_lines(["*cannot be dropped one by one: the norm's statistics are taken over it*"])


def test_witnesses_prove_the_verdict_again(real):
    """What is written is certified anew, against the limit that is given or the file's own, which older ones lack; a
    path made for other checkpoints is refused."""
    first = real.runpytest_inprocess("--lmc-models", "--lmc-witness-dir=proof", "-k", "doubled", "--lmc-profile=dev")
    first.stdout.fnmatch_lines(["witness written to */proof/doubled-ten_segment_path.safetensors"])
    assert sorted(path.name for path in (real.path / "proof").iterdir()) == [
        f"doubled-{name}.safetensors"
        for name in ("dropout_path", "dropout_stability", "noise_stability", "ten_segment_path", "through")
    ]
    old = lmccheck.load_path(real.path / "proof" / "doubled-dropout_path.safetensors")
    lmccheck.save_path(replace(old, facts={}), real.path / "proof" / "old.safetensors")
    lmccheck.save_path(replace(old, facts={"epsilon": 1e9}), real.path / "proof" / "wide.safetensors")
    (real.path / "again.lmc.toml").write_text(
        MANIFEST.split("[pair.doubled]")[0]
        + """
[pair.doubled]
a = "doubled-a.safetensors"
b = "doubled-b.safetensors"
check.ten = { property = "verify_path", path = "proof/doubled-ten_segment_path.safetensors" }
check.old = { property = "verify_path", path = "proof/old.safetensors" }
check.wide = { property = "verify_path", path = "proof/wide.safetensors" }
check.given = { property = "verify_path", path = "proof/old.safetensors", epsilon = 1e-9 }
check.first = { property = "verify_path", path = "proof/doubled-dropout_path.safetensors", epsilon = 1e-9 }
check.half = { property = "verify_dropout", witness = "proof/doubled-dropout_stability.safetensors", epsilon = 1e-9 }

[pair.random]
a = "random-a.safetensors"
b = "random-b.safetensors"
check.other = { property = "verify_path", path = "proof/doubled-ten_segment_path.safetensors", epsilon = 1e-9 }
""".replace("{ property", '{ endpoints = "any", property')
    )
    again = real.runpytest_inprocess("again.lmc.toml")
    again.assert_outcomes(passed=5, failed=3)
    again.stdout.fnmatch_lines_random(["wide: epsilon = 1000000000.0 is the witness's own and excludes nothing; mend*"])
    again.stdout.fnmatch_lines_random(["old: epsilon: given neither here nor by the witness*mend: say epsilon in*"])
    again.stdout.fnmatch_lines(["path of pair random: it does not begin at a: tensor * differs; mend: *"])


def test_settings_that_cannot_be_meant(real):
    """One line for each, in one run: the key, what was found, what is expected."""
    checks = {
        "ten_segment_path = { keep = 0.6 }": "path.keep: got 0.6, expected a number above 0 and at most 0.5",
        "dropout_stability = { keep = { x = 2 } }": "stability.keep: *expected a number above 0 and at most 1, or",
        "noise_stability = { p = 1.0 }": "noise_stability.p: got 1.0, expected a number between 0 and 1",
        'dropout_path = { form = "ten" }': 'dropout_path.form: got "ten"*expected "paper" or "short"',
        'again = { property = "dropout_path", epsilom = 1 }': "epsilom*did you mean 'epsilon'",
    }
    pair = '[pair.x]\na = "a.safetensors"\nb = "b.safetensors"\n'
    settings = "".join(f"check.{check}\n" for check in checks)
    (real.path / "lmc.toml").write_text(MANIFEST.split("[pair.doubled]")[0] + pair + settings)
    result = real.runpytest_inprocess("--lmc-models")
    assert result.ret == 2
    result.stdout.fnmatch_lines_random([f"*{line}*" for line in checks.values()])
