"""A certificate by itself: its bound, and what makes a loss's claim to be convex hold or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmccheck.paths.certify import Certificate, Known
from lmccheck.paths.convexity import AT, _bent, tried


def segment(how: str, largest: float, bound: float | None = None) -> Known:
    return Known(0, "d", "", 1.0, 1.0, largest, 0.5, how, (None, None), (), bound)


def test_the_bound_is_the_highest_of_what_is_certified_and_what_is_known() -> None:
    """2.5 where 2 was seen, over ends of 1: 1.5. A higher convex segment decides; one that is sampled leaves none."""
    certified = segment("certified", 2.0, 2.5)
    assert Certificate((certified, segment("convex", 2.25)), 2.25, 1.0, 0.5, 1, 0.0).bound == 1.5
    assert Certificate((certified, segment("convex", 3.0)), 3.0, 1.0, 0.5, 1, 0.0).bound == 2.0
    assert Certificate((certified, segment("sampled", 1.0)), 2.0, 1.0, 0.5, 1, 0.0).bound is None


def test_a_loss_that_claims_nothing_is_not_convex() -> None:
    """It is not even tried."""
    loss: Any = SimpleNamespace(convex=False, name="own")
    assert not tried(loss, None, None, []).holds  # type: ignore[arg-type]  # neither is looked at


@pytest.mark.parametrize(
    "output", [{"logits": torch.ones(2, 3), "label": torch.ones(2).int()}, [torch.ones(2, 3), 2.0]]
)
def test_a_claim_of_outputs_that_hold_more_than_floating_tensors_cannot_be_tried(output: Any) -> None:
    """What is mixed between two outputs would keep the rest of the first: the loss might read that."""
    batch = SimpleNamespace(take=lambda which: SimpleNamespace(inputs=None))
    evaluator: Any = SimpleNamespace(runner=lambda *given: output, batches=[batch])
    loss: Any = SimpleNamespace(convex=True, name="own")
    claim = tried(loss, evaluator, None, [])  # type: ignore[arg-type]  # no weights are asked for
    assert not claim.holds
    assert "hold more than floating tensors; head segments are sampled" in claim.says


def test_rounding_is_no_bend() -> None:
    """Affine losses, in float32, lie on their chords to 1e-7 of their size; a bend of 1e-3 is one."""
    line = (100.0 + 3.0 * torch.tensor(AT, dtype=torch.float32)).double()[:, None]
    exact = 100.0 + 3.0 * torch.tensor(AT, dtype=torch.float64)[:, None]
    assert float((line - exact).abs().max()) > 0
    assert _bent(line) is None
    exact[5] += 1e-3
    found = _bent(exact)
    assert found is not None
    assert found[:2] == (0, 5)
