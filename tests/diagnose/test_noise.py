"""Gaussian noise on units: who amplifies it, and how far it reaches."""

from __future__ import annotations

import pytest
import torch
from networks.noise import cnn, pair_of, state
from torch import nn

import lmccheck
from lmccheck.diagnose.constants import readers
from lmccheck.properties.noise_stability import noise_stability

# Gaussian noise


def test_an_orthogonal_head_neither_attenuates_nor_amplifies() -> None:
    """Noise ‖η‖ = 0.1‖x‖ before an orthogonal matrix: ‖Δ‖/‖f‖ is 0.1 for every sample, so ψ is one."""
    build = lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6, bias=False)).double()  # noqa: E731  # a builder
    weights = state(build, 0, 1.5)
    weights["2.weight"] = torch.linalg.qr(torch.randn(6, 6).double()).Q
    data = torch.randn(20, 3).double(), torch.randint(0, 6, (20,))
    pair = lmccheck.load_pair(weights, weights, model=build, data=data)
    found = noise_stability(pair, masks=1, noise=0.1, diagnostics=True).details["gaussian"]["a"]["0"]
    assert found["output_attenuation"] == pytest.approx(1.0, abs=1e-12)
    assert found["output_error"] == pytest.approx(0.01, abs=1e-14)
    assert found["errors"] == {}


def test_noise_reaches_later_groups_only() -> None:
    """In a chain each group's noise is seen in the groups after it; with none, nothing changes."""
    pair = pair_of(cnn, (2, 8, 8))
    found = noise_stability(pair, masks=1, diagnostics=True).details["gaussian"]["b"]
    assert {group: sorted(facts["errors"]) for group, facts in found.items()} == {"0": ["4", "7"], "4": ["7"], "7": []}
    still = noise_stability(pair, masks=1, noise=0.0, diagnostics=True).details["gaussian"]["b"]
    assert all(facts["output_error"] == 0.0 == facts["loss_change"] for facts in still.values())


def test_readers_are_where_units_are_read() -> None:
    """A flattened channel is read at all its places by the linear layer, at one by the convolution."""
    structure = pair_of(cnn, (2, 8, 8)).network.structure("a test")
    found = readers(structure)
    assert found["4"]["7.weight"].tolist() == list(range(20))
    assert found["0"]["4.weight"].tolist() == list(range(4))
