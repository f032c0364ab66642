"""Ridge regression, unrolled windows and the polished head, against dense least squares and plain convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.evaluate.convex import polished_head
from lmccheck.evaluate.layer_data import unrolled
from lmccheck.evaluate.regression import Moments, chosen_ridge, ridge


@pytest.mark.parametrize("constant", [True, False])
def test_ridge_is_dense_least_squares(constant: bool) -> None:
    """min ‖X·V + c − Z‖² + λ‖V − V₀‖² equals least squares on extended rows; residuals are those of the rows."""
    torch.manual_seed(0)
    x, z = torch.randn(40, 6).double() + 1, torch.randn(40, 3).double() - 2
    start, share = torch.randn(6, 3).double(), 0.03
    moments = Moments()
    for part in range(0, 40, 9):
        moments.add(x[part : part + 9], z[part : part + 9])
    weight, bias = ridge(moments, start, share, constant=constant)
    centred = x - x.mean(0) if constant else x
    level = share * float(centred.square().sum()) / 6
    one = torch.full((40, 1), float(constant), dtype=torch.float64)
    rows = torch.cat([torch.cat([x, one], 1), torch.cat([level**0.5 * torch.eye(6), torch.zeros(6, 1)], 1).double()])
    oracle = torch.linalg.lstsq(rows, torch.cat([z, level**0.5 * start]), driver="gelsd").solution
    assert torch.allclose(weight, oracle[:6], atol=1e-10)
    assert torch.allclose(bias, oracle[6], atol=1e-10)
    measured = (x @ weight + bias - z).square().sum(1).mean()
    assert moments.residual(weight, bias) == pytest.approx(float(measured), rel=1e-10)
    shares, held = (1.0, 1e-6), Moments()
    assert chosen_ridge(moments, moments, start, constant=constant, shares=shares)[2] == 1e-6
    held.add(x, x @ start)  # rows that the start fits, which the free fit leaves
    assert chosen_ridge(moments, held, start, constant=False, shares=shares)[2] == 1.0


def test_ridge_of_regressors_that_say_nothing() -> None:
    """No regressors, or only zeros: the constant is the mean of the targets, and weights stay where they started."""
    z = torch.randn(20, 3).double()
    for width in (0, 4):
        moments, start = Moments(), torch.ones(width, 3).double()
        moments.add(torch.zeros(20, width), z)
        weight, bias = ridge(moments, start, 1e-6)
        assert torch.equal(weight, start)
        assert torch.allclose(bias, z.mean(0), atol=1e-14)


@pytest.mark.parametrize("window", [(1, 0, 1), ([2, 1], [1, 2], [1, 1]), (2, 3, 2)])
def test_unrolled_windows_are_those_of_the_convolution(window: tuple[object, object, object]) -> None:
    """Windows times the flat kernel are the convolution, for strides, paddings and dilations, in 1 to 3 dimensions."""
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 9, 8).double(), torch.randn(4, 3, 3, 2).double()
    stride, padding, dilation = window
    rows = unrolled(x, kernel.shape[2:], window)
    flat = torch.einsum("nabckl,ockl->noab", rows, kernel)
    assert torch.allclose(flat, F.conv2d(x, kernel, None, stride, padding, dilation), atol=1e-12)
    if isinstance(padding, int):
        cube, solid = torch.randn(2, 3, 7, 8, 6).double(), torch.randn(4, 3, 3, 2, 1).double()
        deep = torch.einsum("nabcdklm,odklm->noabc", unrolled(cube, solid.shape[2:], window), solid)
        assert torch.allclose(deep, F.conv3d(cube, solid, None, stride, padding, dilation), atol=1e-12)


def test_a_polished_head_is_nearer_to_the_original() -> None:
    """The head's KL to the original's class probabilities falls on held out rows; a perfect head is left alone."""
    torch.manual_seed(0)
    x, right = torch.randn(300, 6).double(), torch.randn(6, 4).double()
    rows = [(part, part @ right, k != 2) for k, part in enumerate(x.split(100))]
    zero = torch.zeros(4).double()
    found = polished_head(rows, 0.6 * right, zero)
    assert found is not None

    def divergence(weight: Tensor, bias: Tensor) -> float:
        seen, logits, _ = rows[2]
        said = (seen @ weight + bias).log_softmax(1)
        return float((logits.softmax(1) * (logits.log_softmax(1) - said)).sum(1).mean())

    assert divergence(*found) < divergence(0.6 * right, zero)
    assert polished_head(rows, right, zero) is None
    held = polished_head(rows, 0.6 * right, zero, free=False)
    assert held is not None
    assert torch.equal(held[1], zero)
