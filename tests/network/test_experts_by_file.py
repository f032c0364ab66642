"""Experts that are dealt their rows: a symmetry file frees their order, and that of each one's hidden units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.hub import batch, built, folder

import lmccheck
from lmccheck.errors import SymmetryError

pytest.importorskip("transformers")

LAYER = "model.layers.0.mlp"
EXPERTS = f"""schema = 1
[[group]]
name = "experts"
size = 3
slots = [
  {{ tensor = "{LAYER}.gate.weight", dim = 0, role = "producer" }},
  {{ tensor = "{LAYER}.experts.gate_up_proj", dim = 0, role = "producer" }},
  {{ tensor = "{LAYER}.experts.down_proj", dim = 0, role = "producer" }},
]
[[group]]
name = "hidden"
size = 12
within = ["experts"]
slots = [
  {{ tensor = "{LAYER}.experts.gate_up_proj", dim = 1, start = 0, role = "producer" }},
  {{ tensor = "{LAYER}.experts.gate_up_proj", dim = 1, start = 12, role = "producer" }},
  {{ tensor = "{LAYER}.experts.down_proj", dim = 2, role = "consumer" }},
]
"""


@pytest.mark.slow
def test_experts_and_their_units_are_found_by_a_file(tmp_path: Path) -> None:
    """Experts exchanged with their router's rows, and the units of each in an order of its own, return to where they
    were; without the router's rows the file is refused.
    """
    model = built("Mixtral")
    folder(tmp_path / "a", model)
    order, generator = torch.tensor([2, 0, 1]), torch.Generator().manual_seed(1)
    held = model.state_dict()
    with torch.no_grad():
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            held[f"{LAYER}.{name}"].copy_(held[f"{LAYER}.{name}"][order].clone())
        for k in range(3):
            units = torch.randperm(12, generator=generator)
            up, down = held[f"{LAYER}.experts.gate_up_proj"][k], held[f"{LAYER}.experts.down_proj"][k]
            up.copy_(up[torch.cat([units, 12 + units])].clone())
            down.copy_(down[:, units].clone())
    folder(tmp_path / "b", model)
    (tmp_path / "experts.toml").write_text(EXPERTS)
    ends = {"data": batch("Mixtral"), "device": "cpu"}
    pair = lmccheck.load_pair(tmp_path / "a", tmp_path / "b", symmetry=tmp_path / "experts.toml", **ends)
    aligned = lmccheck.align(pair)
    assert not aligned.is_identity
    assert all(torch.equal(aligned.weights[name], tensor) for name, tensor in pair.theta_a.items())
    without = "\n".join(line for line in EXPERTS.splitlines() if "gate.weight" not in line)
    (tmp_path / "wrong.toml").write_text(without)
    wrong = lmccheck.load_pair(tmp_path / "a", tmp_path / "b", symmetry=tmp_path / "wrong.toml", **ends)
    with pytest.raises(SymmetryError, match="expert"):
        lmccheck.align(wrong)
