"""A tiny pair of networks and its files, and the fixtures' folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lmccheck


def small_mlp() -> nn.Module:
    """4-6-5-3 with biases."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def small_batchnorm() -> nn.Module:
    """A conv net with BatchNorm whose statistics are not the fresh ones."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def seeded(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Return the state dict of a network built with a seed, running statistics perturbed."""
    torch.manual_seed(seed)
    state = build().state_dict()
    return {k: v + 0.3 * torch.rand(v.shape) if "running" in k else v.clone() for k, v in state.items()}


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
