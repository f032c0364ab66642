"""Gaussian noise on units: who amplifies it, and how far it reaches."""

from __future__ import annotations

import pytest
import torch
from networks.noise import cnn, pair_of, state
from torch import Tensor, nn

import lmccheck
from lmccheck.evaluate.normals import key_of, normals
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


def test_noise_in_a_group_is_in_all_that_reads_it() -> None:
    """Two layers read one group: one noise is in the value that both read, as a forward written out has it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.tail, self.head = (
                nn.Linear(*dims) for dims in ((3, 4), (4, 5), (5, 2), (4, 2))
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.after(torch.relu(self.first(x)))

        def after(self, h: Tensor) -> Tensor:
            return self.tail(torch.relu(self.gate(h))) + self.head(h)  # type: ignore[no-any-return]  # a module's

    build = lambda: Two().double()  # noqa: E731  # a builder
    weights = state(build, 0, 1.5)
    data = torch.randn(20, 3).double(), torch.randint(0, 2, (20,))
    pair = lmccheck.load_pair(weights, weights, model=build, data=data)
    found = noise_stability(pair, masks=1, size=0.2, seed=5, diagnostics=True).details["gaussian"]["a"]
    assert list(found) == ["first", "gate"]
    net = build()
    net.load_state_dict(weights)
    with torch.no_grad():
        h = torch.relu(net.first(data[0]))
        z = normals(key_of(5, 0, "gate", 0), torch.arange(20), 4)
        noisy = h + 0.2 * h.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True) * z
        errors = (net.after(noisy) - net.after(h)).square().sum(1) / net.after(h).square().sum(1)
    assert found["first"]["output_error"] == pytest.approx(float(errors.mean()), abs=1e-12)
