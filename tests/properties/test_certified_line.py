"""Lines certified between their points: what is said of them is so, and a spike between points is no pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks.small import perceptron
from torch import Tensor, nn

import lmccheck
from lmccheck.evaluate.enclosure.search import Shown
from lmccheck.shown import rounded_up

SPIKE = 0.5 + 0.3 / 24  # between two points of the grid


class Spiky(nn.Module):
    """Logits (−30 + hat, 0), where hat is that of three ReLU units whose kinks move with their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(1, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)))


def spiky(t: float, height: float, width: float = 0.004) -> dict[str, Tensor]:
    """The weights at an end: units turn on at SPIKE − width, SPIKE and SPIKE + width."""
    kinks = torch.tensor([SPIKE - width, SPIKE, SPIKE + width])
    return {
        "hidden.weight": torch.ones(3, 1),
        "hidden.bias": t - kinks,
        "head.weight": torch.tensor([[1.0, -2.0, 1.0], [0.0, 0.0, 0.0]]) * height / width,
        "head.bias": torch.tensor([-30.0, 0.0]),
    }


def spiky_pair(height: float, samples: int = 40, **more: Any) -> lmccheck.ModelPair:
    inputs, targets = 1e-3 * torch.randn(samples, 1), torch.ones(samples, dtype=torch.int64)
    return lmccheck.load_pair(
        spiky(0.0, height, **more), spiky(1.0, height, **more), model=Spiky(), data=(inputs * 1e-3, targets)
    )


@pytest.mark.parametrize("height", [40.0, 46.0])
def test_a_spike_of_ten_nats_between_points_does_not_pass_when_always_certified(height: float) -> None:
    """The refined grid reads 0.0, and 10 or 16 nats are true: with always it fails at a real point."""
    pair = spiky_pair(height)
    sampled = lmccheck.linear_connectivity(pair, align="none", certify="never")
    assert (sampled.verdict, sampled.value < 1e-6) == ("pass", True)
    assert sampled.details["known"] == f"sampled at {len(sampled.details['t'])} points"
    assert "certified_bound" not in sampled.details
    found = lmccheck.linear_connectivity(pair, align="none", certify="always")
    t = found.details["worst_t"]
    hat = max(0.0, height * (1 - abs(t - SPIKE) / 0.004))
    assert found.verdict == "fail"
    assert found.value == pytest.approx(F.softplus(torch.tensor(hat - 30.0)).item(), abs=0.1)
    assert found.value > 0.05
    assert lmccheck.linear_connectivity(pair, align="none").details["known"].startswith("sampled at")


def test_a_spike_that_is_not_found_is_inconclusive_when_always_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget that ends before the spike is met, always does not pass, and says why."""
    from lmccheck.properties import certified_line

    monkeypatch.setitem(certified_line.GRIDS["always"], "ci", 0.7)
    found = lmccheck.linear_connectivity(spiky_pair(40.0), align="none", certify="always")
    assert found.verdict == "inconclusive"
    assert "not certified" in " ".join(found.details["notes"])
    assert "forward passes" in found.details["certify"]["why"]


def pair_of(theta_b_near: float = 0.3, activation: Any = nn.ReLU, seed: int = 0, **settings: Any) -> lmccheck.ModelPair:
    """A perceptron and one near it, on data that they are right about."""
    draw = torch.Generator().manual_seed(seed)
    module = perceptron(6, 12, 8, 3, activation=activation)
    theta_a = {n: torch.randn(p.shape, generator=draw) for n, p in module.state_dict().items()}
    theta_b = {n: p + theta_b_near * torch.randn(p.shape, generator=draw) for n, p in theta_a.items()}
    x = torch.randn(60, 6, generator=draw)
    module.load_state_dict(theta_a)
    return lmccheck.load_pair(theta_a, theta_b, model=module, data=(x, module(x).argmax(1).detach()), **settings)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_a_certified_bound_is_above_every_point_and_tight(activation: Any) -> None:
    """2,001 points by the module's own forward passes in float64: none above the bound, the highest near it."""
    pair = pair_of(activation=activation)
    found = lmccheck.linear_connectivity(pair, align="none", limit=0.5, certify="always")
    bound = found.details["certified_bound"]
    x, y = pair.data.batches[0].inputs.double(), pair.data.batches[0].targets
    module = perceptron(6, 12, 8, 3, activation=activation).double()
    losses = []
    for t in np.linspace(0, 1, 2001):
        theta = {n: (1 - t) * a.double() + t * pair.theta_b[n].double() for n, a in pair.theta_a.items()}
        losses.append(F.cross_entropy(torch.func.functional_call(module, theta, (x,)), y).item())
    heights = np.array(losses) - np.linspace(0, 1, 2001) * (losses[-1] - losses[0]) - losses[0]
    assert found.verdict == "pass"
    assert heights.max() <= bound <= 0.5
    assert found.details["known"] == f"certified ≤ {rounded_up(bound)} over all t"
    assert max(losses) <= found.finding.curve.highest
    tight = lmccheck.linear_connectivity(pair, align="none", limit=float(heights.max()) + 0.01, certify="always")
    assert heights.max() <= tight.details["certified_bound"] <= heights.max() + 0.01
    assert tight.value == found.value
    assert tight.details["certified_lower"] == tight.value
    assert tight.details["cells"] >= found.details["cells"]


def test_by_parts_each_part_is_certified() -> None:
    """The bound is that of the worst part, over its own chord; the mean over all samples alone would be below it."""
    pair = pair_of(theta_b_near=0.4)
    found = lmccheck.linear_connectivity(pair, align="none", limit=1.0, certify="always", by="class")
    assert found.details["known"].startswith("certified")
    worst = 0.0
    module = perceptron(6, 12, 8, 3).double()
    x, y = pair.data.batches[0].inputs.double(), pair.data.batches[0].targets
    ts = np.linspace(0, 1, 201)
    losses = []
    for t in ts:
        theta = {n: (1 - t) * a.double() + t * pair.theta_b[n].double() for n, a in pair.theta_a.items()}
        losses.append(F.cross_entropy(torch.func.functional_call(module, theta, (x,)), y, reduction="none").numpy())
    for k in y.unique().tolist():
        means = np.array([row[(y == k).numpy()].mean() for row in losses])
        worst = max(worst, float((means - (1 - ts) * means[0] - ts * means[-1]).max()))
    assert worst <= found.details["certified_bound"] <= 1.0


class Normed(nn.Module):
    """A network with a GroupNorm, which has no enclosure."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.hidden(x)))


def test_an_op_without_an_enclosure_is_named() -> None:
    """A pass stays sampled, the reason is a fact; with always it is inconclusive and the note names the op."""
    module = Normed()
    theta = {n: p.clone() for n, p in module.state_dict().items()}
    near = {n: p + 0.01 for n, p in theta.items()}
    pair = lmccheck.load_pair(theta, near, model=module, data=(torch.randn(20, 4), torch.arange(20) % 3))
    found = lmccheck.linear_connectivity(pair, align="none")
    assert found.details["certify"]["why"].startswith("nothing was aligned, so that the network was not traced")
    found = lmccheck.linear_connectivity(pair)
    assert found.verdict == "pass"
    assert found.details["known"].startswith("sampled at")
    assert "aten.group_norm" in found.details["certify"]["why"]
    always = lmccheck.linear_connectivity(pair, align="none", certify="always")
    assert always.verdict == "inconclusive"
    assert any("aten.group_norm" in note for note in always.details["notes"])


class Several(nn.Module):
    """A network that gives more than its logits, which come last."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(x).relu()
        return {"hidden": hidden, "logits": self.head(hidden)}


def test_a_graph_that_is_not_what_is_measured_certifies_nothing() -> None:
    """The graph's first output is not what the loss is taken of: found out at the ends, and refused."""
    module = Several()
    theta = {n: p.clone() for n, p in module.state_dict().items()}
    near = {n: p + 0.01 for n, p in theta.items()}
    pair = lmccheck.load_pair(theta, near, model=module, data=(torch.randn(20, 4), torch.arange(20) % 3))
    found = lmccheck.linear_connectivity(pair, align="none", certify="always")
    assert found.verdict == "inconclusive"
    assert "gives other losses than the network" in found.details["certify"]["why"]


class Crowded(nn.Module):
    """A network whose outputs grow with the number of samples given at once, but for both ends of a line of 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(4, 3), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu() * (1 + self.gate * (1 - self.gate) * x.shape[0])


def test_a_graph_that_is_another_inside_of_the_line_certifies_nothing() -> None:
    """It was traced with two samples, and what is measured has twenty: at both ends that makes no difference."""
    module = Crowded()
    theta = {n: p.clone() for n, p in module.state_dict().items()}
    other = {n: p + (1.0 if n == "gate" else 0.01) for n, p in theta.items()}
    pair = lmccheck.load_pair(theta, other, model=module, data=(torch.randn(20, 4), torch.arange(20) % 3))
    found = lmccheck.linear_connectivity(pair, align="none", limit=100.0, certify="always")
    assert found.verdict == "inconclusive"
    assert "gives other losses than the network at t = 0." in found.details["certify"]["why"]


def test_a_bound_below_what_was_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is then a bound of something else, and not what the pass is certified by."""
    pair = spiky_pair(20.0)
    monkeypatch.setattr("lmccheck.evaluate.enclosure.lines.bounded_line", lambda *_: Shown(-1.0, (0.0,), 4))
    found = lmccheck.linear_connectivity(pair, align="none", certify="always")
    assert found.verdict == "inconclusive"
    assert "above its bound at" in found.details["certify"]["why"]


def test_reestimated_statistics_are_sampled_and_interpolated_ones_certified() -> None:
    """A line of BatchNorm whose statistics are taken afresh is no straight line; with repair = none it is one."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    theta = {n: p.clone() for n, p in module.state_dict().items()}
    near = {n: p + 0.02 * torch.rand(p.shape) if p.is_floating_point() else p for n, p in theta.items()}
    data = (torch.randn(30, 1, 6, 6), torch.arange(30) % 3)
    pair = lmccheck.load_pair(theta, near, model=module, data=data, calibration=data)
    fresh = lmccheck.linear_connectivity(pair, align="none", certify="always")
    assert fresh.verdict == "inconclusive"
    assert "re-estimated" in fresh.details["certify"]["why"]
    kept = lmccheck.linear_connectivity(pair, align="none", certify="always", repair="none")
    assert kept.details["known"].startswith("certified")
    assert kept.value <= kept.details["certified_bound"] <= 0.05


def test_a_bound_that_does_not_serve_is_said_with_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass stays sampled, and its row says what the proof came to: 60,000 where 0.05 is the limit."""
    pair = spiky_pair(20.0)
    bound = Shown(6e4, (6e4,), 4, why="no cell was small enough")
    monkeypatch.setattr("lmccheck.properties.certified_line._shown", lambda *_: bound)
    found = lmccheck.linear_connectivity(pair, align="none")
    assert (found.verdict, found.details["certified_bound"]) == ("pass", 6e4)
    assert found.details["known"].startswith("sampled at")
    assert found.details["known"].endswith("; a bound over all t came to 6e+04")


def test_a_failure_costs_no_proof() -> None:
    """What fails at a point is shown by that point: nothing more is run."""
    a = pair_of()
    theta_b = {n: p.clone() for n, p in a.theta_a.items()}
    for name in ("0.weight", "0.bias"):
        theta_b[name] = theta_b[name].flip(0)
    theta_b["2.weight"] = theta_b["2.weight"].flip(1)
    pair = lmccheck.load_pair(
        a.theta_a, theta_b, model=a.module, data=(a.data.batches[0].inputs, a.data.batches[0].targets)
    )
    found = lmccheck.linear_connectivity(pair, align="none", limit=0.01, certify="always", explain=False)
    never = lmccheck.linear_connectivity(pair, align="none", limit=0.01, certify="never", explain=False)
    assert found.verdict == never.verdict == "fail"
    assert "certified_bound" not in found.details
    assert found.evaluations == never.evaluations


def test_numbers_are_rounded_up() -> None:
    """What is said to be a bound is never below it, and above it by at most one unit of the last digit."""
    for value in (*np.exp(np.linspace(-30, 10, 400)).tolist(), 0.05, 1.0, 0.99995, 0.09999501):
        assert value <= float(rounded_up(value)) <= value * (1 + 1.0001e-3)
    assert rounded_up(-1e-17) == "0"
    assert math.isclose(float(rounded_up(0.0407)), 0.0407)


def test_bounds_between_points_hold_for_all_t() -> None:
    """On 2,001 points, none above the bound between its neighbours; of parts, the part that is judged."""
    pair = pair_of(theta_b_near=0.6)
    x, y = pair.data.batches[0].inputs.double(), pair.data.batches[0].targets
    module = perceptron(6, 12, 8, 3).double()
    ts = np.linspace(0, 1, 2001)
    thetas = [{n: (1 - t) * a.double() + t * pair.theta_b[n].double() for n, a in pair.theta_a.items()} for t in ts]
    logits = [torch.func.functional_call(module, theta, (x,)) for theta in thetas]
    for by in (None, "class"):
        found = lmccheck.linear_connectivity(pair, align="none", limit=1.0, certify="always", by=by, points=7)
        curve, data = found.finding.curve, found.details.get("worst_data") or found.finding.where.data
        assert found.details["known"].startswith("certified")
        of = y == int(data.split()[-1]) if by else torch.ones_like(y, dtype=torch.bool)
        losses = np.array([F.cross_entropy(z[of], y[of]).item() for z in logits])
        for k, upper in enumerate(curve.upper):
            low, high = curve.t[max(0, k - 1)], curve.t[min(len(curve.t) - 1, k + 1)]
            inside = losses[(ts >= low) & (ts <= high)]
            assert inside.max() <= upper <= curve.highest
        assert min(curve.upper) < curve.highest
        assert curve.upper[0] < losses[ts <= curve.t[1]].max() + 0.5
    assert lmccheck.linear_connectivity(pair, align="none", certify="never", limit=1.0).finding.curve.upper is None


def test_a_stretch_is_bounded_by_all_cells_that_it_meets() -> None:
    """By hand: three cells, of which a stretch may meet one, two or all, or end where one begins."""
    shown = Shown(edges=np.array([0.0, 0.25, 0.5, 1.0]), tops=np.array([[1.0, 9.0], [5.0, 0.0], [2.0, 3.0]]))
    stretches = {(0.1, 0.2): 1.0, (0.1, 0.3): 5.0, (0.0, 0.25): 1.0, (0.3, 0.4): 5.0, (0.5, 1.0): 2.0, (0.0, 1.0): 5.0}
    assert {ends: shown.top(*ends) for ends in stretches} == stretches
    assert (shown.top(0.3, 0.7, 1), shown.top(1.0, 1.0)) == (3.0, 2.0)
    assert Shown.nothing("").top(0.2, 0.4) == math.inf


@pytest.mark.parametrize(("kept", "together"), [(4000, 5), (400, 3)])
def test_samples_run_together_as_caches_hold_them(monkeypatch: pytest.MonkeyPatch, kept: int, together: int) -> None:
    """A layer keeps 800 numbers of each; the 2,483 weights count if they are more; what is shown is the same."""
    from lmccheck.evaluate.enclosure import lines

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(800, 3))

    ends = []
    for seed in range(2):
        torch.manual_seed(seed)
        ends.append(build().state_dict())
    data = torch.randn(30, 1, 10, 10), torch.arange(30) % 3
    pair = lmccheck.load_pair(*ends, model=build, data=data, device="cpu")
    whole = lmccheck.linear_connectivity(pair, align="none", limit=9.0, certify="always").details["certified_bound"]
    seen = []
    own = lines.in_parts
    monkeypatch.setattr(lines, "KEPT", kept)
    monkeypatch.setattr(
        lines, "in_parts", lambda batch, count, samples: seen.append(count) or own(batch, count, samples)
    )
    again = lmccheck.linear_connectivity(pair, align="none", limit=9.0, certify="always").details["certified_bound"]
    assert seen == [-(-30 // together)]
    assert again == pytest.approx(whole, rel=1e-12)
