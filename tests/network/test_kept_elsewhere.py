"""Whatever outlives a network: what an earlier run with other weights left there is never measured as its own."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.keeping import plain, state
from networks.places import HONEST, KEPT, forget
from torch import Tensor

import lmccheck
from lmccheck.errors import LmcError

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(1))
A, RUINED, EARLIER = state(1), {**state(2), "gain": torch.ones(8) * 40}, state(3)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    thaw = "closure" in request.node.name  # of an op, which is found among all that is not frozen
    if thaw:
        gc.unfreeze()
    forget()
    yield
    forget()
    if thaw:
        gc.freeze()


def run_before(build: Any) -> None:
    """Leave behind what a run with other weights does."""
    module = build()
    module.load_state_dict(EARLIER)
    module.eval()(X)


def loss(weights: dict[str, Tensor]) -> float:
    """The loss of weights, by hand."""
    return float(F.cross_entropy(plain(weights, X), Y))


@pytest.mark.parametrize("place", KEPT)
def test_what_an_earlier_run_left_is_refused(place: str) -> None:
    """A norm of other weights would scale the endpoints; the place where it lies is named."""
    run_before(KEPT[place])
    with pytest.raises(LmcError, match="keeps what it computed from weights in ") as caught:
        lmccheck.load_pair(A, RUINED, model=KEPT[place], data=(X, Y), device="cpu")
    assert place.partition(" of ")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


IN_A_FILE = {
    "ndarray": ("KEPT = numpy.zeros(1, 'float32')", "KEPT[0] = KEPT[0] or n", "float(KEPT[0])"),
    "list": ("KEPT = [None]", "KEPT[0] = KEPT[0] or n", "KEPT[0]"),
    "KEPT": ("KEPT = None", "global KEPT; KEPT = KEPT or n", "KEPT"),
}


@pytest.mark.parametrize("place", IN_A_FILE)
def test_what_a_users_file_keeps_is_found_while_the_file_is_set_aside(tmp_path: Path, place: str) -> None:
    """A file that a manifest names is imported for its turn only; another folder has one of the same name."""
    start, keep, read = IN_A_FILE[place]
    for folder, divisor in (("kept", read), ("plain", "n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "models.py").write_text(
            f"""
import numpy
from torch import nn

{start}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Linear(3, 3)

    def forward(self, x):
        n = float(self.read.weight.detach().abs().max())
        {keep if folder == "kept" else "pass"}
        return self.read(x) / {divisor}
"""
        )
    ends = [{"read.weight": torch.eye(3) * k, "read.bias": torch.zeros(3)} for k in (1.0, 2.0)]
    given: dict[str, Any] = {"model": "models:Net", "data": (torch.randn(6, 3), Y[:6]), "device": "cpu"}
    for _ in range(2):
        with pytest.raises(LmcError, match=f"keeps what it computed from weights in .*{place}"):
            lmccheck.load_pair(*ends, base=tmp_path / "kept", **given)
        pair = lmccheck.load_pair(*ends, base=tmp_path / "plain", **given)
        losses = lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0).details["losses"]
        assert losses == pytest.approx([losses[0]] * len(losses))


def test_a_mapped_file_is_never_emptied(tmp_path: Path) -> None:
    """A forward that reads a file, mapped as an array, as a view and as a tensor, finds its numbers in every run."""
    (tmp_path / "models.py").write_text(
        """
import numpy, torch
from torch import nn

DATA = numpy.memmap("numbers", dtype="float32", mode="r+")
VIEW, TENSOR = DATA[1:], torch.from_numpy(DATA)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Linear(3, 3)

    def forward(self, x):
        with open("seen", "a") as seen:
            print(float(DATA.min()), float(VIEW.min()), float(TENSOR.min()), file=seen)
        return self.read(x) * float(DATA[0])
"""
    )
    (tmp_path / "numbers").write_bytes(b"\0\0\x80?" * 4)  # ones
    ends = [{"read.weight": torch.eye(3) * k, "read.bias": torch.zeros(3)} for k in (1.0, 2.0)]
    with contextlib.chdir(tmp_path):
        lmccheck.load_pair(*ends, model="models:Net", data=(torch.randn(6, 3), Y[:6]), base=tmp_path, device="cpu")
    assert set((tmp_path / "seen").read_text().split()) == {"1.0"}


@pytest.mark.parametrize("name", HONEST)
def test_places_that_hold_nothing_of_weights_are_no_reason(name: str) -> None:
    """Settings, scratch memory and constants are as they were, and the line has the losses by hand."""
    run_before(HONEST[name])
    pair = lmccheck.load_pair(A, RUINED, model=HONEST[name], data=(X, Y), device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", points=3, limit=100.0)
    expected = [loss({k: (1 - t) * A[k] + t * RUINED[k] for k in A}) for t in found.details["t"]]
    assert found.details["losses"] == pytest.approx(expected, abs=1e-4)
