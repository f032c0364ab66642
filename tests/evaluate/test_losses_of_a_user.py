"""A loss of the user's own is a function of its arguments; samples in which it counts nothing are pointed out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import SourceError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20.0)[:, None].expand(20, 2)
A, B = ({"weight": torch.full((2, 3), value), "bias": torch.zeros(2)} for value in (0.5, 0.25))


def pair(loss: Any) -> lmccheck.ModelPair:
    return lmccheck.load_pair(A, B, model=lambda: nn.Linear(3, 2), data=(X, Y), loss=loss, device="cpu")


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1) + torch.rand(len(outputs))


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return (outputs - targets).square().mean(1) * self.calls


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Nothing is counted in samples whose target is below 6."""
    return (outputs - targets).square().mean(1) * (targets[:, 0] >= 6)


@pytest.mark.parametrize("loss", [noisy, Counting()])
def test_a_loss_with_two_values_is_refused(loss: Any) -> None:
    """Random numbers, and state that a call changes, give two losses for the same outputs and targets: one line."""
    with pytest.raises(SourceError, match="for the same output and target") as caught:
        lmccheck.linear_connectivity(pair(loss), align="none", points=3, limit=10.0)
    assert "\n" not in str(caught.value)


def test_samples_that_lose_nothing_are_counted() -> None:
    """Six of the twenty lose 0 at both ends by a loss that does not say what it counts; one that says gets no note."""
    found = lmccheck.linear_connectivity(pair(masked), align="none", points=3, limit=1e6)
    assert any("6 of 20 samples lose exactly 0 at every endpoint" in note for note in found.details["notes"])

    def saying(outputs: Tensor, targets: Tensor) -> Tensor:
        return masked(outputs, targets)

    saying.counted = lambda targets: targets[:, 0] >= 6  # type: ignore[attr-defined]  # as a user writes it
    quiet = lmccheck.linear_connectivity(pair(saying), align="none", points=3, limit=1e6)
    assert not any("lose exactly 0" in note for note in quiet.details["notes"])
