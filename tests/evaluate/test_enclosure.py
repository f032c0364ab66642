"""Enclosures are sound: whatever the network, no point of a cell is above its bound; and what they rest on is right."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.enclosed import Bank, Kind, kinds, wild
from scipy.special import ndtr
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lmccheck.data.load import Batch
from lmccheck.evaluate.enclosure.cell import Cell
from lmccheck.evaluate.enclosure.enclosed import TWIST, Enclosed, NoEnclosure, product, tent
from lmccheck.evaluate.enclosure.losses import PARTS
from lmccheck.evaluate.enclosure.rules import ENCLOSURES, smooth
from lmccheck.evaluate.enclosure.rules.norm import inverse_root
from lmccheck.evaluate.enclosure.rules.piecewise import rectified
from lmccheck.evaluate.enclosure.rules.pooling import largest
from lmccheck.evaluate.enclosure.run import Enclosing
from lmccheck.evaluate.points import Line
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.trace import trace

KINDS = {kind.name: kind for kind in kinds()}
S = torch.linspace(0, 1, 201, dtype=torch.float64)
Weights = dict[str, Tensor]


def at(value: Enclosed, s: float | Tensor) -> Tensor:
    """The value without its slack, at s."""
    chord = (1 - s) * value.first + s * value.second
    return chord if value.bend is None else chord + s * (1 - s) * value.bend


def drawn(seed: int, size: int = 400, scale: float = 3.0) -> Enclosed:
    """Values with ends of every sign, bends and slacks of every size."""
    draw = torch.Generator().manual_seed(seed)
    first, second, bend, slack = torch.randn(4, size, generator=draw, dtype=torch.float64) * scale
    kind = torch.arange(size) % 4
    return Enclosed(first, torch.where(kind == 0, first, second), bend * (kind > 1), slack.abs() * (kind > 2) / 3)


def inside(value: Enclosed, s: float, seed: int) -> Tensor:
    """Something that the enclosure admits at s; often at its very edge."""
    draw = torch.Generator().manual_seed(seed)
    e = (2 * torch.rand(value.shape, generator=draw, dtype=torch.float64) - 1).mul(1.5).clamp(-1, 1)
    return at(value, s) + (0 if value.slack is None else e * value.slack)


def holds(found: Enclosed, values: Tensor, s: float) -> bool:
    """Whether values are what an enclosure admits at s, up to the rounding of this test."""
    slack = torch.zeros_like(found.first) if found.slack is None else found.slack
    return bool(((values - at(found, s)).abs() <= slack + 1e-12 * (1 + values.abs())).all())


def _over_one_and(z: Enclosed) -> Enclosed:
    """z/(1 + |z|), as torch has its softsign."""
    absolute, add, div = (ENCLOSURES[f"aten.{name}"] for name in ("abs", "add", "div"))
    return div(Cell(), z, add(Cell(), absolute(Cell(), z), 1))


ELEMENTWISE: dict[str, tuple[Callable[[Enclosed], Enclosed], Callable[[Tensor], Tensor]]] = {
    "relu": (rectified, F.relu),
    "leaky_relu": (lambda z: ENCLOSURES["aten.leaky_relu"](Cell(), z, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "steep": (lambda z: ENCLOSURES["aten.leaky_relu"](Cell(), z, 2.5), lambda x: F.leaky_relu(x, 2.5)),
    "hardtanh": (lambda z: ENCLOSURES["aten.hardtanh"](Cell(), z, -0.5, 1.5), lambda x: x.clamp(-0.5, 1.5)),
    "relu6": (lambda z: ENCLOSURES["aten.relu6"](Cell(), z), F.relu6),
    "abs": (lambda z: ENCLOSURES["aten.abs"](Cell(), z), torch.abs),
    "hardswish": (lambda z: ENCLOSURES["aten.hardswish"](Cell(), z), F.hardswish),
    "tanh": (smooth.TANH, torch.tanh),
    "sigmoid": (smooth.SIGMOID, torch.sigmoid),
    "silu": (smooth.SILU, F.silu),
    "gelu": (smooth.GELU, F.gelu),
    "gelu-tanh": (smooth.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
    "softplus": (smooth.SOFTPLUS, F.softplus),
    "sharp": (lambda z: ENCLOSURES["aten.softplus"](Cell(), z, 2.0, 1.0), lambda x: F.softplus(x, 2.0, 1.0)),
    "elu": (smooth.ELU, F.elu),
    "low-elu": (lambda z: ENCLOSURES["aten.elu"](Cell(), z, 0.4), lambda x: F.elu(x, 0.4)),
    "selu": (lambda z: ENCLOSURES["aten.selu"](Cell(), z), F.selu),
    "celu": (lambda z: ENCLOSURES["aten.celu"](Cell(), z, 0.4), lambda x: F.celu(x, 0.4)),
    "mish": (smooth.MISH, F.mish),
    "log-sigmoid": (lambda z: ENCLOSURES["aten.log_sigmoid"](Cell(), z), F.logsigmoid),
    "softshrink": (lambda z: ENCLOSURES["aten.softshrink"](Cell(), z, 0.7), lambda x: F.softshrink(x, 0.7)),
    "quotient": (lambda z: _over_one_and(z), lambda x: x / (1 + x.abs())),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_function_stays_in_its_enclosure(name: str) -> None:
    """Whatever lies in the enclosure of its argument, at the edges too; wide cells and narrow ones."""
    enclose, function = ELEMENTWISE[name]
    for seed, scale in enumerate((0.01, 0.3, 1.0, 3.0)):
        z = drawn(seed, scale=scale)
        z = Enclosed(z.first + (3 * seed - 5), z.first + (3 * seed - 5) + (z.second - z.first), z.bend, z.slack)
        found = enclose(z)
        assert torch.allclose(found.first, function(z.first), atol=1e-12 if name != "sharp" else 0.14)
        for k, s in enumerate(S[::10].tolist()):
            assert holds(found, function(inside(z, s, k)), s), f"{name}, scale {scale}, s = {s}"


def test_a_product_stays_in_its_enclosure() -> None:
    """Two values with bends and slacks of their own; without either it is exact."""
    x, y = drawn(1), drawn(2)
    found = product(x, y)
    for k, s in enumerate(S[::5].tolist()):
        assert holds(found, inside(x, s, k) * inside(y, s, k + 1000), s)
    plain = product(Enclosed(x.first, x.second), Enclosed(y.first, y.second))
    assert plain.slack is not None
    assert float(plain.slack.max()) < 1e-12
    assert torch.allclose(at(plain, 0.3), at(Enclosed(x.first, x.second), 0.3) * at(Enclosed(y.first, y.second), 0.3))


def test_a_product_has_room_for_its_rounding() -> None:
    """What float64 makes of x·y is half a unit of its last place away from the product of the two, which is inside."""
    x, y = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = product(Enclosed(x, x), Enclosed(y, y))
    assert found.slack is not None
    for a, b, first, slack in zip(*(part.tolist() for part in (x, y, found.first, found.slack)), strict=True):
        assert abs(Fraction(a) * Fraction(b) - Fraction(first)) <= Fraction(slack) < Fraction(first) / 2**40


def test_tents_are_met_by_their_bends() -> None:
    """|min(s·a, (1−s)·b) − s(1−s)·μ| ≤ ρ, nearly attained; of equal slopes ρ is well below half of the tent's top."""
    a, b = torch.rand(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(6).exp().unbind()
    a[:3], b[1:5] = 0.0, 0.0
    mu, rho = tent(a, b)
    heights = torch.minimum(S[:, None] * a, (1 - S)[:, None] * b) - (S * (1 - S))[:, None] * mu
    assert bool((heights.abs().amax(0) <= rho * (1 + 1e-12)).all())
    assert bool((heights.abs().amax(0)[5:] >= 0.9 * rho[5:]).all())
    one = torch.ones(1, dtype=torch.float64)
    assert float(tent(one, one)[1]) < 0.0733 < 0.25  # the top is a half


def test_a_maximum_stays_in_its_enclosure() -> None:
    """Of windows in which the largest changes, and of such in which it is always the same."""
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        first, second, bend, slack = torch.randn(4, 300, 5, generator=draw, dtype=torch.float64).unbind()
        x = Enclosed(first, first + second * 10.0**-seed, bend * 10.0**-seed, slack.abs() * 10.0 ** (-seed - 1))
        found = largest(x, 1)
        for k, s in enumerate(S[::10].tolist()):
            assert holds(found, inside(x, s, k).amax(1), s)


def test_a_third_that_is_nowhere_the_largest_by_far_lifts_a_maximum() -> None:
    """Two that cross far below the chord of the maxima, and a third just below it."""
    first, second = torch.tensor([[[1.0, 0.0, 0.99]], [[0.0, 1.0, 0.99]]], dtype=torch.float64)
    found = largest(Enclosed(first, second), 1)
    for s in S.tolist():
        assert holds(found, ((1 - s) * first + s * second).amax(1), s)


def test_an_inverse_root_stays_in_its_enclosure() -> None:
    """1/√v where v changes by a factor of up to 10⁴; its slack falls with the square of the cell or faster."""
    draw = torch.Generator().manual_seed(0)
    first, second = torch.exp(9 * torch.rand(2, 300, generator=draw, dtype=torch.float64) - 6).unbind()
    found = inverse_root(Enclosed(first, second))
    for s in S[::4].tolist():
        assert holds(found, at(Enclosed(first, second), s).rsqrt(), s)
    one, near = torch.ones(1, dtype=torch.float64), torch.full((1,), 1.01, dtype=torch.float64)
    slack = inverse_root(Enclosed(one, near)).slack
    assert slack is not None
    assert float(slack) < 1.2e-7  # 0.01²·¾·(1 − 1.01^(−5/2))/16


def _kinked(x: Tensor) -> Tensor:
    """x²/2 but for a curvature of −1 within 10⁻⁴ of 0."""
    e = 1e-4
    return torch.where(x.abs() < e, -x.square() / 2, x.square() / 2 - 2 * e * x.abs() + e * e)


KINKED = smooth.Smooth(_kinked, lambda x: x, lambda x: torch.where(x.abs() < 1e-4, -1.0, 1.0), 99.0, 1.0, math.inf)
CUBE = smooth.Smooth(lambda x: x.abs() ** 3 / 6, lambda x: x * x.abs() / 2, torch.abs, 99.0, 99.0, 1.0)
PARABOLA = smooth.Smooth(lambda x: x.square() / 2, lambda x: x, torch.ones_like, 999.0, 1.0, 0.0)
ROOF = smooth.Smooth(lambda x: -x.abs(), torch.zeros_like, torch.zeros_like, 1.0, 1e6, math.inf)
INFLECTION = 0.5 + 1 / math.sqrt(12)


@pytest.mark.parametrize(
    ("rule", "ends", "bend", "slack", "s", "off"),
    [
        pytest.param(KINKED, (-1, 1), 0, 0, 0.5, 0, id="curvature is another one in the middle alone"),
        pytest.param(CUBE, (-1, 1), 0, 0, 0.5, 0, id="curvature grows from the middle"),
        pytest.param(PARABOLA, (-50, 50), 1e-3, 0, INFLECTION, 0, id="a small bend of a long step"),
        pytest.param(PARABOLA, (0, 0), 1, 0, 0.5, 0, id="a bend alone"),
        pytest.param(PARABOLA, (0, 0), 0, 0.1, 0.5, 0.1, id="slack alone"),
        pytest.param(PARABOLA, (-2, 2), 0, 0.1, 1.0, 0.1, id="slack at an end"),
        pytest.param(ROOF, (-1, 1), 0, 0, 0.5, 0, id="a function that falls from its top"),
    ],
)
def test_the_slack_of_a_smooth_function_is_attained(
    rule: smooth.Smooth, ends: tuple[float, float], bend: float, slack: float, s: float, off: float
) -> None:
    """Functions that are as far from what is said of them as they may be: a constant that is 1 % less is too small."""
    first, second, v, r = torch.tensor([[*ends, bend, slack]], dtype=torch.float64).T
    z = Enclosed(first, second, v if bend else None, r if slack else None)
    found = rule(z)
    apart = (rule.value(at(z, s) + off) - at(found, s)).abs()
    assert found.slack is not None
    assert 0.99 * found.slack <= apart <= found.slack


X = np.linspace(-30, 30, 2_000_001)
SIGMA = 1 / (1 + np.exp(-X))
BELL = np.exp(-X * X / 2) / math.sqrt(2 * math.pi)
FUNCTIONS = {  # values on a fine grid, of which derivatives are taken by differences, not by the formulas of the rules
    "TANH": np.tanh(X),
    "SIGMOID": SIGMA,
    "SILU": X * SIGMA,
    "GELU": X * ndtr(X),
    "GELU_TANH": X / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "SOFTPLUS": np.logaddexp(0, X),
    "MISH": X * np.tanh(np.logaddexp(0, X)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_of_derivatives_hold_and_are_tight(name: str) -> None:
    """Largest |φ′|, |φ″| and |φ‴| by differences of φ: the constants are above them, by less than 1 %."""
    rule = getattr(smooth, name)
    step = X[100] - X[0]
    values = FUNCTIONS[name][::100]
    for order, constant in ((1, rule.most_slope), (2, rule.most_curve), (3, rule.jolt)):
        seen = np.abs(np.diff(values, order)).max() / step**order
        assert constant * 0.99 <= seen <= constant * (1 + 1e-5), f"order {order}: {seen} against {constant}"


@pytest.mark.parametrize(("name", "power"), [("RECIPROCAL", -1.0), ("INVERSE_ROOT", -0.5)])
def test_bounds_of_powers_from_one_on_are_those_at_one(name: str, power: float) -> None:
    """φ = x^p: |p|, |p(p−1)| and |p(p−1)(p−2)|, and the formulas of φ′ and φ″ by differences."""
    rule, x = getattr(smooth, name), torch.linspace(1, 9, 8001, dtype=torch.float64)
    by_hand = [abs(power), abs(power * (power - 1)), abs(power * (power - 1) * (power - 2))]
    assert [rule.most_slope, rule.most_curve, rule.jolt] == pytest.approx(by_hand, rel=1e-12)
    for one, other in ((lambda v: v**power, rule.slope), (rule.slope, rule.curve)):
        assert torch.allclose((one(x + 1e-5) - one(x - 1e-5)) / 2e-5, other(x), atol=1e-8)


def test_an_inverse_root_is_known_where_its_enclosure_reaches_below_the_floor() -> None:
    """Values that are at least a tenth, in enclosures of which some admit less than 0."""
    draw = torch.Generator().manual_seed(0)
    first, second = 0.1 + 2 * torch.rand(2, 400, generator=draw, dtype=torch.float64) ** 3
    bend = torch.randn(400, generator=draw, dtype=torch.float64)
    v = Enclosed(first, second, bend, torch.rand(400, generator=draw, dtype=torch.float64) / 4)
    found = smooth.power(v, -0.5, 0.1)
    assert found.slack is not None
    assert float(found.slack.max()) < math.inf
    assert bool((v.low < 0).any())
    for k, s in enumerate(S[::10].tolist()):
        for each in (inside(v, s, k), v.low, v.high):
            values = each.clamp(min=0.1)
            admitted = (values - at(v, s)).abs() <= v.slack
            off = (values.rsqrt() - at(found, s)).abs()
            assert bool((off[admitted] <= found.slack[admitted] + 1e-12).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_the_function(name: str) -> None:
    """φ′ and φ″ by autograd."""
    rule = getattr(smooth, name)
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rule.value(x).sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert torch.allclose(rule.slope(x), slope, atol=1e-12)
    assert torch.allclose(rule.curve(x), curve, atol=1e-12)


def test_what_a_twist_leaves_is_at_most_its_constant() -> None:
    """max |s(1−s)(s−½)| is 1/(12√3), at s = ½ ± 1/(2√3)."""
    s = np.linspace(0, 1, 1_000_001)
    assert np.abs(s * (1 - s) * (s - 0.5)).max() == pytest.approx(TWIST, abs=1e-9)
    u = np.linspace(0, 0.25, 100_001)
    assert np.abs(u * u - u / 5).max() <= 1 / 80 + 1e-15


def above(kind: Kind, seed: int, scale: float, lo: float, width: float, loss: str, points: Tensor) -> float:
    """By how much the loss of a sample is above its bound somewhere on a cell of the line between wild weights."""
    module = kind.build().eval().double()
    theta_a, theta_b = wild(module, seed, scale), wild(module, seed + 10_000, scale)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(5, *kind.shape, generator=draw, dtype=torch.float64)
    targets = torch.randint(0, 3, (5,), generator=draw)
    wanted = targets if loss == "cross_entropy" else torch.randn(5, 3, generator=draw, dtype=torch.float64)
    traced = _traced(kind)

    def weights(t: float) -> dict[str, Tensor]:
        return {n: torch.lerp(a, theta_b[n], t) if a.is_floating_point() else a for n, a in theta_a.items()}

    (bounds,), _ = Enclosing(traced, 2, loss)(_line(weights(lo), weights(lo + width)), [Batch(x, wanted)])
    worst = -math.inf
    for s in points.tolist():
        with torch.no_grad():
            out = torch.func.functional_call(module, weights(lo + s * width), (x,))
        if loss == "cross_entropy":
            losses = F.cross_entropy(out, targets, reduction="none")
        else:
            losses = (out - wanted).square().mean(1)
        k = min(int(s * PARTS), PARTS - 1)
        share = s * PARTS - k
        worst = max(worst, float((losses - (1 - share) * bounds.most[:, k] - share * bounds.most[:, k + 1]).max()))
        if s in (0.0, 1.0):
            assert torch.allclose(losses, bounds.ends[:, int(s)], rtol=1e-9, atol=1e-9)
    return worst


TRACES: dict[str, object] = {}


def _traced(kind: Kind) -> object:
    if kind.name not in TRACES:
        TRACES[kind.name] = trace(
            kind.build().eval().double(), (torch.randn(2, *kind.shape).double(),), RULES, lines=False
        )
    return TRACES[kind.name]


SIDE_BY_SIDE = {"perceptron": (80, 6), "gate": (80, 6), "convolutions": (15, 3)}  # networks in a bank, and banks


def _family(kind: Kind) -> str:
    return "convolutions" if len(kind.shape) > 1 else "gate" if kind.name.endswith("gate") else "perceptron"


CELLS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5000),
        "scale": st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0]),
        "lo": st.floats(0, 0.5),
        "width": st.sampled_from([0.5, 0.1, 0.01, 1e-4]),
        "loss": st.sampled_from(["cross_entropy", "mse"]),
    }
)


@pytest.mark.parametrize("name", [name for name in KINDS if _family(KINDS[name]) == "perceptron" or "relu-" in name])
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(cell=CELLS)
def test_no_point_of_a_cell_is_above_its_bound(name: str, cell: dict[str, object]) -> None:
    """A network by itself, with linear layers, of which the last is bounded by margins; 11 points of each cell."""
    assert above(KINDS[name], points=S[::20], **cell) <= 0  # type: ignore[arg-type]  # drawn together


def test_the_cells_of_the_default_suite_are_twenty_thousand() -> None:
    """Each of a network's own, with weights and inputs of its own; 201 points in each are compared with its bound."""
    assert sum(math.prod(SIDE_BY_SIDE[_family(kind)]) for kind in KINDS.values()) >= 20_000


@pytest.mark.parametrize("name", KINDS)
def test_no_point_of_twenty_thousand_cells_is_above_its_bound(name: str) -> None:
    """Networks of all covered ops, depths 2 to 7, wild weights, cells of all widths: many networks side by side.

    What is compared with the bounds are the losses of every network by itself, run by PyTorch.
    """
    kind, draw = KINDS[name], random.Random(name)
    copies, banks = SIDE_BY_SIDE[_family(kind)]
    bank, alone = Bank(kind.build(copies=copies)).eval().double(), kind.build().eval().double()
    traced = trace(bank, (torch.randn(2, copies, *kind.shape).double(),), RULES, lines=False)
    seen = 0
    for seed in range(banks):
        torch.manual_seed(seed)
        scale, loss = draw.choice([0.1, 0.5, 1.0, 3.0, 10.0]), ("cross_entropy", "mse")[seed % 2]
        ends, width = [wild(bank, 2 * seed + k, scale) for k in range(2)], draw.choice([0.5, 0.1, 0.01, 1e-4])
        lo = draw.random() / 2
        first, second = (
            {n: torch.lerp(a.double(), ends[1][n].double(), t) for n, a in ends[0].items()} for t in (lo, lo + width)
        )
        x = torch.randn(2, copies, *kind.shape, dtype=torch.float64)
        wanted = torch.randint(0, 3, (2 * copies,)) if loss == "cross_entropy" else torch.randn(2 * copies, 3).double()
        (bounds,), _ = Enclosing(traced, len(wanted), loss)(_line(first, second), [Batch(x, wanted)])
        losses = _losses(alone, first, second, x, wanted)
        k = (S * PARTS).long().clamp(max=PARTS - 1)
        share = (S * PARTS - k)[:, None]
        over = losses - (1 - share) * bounds.most.T[k] - share * bounds.most.T[k + 1]
        assert torch.allclose(losses[[0, -1]].T, bounds.ends, rtol=1e-9, atol=1e-9)
        assert over.isfinite().all()
        assert over.max() <= 0, f"bank {seed}: {float(over.max())} above, scale {scale}, [{lo}, {lo + width}], {loss}"
        seen += over.shape[1] // 2
    assert seen == copies * banks


def _line(first: Weights, second: Weights) -> Line:
    return Line(first, second, torch.float64, torch.device("cpu"))


def _losses(alone: nn.Module, first: Weights, second: Weights, x: Tensor, wanted: Tensor) -> Tensor:
    """The losses of each network of a bank by itself, (points, samples · copies), from a module of one network."""
    copies = x.shape[1]

    def own(weights: Weights) -> Weights:
        """The weights of each network, (copies, …); a slope that all of them share is repeated."""
        found = {n: weights[f"inner.{n}"] for n in alone.state_dict()}
        shapes = {n: (copies, *v.shape) for n, v in alone.state_dict().items()}
        return {n: w.expand(shapes[n]) if w.numel() < copies else w.reshape(shapes[n]) for n, w in found.items()}

    a, b = own(first), own(second)

    def outputs(s: Tensor) -> Tensor:
        at = {n: torch.lerp(v, b[n], s) for n, v in a.items()}
        return vmap(lambda weights, inputs: functional_call(alone, weights, (inputs,)))(at, x.transpose(0, 1))

    with torch.no_grad():
        out = vmap(outputs)(S).transpose(1, 2).flatten(1, 2)
    if wanted.is_floating_point():
        return (out - wanted).square().mean(2)
    return F.cross_entropy(out.flatten(0, 1), wanted.repeat(len(S)), reduction="none").reshape(len(S), -1)


def test_slack_falls_with_the_square_of_the_cell() -> None:
    """Of a network with kinks: halving a narrow cell leaves about a quarter of the slack, or less."""
    kind = KINDS["relu-2"]
    module = kind.build().eval().double()
    theta_a, theta_b = wild(module, 1, 1.0), wild(module, 2, 1.0)
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(x, torch.zeros(200, dtype=torch.int64))

    def slack(width: float) -> float:
        ends = [{n: torch.lerp(a, theta_b[n], t) for n, a in theta_a.items()} for t in (0.5, 0.5 + width)]
        (found,), _ = Enclosing(_traced(kind), 2, "cross_entropy")(_line(*ends), [batch])
        return float(found.slack.mean())

    assert slack(1 / 64) < 0.4 * slack(1 / 32) < 0.16 * slack(1 / 16)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_a_norm_of_numbers_that_pass_through_one_another_stays_in_its_enclosure(name: str) -> None:
    """Where all of a sample's are equal, what is below the root is ε alone, less than at either end of the cell."""
    draw = torch.Generator().manual_seed(0)
    epsilon, rule = 0.01, ENCLOSURES[f"aten.{name}"]
    for size in (0.01, 0.1, 1.0):
        first = size * torch.randn(50, 6, generator=draw, dtype=torch.float64)
        moved = Enclosed(first, -first * torch.rand(50, 1, generator=draw, dtype=torch.float64))
        more = (None, None) if name == "layer_norm" else (None,)
        found = rule(Cell(50, 2), moved, [6], *more, epsilon)
        for s in S[::5].tolist():
            x = at(moved, s)
            x = x - x.mean(1, keepdim=True) if name == "layer_norm" else x
            assert holds(found, x / (x.square().mean(1, keepdim=True) + epsilon).sqrt(), s)


class Reordered(nn.Module):
    """Reads its inputs in an order that it stores, and has a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.order: Tensor
        self.register_buffer("order", torch.tensor([1, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(x.index_select(1, self.order))


def test_integers_are_those_of_both_ends_or_have_no_enclosure() -> None:
    """An order that both ends store is taken as it is; of two that differ nothing lies between."""
    torch.manual_seed(0)
    module = Reordered().eval().double()
    traced = trace(module, (torch.randn(2, 3, dtype=torch.float64),), RULES, lines=False)
    first, second = ({name: tensor.clone() for name, tensor in module.state_dict().items()} for _ in range(2))
    second["head.weight"] += 1
    batch = Batch(torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    run = Enclosing(traced, 2, "cross_entropy")
    assert run(_line(first, second), [batch])[0][0].most.isfinite().all()
    second["order"] = torch.tensor([2, 1, 0])
    with pytest.raises(NoEnclosure, match="integers that differ"):
        run(_line(first, second), [batch])
