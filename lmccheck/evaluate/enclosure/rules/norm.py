"""BatchNorm with stored statistics: a product with the scale γ/√(σ²+ε) of each channel, which is enclosed itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure, lifted, product

Value = Enclosed | Tensor


def inverse_root(v: Enclosed) -> Enclosed:
    """Return 1/√v of positive v that changes by a straight line: its chord − s(1−s)·Δ²·φ″(ξ)/2, φ″ = ¾·v^(−5/2)."""
    if v.bend is not None or v.slack is not None:
        raise NoEnclosure("a variance that is computed")
    least, most = torch.minimum(v.first, v.second), torch.maximum(v.first, v.second)
    if not bool((least > 0).all()):
        raise NoEnclosure("a variance that is not positive")
    steep, flat = 0.75 * least**-2.5, 0.75 * most**-2.5
    squared = v.step.square()
    bend, slack = -squared * (steep + flat) / 4, squared * (steep - flat) / 16
    first = v.first.rsqrt()
    return Enclosed(first, first if v.constant else v.second.rsqrt(), bend, slack).rounded(16)


def normalised(
    x: Enclosed, weight: Value | None, bias: Value | None, mean: Value | None, variance: Value | None, epsilon: float
) -> Enclosed:
    """Return (x − mean)·γ/√(σ²+ε) + β, channels in dimension 1."""
    if mean is None or variance is None:
        raise NoEnclosure("BatchNorm with the statistics of its batch")
    shape = (1, -1, *([1] * (x.ndim - 2)))
    scale = inverse_root(lifted(variance).plus(epsilon))
    if weight is not None:
        scale = product(lifted(weight), scale)
    centred = x + -lifted(mean).map(lambda part: part.reshape(shape))
    wide = scale.map(lambda part: part.reshape(shape).expand(x.shape))
    found = product(centred.rounded(), wide)
    if bias is not None:
        found = (found + lifted(bias).map(lambda part: part.reshape(shape))).rounded()
    return found


@encloses("batch_norm")
def batch_norm(cell: Cell, x: Value, *arguments: Any) -> Enclosed:
    weight, bias, mean, variance, training, _, epsilon, *_ = arguments
    if training:
        raise NoEnclosure("BatchNorm with the statistics of its batch")
    return normalised(lifted(x), weight, bias, mean, variance, epsilon)


@encloses("_native_batch_norm_legit_no_training")
def evaluated(cell: Cell, x: Value, *arguments: Any) -> Any:
    weight, bias, mean, variance, _, epsilon = arguments
    return normalised(lifted(x), weight, bias, mean, variance, epsilon), None, None
