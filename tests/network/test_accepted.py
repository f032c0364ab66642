"""What differs beside the weights and is accepted stays in sight: every row of a report says both values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lmccheck
from lmccheck.errors import CheckpointError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, theta in (("a", 1e4), ("b", 5e5)):
        (tmp_path / name).mkdir()
        config = {"model_type": "llama", "rope_theta": theta, "hidden_size": 4}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file(network().state_dict(), str(tmp_path / name / "model.safetensors"))
    return tmp_path


def load(folders: Path, accept: list[str]) -> lmccheck.ModelPair:
    data = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    return lmccheck.load_pair("a", "b", model=network, data=data, base=folders, accept=accept, device="cpu")


@pytest.mark.parametrize("data", ["own", "other"])
def test_an_accepted_difference_is_in_the_notes(folders: Path, data: str) -> None:
    """A rope that turns otherwise changes what is computed: a pass says so, on other data too."""
    pair = load(folders, ["rope_theta"])
    if data == "other":  # as merged_loss does for each of its data sets
        pair = pair.measured_on(lmccheck.data.load.load_data((torch.randn(8, 3), torch.tensor([0, 1] * 4))), None)
    result = lmccheck.linear_connectivity(pair, align="none", limit=1.0)
    said = [note for note in result.details["notes"] if note.startswith("accepted: ")]
    a, b = (folders / name for name in "ab")
    assert said == [f"accepted: config.json: rope_theta is 10000.0 in a ({a}) and 500000.0 in b ({b})"]


def test_of_many_the_first_are_told_and_the_rest_counted(folders: Path) -> None:
    """Three in full, two more as a number."""
    path = folders / "b" / "config.json"
    changed = {f"more_{k}": k for k in range(4)}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    notes = load(folders, ["rope_theta", *changed]).network.accepted
    assert [note.partition(" is ")[0] for note in notes[:1]] == ["accepted: config.json: rope_theta"]
    assert len(notes) == 4
    assert notes[-1] == "accepted: 2 more differences"


def test_a_star_accepts_nothing(folders: Path) -> None:
    """There is no name for everything: the difference is an error still, and the star is said to be no name."""
    with pytest.raises(CheckpointError, match=r"rope_theta is .*accept: got '\*', expected a key of config\.json"):
        load(folders, ["*"])
