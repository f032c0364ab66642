"""A network whose outputs for a sample depend on the others of its batch: said, and no draws of a population."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import SourceError


class Centred(nn.Module):
    """Reads what a sample has more than the mean of its batch, or than 0."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share, self.read = share, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x - self.share * x.mean(0))


X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def pair(model: Any, data: Any = (X, Y), **more: Any) -> lmccheck.ModelPair:
    ends = []
    for seed in range(2):
        torch.manual_seed(seed)
        ends.append(Centred().state_dict())
    return lmccheck.load_pair(*ends, model=model, data=data, device="cpu", **more)


def test_outputs_that_depend_on_the_batch_are_said() -> None:
    """By how much is what the other half of the batch takes away, against an own forward pass."""
    found = pair(Centred)
    middle = {name: (t + found.theta_b[name]) / 2 for name, t in found.theta_a.items()}
    module = Centred()
    module.load_state_dict(middle)
    with torch.no_grad():
        whole, half = module(X)[:30], module(X[:30])
    far = float((whole - half).abs().max() / whole.abs().max())
    assert found.network.mixing == pytest.approx(far, rel=1e-4)
    notes = lmccheck.linear_connectivity(found, align="none", limit=9.0).notes
    assert f"a sample's outputs depend on the others of its batch, by {far:.1e} of their size" in " ".join(notes)


@pytest.mark.parametrize("setting", [{"decide": "population"}, {"early_fail": 1e-6}])
def test_samples_that_are_run_together_are_no_draws(setting: dict[str, Any]) -> None:
    """One line with the mend, which helps."""
    with pytest.raises(SourceError, match=r"a sample's outputs depend on the others of its batch, by .*; mend: give "):
        lmccheck.linear_connectivity(pair(Centred), align="none", limit=9.0, **setting)
    first_alone = [(X[:1], Y[:1]), (X[1:], Y[1:])]
    if "decide" in setting:
        with pytest.raises(SourceError, match="depend on the others of its batch"):
            lmccheck.linear_connectivity(pair(Centred, first_alone), align="none", limit=9.0, **setting)
    alone = [(x[None], y[None]) for x, y in zip(X, Y, strict=True)]
    lmccheck.linear_connectivity(pair(Centred, alone), align="none", limit=9.0, **setting)


class Whole(Centred):
    """Runs on batches of 60 only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(60, 4))


def test_rounding_is_no_mixing() -> None:
    """And of a network that runs on batches of one size only nothing is known."""
    for model in (lambda: Centred(0.0), lambda: Centred(1e-6), Whole):
        assert pair(model).network.mixing == 0.0
