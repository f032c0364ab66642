"""Smooth functions of every number by itself: bent by their curvature in the middle of the cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import TWIST, Enclosed, NoEnclosure, chosen, product
from lmccheck.evaluate.enclosure.rules.piecewise import SELU_ALPHA, SELU_SCALE, rectified

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Smooth:
    """φ with φ′ and φ″, and bounds of |φ′|, |φ″| and |φ‴| over all numbers; ``jolt`` is infinite where φ″ jumps."""

    value: Function
    slope: Function
    curve: Function
    most_slope: float
    most_curve: float
    jolt: float

    def __call__(self, z: Enclosed) -> Enclosed:
        """Return φ(z), elementwise.

        Both derivatives are taken in the middle m; what they may differ from that is slack. z has a step Δ = ±2r, a
        chord c, a bend v; J bounds |φ‴|. Along c, φ is its own chord − s(1−s)·Δ²·φ″(ξ)/2; where φ″ differs from that
        in m by J·|c − m|, that leaves J·(r³ − |c−m|³)/6. Off it by d = s(1−s)·v φ is more by φ′(m)·d, and by at most
        |φ″|·(|c − m|·|d| + d²/2), where |c − m| = |s−½|·|Δ|. Slack e makes it differ by |φ′|·e + |φ″|·e²/2.
        """
        middle = (z.first + z.second) / 2
        slope, curve = self.slope(middle), self.curve(middle)
        off, squared, step = z.off_chord, z.step.square(), z.step.abs()
        reach = step / 2
        most = torch.full_like(curve, self.most_curve)  # of |φ″| within reach
        if math.isfinite(self.jolt):
            most = (curve.abs() + self.jolt * (reach + off)).clamp(max=self.most_curve)
        bend = -curve * squared / 2
        slack = squared / 8 * (most + curve.abs())
        if math.isfinite(self.jolt):
            slack = torch.minimum(self.jolt * reach**3 / 6, slack)
        if z.bend is not None:
            bend, size = bend + slope * z.bend, z.bend.abs()
            slack = slack + most * (TWIST * step + size / 32) * size
        if z.slack is not None:
            steepest = slope.abs() + most * (reach + off - z.slack / 2)  # of what z's slack is multiplied by
            slack = slack + steepest.clamp(max=self.most_slope) * z.slack
        wide = self.most_slope * (reach + off)  # what the slope alone allows: less where the ends are far apart
        bend, slack = bend.where(slack <= wide, 0.0), torch.minimum(slack, wide)
        first = self.value(z.first)
        second = first if z.constant else self.value(z.second)
        return Enclosed(first, second, bend, slack).rounded(16)


def _gauss(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x).square()


def _tanh_curve(x: Tensor) -> Tensor:
    return -2 * torch.tanh(x) * _tanh_slope(x)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _sigmoid_curve(x: Tensor) -> Tensor:
    return _sigmoid_slope(x) * (1 - 2 * torch.sigmoid(x))


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) + x * _sigmoid_slope(x)


def _silu_curve(x: Tensor) -> Tensor:
    return 2 * _sigmoid_slope(x) + x * _sigmoid_curve(x)


def _gelu_slope(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2 + x * _gauss(x)


def _gelu_curve(x: Tensor) -> Tensor:
    return (2 - x.square()) * _gauss(x)


def _mish_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tanh(softplus(x)) and its first two derivatives."""
    inside, grows = torch.tanh(F.softplus(x)), torch.sigmoid(x)
    rest = 1 - inside.square()
    return inside, rest * grows, rest * grows * (torch.sigmoid(-x) - 2 * inside * grows)


def _mish_slope(x: Tensor) -> Tensor:
    inside, slope, _ = _mish_parts(x)
    return inside + x * slope


def _mish_curve(x: Tensor) -> Tensor:
    _, slope, curve = _mish_parts(x)
    return 2 * slope + x * curve


ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715


def _inner(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tanh(u), and its first two derivatives in x, of u = √(2/π)·(x + 0.044715·x³)."""
    inside = torch.tanh(ROOT * (x + CUBE * x**3))
    grows, bends = ROOT * (1 + 3 * CUBE * x.square()), ROOT * 6 * CUBE * x
    rest = 1 - inside.square()
    return inside, rest * grows, rest * (bends - 2 * inside * grows.square())


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    inside, slope, _ = _inner(x)
    return (1 + inside) / 2 + x * slope / 2


def _gelu_tanh_curve(x: Tensor) -> Tensor:
    _, slope, curve = _inner(x)
    return slope + x * curve / 2


TANH = Smooth(torch.tanh, _tanh_slope, _tanh_curve, 1.0, 0.7699, 2.0)
SIGMOID = Smooth(torch.sigmoid, _sigmoid_slope, _sigmoid_curve, 0.25, 0.09623, 0.125)
SILU = Smooth(F.silu, _silu_slope, _silu_curve, 1.0999, 0.5, 0.3082)
GELU = Smooth(F.gelu, _gelu_slope, _gelu_curve, 1.1290, 0.7979, 0.7788)
GELU_TANH = Smooth(lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh_slope, _gelu_tanh_curve, 1.1292, 0.7980, 0.7770)
SOFTPLUS = Smooth(F.softplus, torch.sigmoid, _sigmoid_slope, 1.0, 0.25, 0.09623)
ELU = Smooth(F.elu, lambda x: x.clamp(max=0).exp(), lambda x: x.clamp(max=0).exp() * (x <= 0), 1.0, 1.0, math.inf)
MISH = Smooth(F.mish, _mish_slope, _mish_curve, 1.0885, 0.6443, 0.5885)
RECIPROCAL = Smooth(torch.reciprocal, lambda x: -(x**-2.0), lambda x: 2 * x**-3.0, 1.0, 2.0, 6.0)  # from 1 on
INVERSE_ROOT = Smooth(torch.rsqrt, lambda x: -(x**-1.5) / 2, lambda x: 0.75 * x**-2.5, 0.5, 0.75, 1.875)  # likewise
INWARD = 1 - 1e-12  # of what a value is nowhere below, so that rounding cannot bring it below 1
CUT = 20.0  # beyond which torch takes softplus for the identity, unless told another threshold


def power(z: Enclosed, exponent: float, floor: float | None) -> Enclosed:
    """Return z^−1 or z^−½ of positive z, of which is known that it is at least ``floor``, whatever its enclosure says.

    With ℓ, what it is nowhere below, (z/ℓ)^p·ℓ^p. Where the enclosure admits less than the floor, nothing but the range
    is known.
    """
    low, rule = z.low * INWARD, {-1.0: RECIPROCAL, -0.5: INVERSE_ROOT}[exponent]
    floor = float(low.min()) if floor is None else floor * INWARD
    if not floor > 0:
        raise NoEnclosure("a quotient by what may be 0 or less")
    least = low.clamp(min=floor)
    found = rule(z.times(1 / least)).times(least**exponent).rounded(2)
    wide = floor**exponent - z.high.clamp(min=floor) ** exponent
    return chosen(low >= floor, found, Enclosed(found.first, found.second, None, wide).rounded(16))


@encloses("tanh")
def tanh(cell: Cell, z: Enclosed) -> Enclosed:
    return TANH(z)


@encloses("sigmoid")
def sigmoid(cell: Cell, z: Enclosed) -> Enclosed:
    return SIGMOID(z)


@encloses("silu")
def silu(cell: Cell, z: Enclosed) -> Enclosed:
    return SILU(z)


@encloses("gelu")
def gelu(cell: Cell, z: Enclosed, *, approximate: str = "none") -> Enclosed:
    return (GELU if approximate == "none" else GELU_TANH)(z)


@encloses("mish")
def mish(cell: Cell, z: Enclosed) -> Enclosed:
    return MISH(z)


@encloses("glu")
def glu(cell: Cell, z: Enclosed, dim: int = -1) -> Enclosed:
    half = z.shape[dim] // 2
    value, gate = (z.map(lambda part, k=k: part.narrow(dim, k * half, half)) for k in (0, 1))  # type: ignore[misc]  # k is bound
    return product(value, SIGMOID(gate))


@encloses("log_sigmoid")
def log_sigmoid(cell: Cell, z: Enclosed) -> Enclosed:
    """−log(1 + exp(−z)), which torch computes without a threshold."""
    found = -SOFTPLUS(-z)
    first = F.logsigmoid(z.first)
    return Enclosed(first, first if z.constant else F.logsigmoid(z.second), found.bend, found.slack).rounded(2)


@encloses("softplus")
def softplus(cell: Cell, z: Enclosed, beta: float = 1, threshold: float = CUT) -> Enclosed:
    """log(1 + exp(β·z))/β; beyond the threshold torch takes z itself, which is less by at most exp(−threshold)/β."""
    if not beta > 0:
        raise NoEnclosure(f"softplus with beta = {beta}")
    found = SOFTPLUS(z.times(float(beta))).times(1 / beta)
    first, second = (F.softplus(end, beta, threshold) for end in (z.first, z.second))
    cut = 2 * math.exp(-min(threshold, CUT)) / beta * (z.high * beta >= min(threshold, CUT))
    return Enclosed(
        first, first if z.constant else second, found.bend, cut if found.slack is None else found.slack + cut
    )


def _elu(z: Enclosed, alpha: float) -> Enclosed:
    """α·ELU + (1−α)·max(z, 0): the part of slope 1 has no kink."""
    smooth = ELU(z)
    return smooth if alpha == 1 else (smooth.times(alpha) + rectified(z).times(1 - alpha)).rounded(2)


@encloses("elu")
def elu(cell: Cell, z: Enclosed, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Enclosed:
    if input_scale != 1:
        raise NoEnclosure("elu with a scale of its input")
    return _elu(z, alpha).times(scale)


@encloses("celu")
def celu(cell: Cell, z: Enclosed, alpha: float = 1.0) -> Enclosed:
    """α·ELU(z/α), whose slope is 1 at 0 from both sides."""
    if not alpha > 0:
        raise NoEnclosure(f"celu with alpha = {alpha}")
    return ELU(z.times(1 / alpha)).times(alpha).rounded(2)


@encloses("selu")
def selu(cell: Cell, z: Enclosed) -> Enclosed:
    return _elu(z, SELU_ALPHA).times(SELU_SCALE).rounded()
