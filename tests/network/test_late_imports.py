"""Networks that import a file of their own folder while they run, two folders having files of the same names."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmccheck
from lmccheck.cli.main import main

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))
ENDS = [
    {
        "hidden.weight": torch.randn(4, 5, generator=generator),
        "hidden.bias": torch.randn(4, generator=generator),
        "read.weight": torch.randn(3, 4, generator=generator),
        "read.bias": torch.randn(3, generator=generator),
    }
    for generator in (torch.Generator().manual_seed(k) for k in (2, 3))
]
NETWORK = """
import os
import sys
import torch
from torch import nn
{first}

OWN = {scale}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.read = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        {late}
        return self.read(torch.relu(self.hidden(x))) * SCALE
"""
LATE = {
    "a file": ("", "from helper import SCALE"),
    "a file of a folder": ("", "from parts.sizes import SCALE"),
    "a file, the path left behind": ("sys.path.insert(0, os.path.dirname(__file__))", "from helper import SCALE"),
    "itself": ("", "SCALE = sys.modules[__name__].OWN"),
}


def by_hand(end: dict[str, Tensor], scale: float) -> float:
    hidden = F.linear(X, end["hidden.weight"], end["hidden.bias"]).relu()
    return float(F.cross_entropy(F.linear(hidden, end["read.weight"], end["read.bias"]) * scale, Y))


@pytest.fixture(params=LATE)
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[float, Path]]:
    """Two folders by the scale that their networks have."""
    first, late = LATE[request.param]
    found = {}
    for scale in (1.0, 7.0):
        folder = found[scale] = tmp_path / str(scale)
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "__init__.py").write_text("")
        for name in ("helper.py", "parts/sizes.py"):
            (folder / name).write_text(f"SCALE = {scale}\n")
        (folder / "models.py").write_text(NETWORK.format(first=first, late=late, scale=scale))
    path = list(sys.path)
    yield found
    sys.path[:] = path
    assert not {"helper", "parts", "models"} & set(sys.modules)


MEASURED: dict[str, Callable[[lmccheck.ModelPair], list[float]]] = {
    "a property": lambda pair: list(lmccheck.linear_connectivity(pair, align="none", limit=99.0).details["losses"]),
    "a curve": lambda pair: list(lmccheck.curve(pair, points=3).loss),
    "an aligned merge": lambda pair: [lmccheck.align(pair).function_deviation, *lmccheck.curve(pair, points=2).loss],
}


@pytest.mark.parametrize("measured", MEASURED)
def test_each_runs_with_its_own(folders: dict[float, Path], measured: str) -> None:
    """Losses at both ends are those computed by hand, of one folder, the other, and the first again."""
    pairs: dict[float, Any] = {}
    for scale in (1.0, 7.0, 1.0):
        pairs[scale] = lmccheck.load_pair(*ENDS, model="models:Net", data=(X, Y), base=folders[scale], device="cpu")
    for scale in (1.0, 7.0, 1.0):
        losses = MEASURED[measured](pairs[scale])
        ends = losses[-2:] if measured == "an aligned merge" else [losses[0], losses[-1]]
        assert ends == pytest.approx([by_hand(end, scale) for end in ENDS], abs=1e-5)


def test_a_command_runs_in_the_folder_it_is_typed_in(
    folders: dict[float, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """``lmccheck symmetry`` traces what imports its helper only when it runs."""
    for folder in folders.values():
        with contextlib.chdir(folder):
            assert main(["symmetry", "models:Net", "--input", "2,5"]) == 0
        assert "verified in float64" in capsys.readouterr().out
