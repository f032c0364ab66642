"""Tests of the plugin run pytest inside pytest; most others have a folder with a tiny pair of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import sets
from networks.small import seeded, small_mlp
from safetensors.torch import save_file

import lmccheck
from lmccheck.alignment.many import ManyAlignment

pytest_plugins = ["pytester"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.safetensors, b.safetensors, data.safetensors and models.py:mlp in one folder."""
    save_file(seeded(small_mlp, 0), str(tmp_path / "a.safetensors"), metadata={"format": "pt", "note": "a"})
    save_file(seeded(small_mlp, 1), str(tmp_path / "b.safetensors"), metadata={"format": "pt", "note": "b"})
    torch.manual_seed(9)
    save_file({"inputs": torch.randn(20, 4), "targets": torch.randint(0, 3, (20,))}, str(tmp_path / "data.safetensors"))
    (tmp_path / "models.py").write_text(
        "from torch import nn\n\ndef mlp():\n"
        "    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))\n"
    )
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., Any]:
    """Load the folder's pair, with any argument replaced."""

    def load(**changes: Any) -> lmccheck.ModelPair:
        arguments = {
            "a": "a.safetensors",
            "b": "b.safetensors",
            "model": "models:mlp",
            "data": "data.safetensors",
            "base": folder,
            **changes,
        }
        return lmccheck.load_pair(arguments.pop("a"), arguments.pop("b"), **arguments)

    return load


@pytest.fixture(scope="session")
def digit_set() -> ManyAlignment:
    """Trained digit networks in one frame, aligned once."""
    return sets.digit_set()
