"""Pairs whose answer is known: Theorem 4's, which no path joins, and duplicated units, which join exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.paths import mlp, random_state
from safetensors.torch import load_file
from torch import Tensor

import lmccheck

FIXTURES = Path(__file__).parents[2] / "fixtures"


def theorem_4(width: int) -> lmccheck.ModelPair:
    folder = FIXTURES / "theorem4"
    return lmccheck.load_pair(
        str(folder / f"h{width}-a.safetensors"), str(folder / f"h{width}-b.safetensors"), loss="mse", device="cpu",
        model=f"models:theorem4_h{width}", data=str(folder / f"h{width}-data.safetensors"),
        calibration=str(folder / f"h{width}-data.safetensors"), base=FIXTURES,
    )  # fmt: skip


@pytest.mark.parametrize("width", range(2, 9))
def test_theorem_4_is_not_connected(width: int) -> None:
    """Both losses are exactly zero, the gate fails every path, and names b's hidden layer as the reason (T10)."""
    pair = theorem_4(width)
    for property_of in (lmccheck.ten_segment_path, lmccheck.dropout_path):
        result = property_of(pair, epsilon=0.01)
        assert result.details["loss_a"] == result.details["loss_b"] == 0.0
        assert result.verdict == "fail"
        assert result.value > 0.1
        assert result.details["worst_layer"] == "hidden"
        assert any("hidden costs most" in line for line in result.details["failure"])


@pytest.mark.parametrize("width", [4, 5, 6, 7, 8])
def test_theorem_4_is_stable_on_one_side_only(width: int) -> None:
    """From h = 4 on, a needs only two of its units and is exactly dropout stable; b, which needs all, is not."""
    found = lmccheck.dropout_stability(theorem_4(width), epsilon=0.01).details["epsilon"]
    assert abs(found["a"][0]) <= 1e-12
    assert found["b"][0] > 0.1


def doubled(widths: list[int], seed: int) -> dict[str, Tensor]:
    """Return a network in which every hidden unit occurs twice, with half its outgoing weights, in random order."""
    small = random_state(mlp(widths, "tanh"), seed)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    before: Tensor | None = None
    last = len(widths) - 2
    for layer in range(last + 1):
        weight, bias = small[f"{2 * layer}.weight"], small[f"{2 * layer}.bias"]
        if before is not None:
            weight = weight[:, before] / 2
        if layer < last:
            before = torch.arange(widths[layer + 1]).repeat(2)[
                torch.randperm(2 * widths[layer + 1], generator=generator)
            ]
            weight, bias = weight[before], bias[before]
        state[f"{2 * layer}.weight"], state[f"{2 * layer}.bias"] = weight, bias
    return state


@pytest.mark.parametrize("widths", [[5, 4, 3], [5, 3, 4, 3], [4, 1, 5, 2, 3]], ids=str)
def test_duplicated_units_join_exactly(widths: list[int]) -> None:
    """T9: one copy of each unit is kept, with factor 2: both d segments are constant, the excess at most 1e-12."""
    inputs = torch.randn(64, widths[0], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    data = (inputs, torch.arange(64) % widths[-1])
    wide = mlp([widths[0], *(2 * w for w in widths[1:-1]), widths[-1]], "tanh").double()
    pair = lmccheck.load_pair(
        doubled(widths, 1), doubled(widths, 2), model=wide, data=data, calibration=data, device="cpu"
    )
    for form in ("ten", "short"):
        result = lmccheck.ten_segment_path(pair, epsilon=1e-12, form=form)
        assert result.passed
        assert result.value <= 1e-12
        first, last = (result.details["segments"][k] for k in (0, -1))
        assert first["max"] - first["loss_start"] <= 1e-12
        assert last["max"] - last["loss_end"] <= 1e-12
    for form in ("paper", "short"):
        assert lmccheck.dropout_path(pair, epsilon=1e-12, form=form).passed
    assert lmccheck.dropout_stability(pair, epsilon=1e-12).passed


def test_the_shipped_samples_are_the_theorem_s() -> None:
    """h + 2 inputs and m + h + 1 samples, as the construction says."""
    for width in range(2, 9):
        inputs = load_file(str(FIXTURES / "theorem4" / f"h{width}-data.safetensors"))["inputs"]
        assert inputs.shape == (3 * width + 6, width + 2)
