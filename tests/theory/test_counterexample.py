"""Git Re-Basin A.6: two networks that compute the same function and that no permutation connects (T10)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import lmccheck


def network() -> nn.Module:
    """2-2-2-1, ReLU, last layer without bias."""
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()


def weights(w1: list[list[float]], b1: list[float], w2: list[list[float]], b2: list[float]) -> dict[str, Tensor]:
    named = {"0.weight": w1, "0.bias": b1, "2.weight": w2, "2.bias": b2, "4.weight": [[-1.0, -1.0]]}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}


A = weights([[-1, 0], [0, -1]], [1, 0], [[-1, 0], [0, 1]], [1, 0])
B = weights([[1, 0], [0, 1]], [0, 1], [[1, 0], [0, -1]], [0, 1])
GRID = torch.cartesian_prod(*[(torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1] * 2)
TARGETS = -(GRID[:, :1].relu() + (-GRID[:, 1:]).relu())


def barrier(b: dict[str, Tensor], align: str) -> lmccheck.Result:
    pair = lmccheck.load_pair(A, b, model=network, data=(GRID, TARGETS), loss="mse")
    return lmccheck.linear_connectivity(pair, align=align, limit=0.01)


def test_both_endpoints_compute_the_same_function() -> None:
    """f_A = f_B = −relu(x₁) − relu(−x₂) on [−1, 1]², exactly."""
    result = barrier(B, "none")
    assert result.details["loss_a"] == result.details["loss_b"] == 0.0


def test_no_permutation_connects_them() -> None:
    """All four permutations: the best leaves 1/12, the worst 11/24 of mean squared error at the midpoint."""
    module = network()
    spec = lmccheck.discover_symmetry(module, (GRID[:2],))
    first, second = (group.name for group in spec.groups)
    swaps = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    found = sorted(
        barrier(spec.apply(B, {first: p, second: q}), "none").value for p, q in itertools.product(swaps, swaps)
    )
    assert found == pytest.approx([1 / 12, 1 / 12, 11 / 24, 11 / 24], abs=2e-3)


def test_the_gate_fails_them() -> None:
    """Weight matching finds the best permutation there is, and the verdict is still fail."""
    result = barrier(B, "weight-matching")
    assert result.verdict == "fail"
    assert result.value == pytest.approx(1 / 12, abs=2e-3)
    assert result.witness.function_deviation <= 1e-9
