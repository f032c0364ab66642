"""Whatever outlives a network: what an earlier run with other weights left there is never measured as its own."""

from __future__ import annotations

from collections.abc import Iterator
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
def _nothing_left() -> Iterator[None]:
    forget()
    yield
    forget()


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


@pytest.mark.parametrize("name", HONEST)
def test_places_that_hold_nothing_of_weights_are_no_reason(name: str) -> None:
    """Settings, scratch memory and constants are as they were, and the line has the losses by hand."""
    run_before(HONEST[name])
    pair = lmccheck.load_pair(A, RUINED, model=HONEST[name], data=(X, Y), device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", points=3, limit=100.0)
    expected = [loss({k: (1 - t) * A[k] + t * RUINED[k] for k in A}) for t in found.details["t"]]
    assert found.details["losses"] == pytest.approx(expected, abs=1e-4)
