"""Norms as products with a scale γ/√(σ²+ε), which is enclosed itself: σ² stored, of BatchNorm, or of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure, lifted, product
from lmccheck.evaluate.enclosure.rules import smooth
from lmccheck.evaluate.enclosure.rules.arithmetic import mean

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


def _of_a_sample(cell: Cell, x: Enclosed, shape: Sequence[int], weight: Value | None, epsilon: float) -> Enclosed:
    """Return x·γ/√(mean x² + ε) over the last dimensions; what is below the root is nowhere below ε."""
    over = list(range(-len(shape), 0))
    scale = smooth.power(mean(cell, product(x, x), over, True).plus(epsilon).rounded(), -0.5, epsilon)
    found = product(x, scale.map(lambda part: part.expand(x.shape)))
    return found if weight is None else product(found, lifted(weight).map(lambda part: part.expand(x.shape)))


@encloses("layer_norm")
def layer_norm(
    cell: Cell,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    _: bool = True,
) -> Enclosed:
    x = lifted(x)
    level = mean(cell, x, list(range(-len(shape), 0)), True)
    centred = (x - level.map(lambda part: part.expand(x.shape))).rounded()
    found = _of_a_sample(cell, centred, shape, weight, epsilon)
    return found if bias is None else (found + lifted(bias).map(lambda part: part.expand(x.shape))).rounded()


@encloses("rms_norm")
def rms_norm(
    cell: Cell, x: Value, shape: Sequence[int], weight: Value | None = None, epsilon: float | None = None
) -> Enclosed:
    x = lifted(x)
    return _of_a_sample(cell, x, shape, weight, torch.finfo(x.first.dtype).eps if epsilon is None else epsilon)
