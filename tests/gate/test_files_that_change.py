"""Files that are damaged while a gate runs: that pair's error, the others' verdicts, and a report of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks.small import seeded, small_mlp
from safetensors.torch import save_file

MODELS = """
import os
from functools import partial
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class Damaging(nn.Module):
    def __init__(self, number, damage, name):
        super().__init__()
        for part, layer in mlp().named_children():
            self.add_module(part, layer)
        self.done, self.damage, self.path = HERE / f"done{number}", damage, HERE / f"{number}-{name}.safetensors"

    def forward(self, x):
        if not self.done.exists():
            self.done.touch()
            exec(self.damage, {"path": self.path, "os": os})
        for part in self.children():
            x = part(x)
        return x
"""
DAMAGES = (  # to which file, and how it is done
    ("a", "pass"),
    ("a", "os.truncate(path, 0)"),
    ("a", "os.truncate(path, path.stat().st_size // 2)"),
    ("b", "b = path.read_bytes(); path.write_bytes(b[:-1] + bytes([b[-1] ^ 1]))"),
    (
        "a",
        "s = path.stat(); b = path.read_bytes(); path.write_bytes(b[:-1] + bytes([b[-1] ^ 1])); "
        "os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))",
    ),
    (
        "b",
        "other = path.with_suffix('.new'); other.write_bytes(path.read_bytes()[:-4] + bytes(4)); other.replace(path)",
    ),
    ("a", "path.unlink()"),
    ("b", "path.unlink(); os.mkfifo(path)"),
    ("data", "os.truncate(path, 100)"),
    ("data", "b = path.read_bytes(); path.write_bytes(b + bytes(1))"),
)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A pair for each damage, which its network does at the first forward pass after loading; two checks of each."""
    torch.manual_seed(9)
    data = {"inputs": torch.randn(20, 4), "targets": torch.randint(0, 3, (20,))}
    models, manifest = MODELS, "schema = 1\n"
    for number, (name, damage) in enumerate(DAMAGES):
        for k, side in enumerate("ab"):
            save_file(seeded(small_mlp, 2 * number + k), str(tmp_path / f"{number}-{side}.safetensors"))
        save_file(data, str(tmp_path / f"{number}-data.safetensors"))
        models += f"\nmodel{number} = partial(Damaging, {number}, {damage!r}, {name!r})"
        manifest += (
            f'[pair.p{number}]\na = "{number}-a.safetensors"\nb = "{number}-b.safetensors"\n'
            f'model = "models:model{number}"\ndata = "{number}-data.safetensors"\n'
            'check.first = { property = "linear_connectivity", align = "none", limit = 1000.0 }\n'
            'check.second = { property = "linear_connectivity", align = "none", limit = 1000.0 }\n'
        )
    (tmp_path / "models.py").write_text(models)
    (tmp_path / "lmc.toml").write_text(manifest)
    return tmp_path


def test_files_that_are_damaged_during_evaluation(gate: Path) -> None:
    """Both checks of a hurt pair are errors that name the file; nobody dies of it; the pair that is whole passes."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lmc-models", "--lmc-aligned-dir=out"]
    command += ["--lmc-report-json=report.json", "--lmc-report-md=report.md", "--lmc-device=cpu"]
    done = subprocess.run(
        command, cwd=gate, capture_output=True, text=True, timeout=200, env={**os.environ, "NO_COLOR": "1"}, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    report = json.loads((gate / "report.json").read_text())
    checks = {row["id"].partition("::")[2]: row for row in report["checks"]}
    page = (gate / "report.md").read_text()
    assert len(checks) == 2 * len(DAMAGES) + 1
    for number, (name, damage) in enumerate(DAMAGES):
        assert (gate / f"done{number}").exists()
        for check in ("first", "second"):
            row = checks[f"p{number}::{check}"]
            if damage == "pass":
                assert row["verdict"] != "error", row
                continue
            said = f"{number}-{name}.safetensors: changed after it was loaded"
            assert row["verdict"] == "error", (damage, row)
            assert said in row["message"]
            assert said in page
    assert not [path for path in gate.glob("out/*") if not path.name.startswith("p0")]
