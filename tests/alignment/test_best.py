"""The method best takes the lowest calibration barrier, never looks at a verdict, and repeats itself."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from networks.planted import Weights, deep, independent_pair, problem_of
from networks.quick import slowly
from torch import nn

import lmccheck
from lmccheck.alignment.matching.reassign import affordable
from lmccheck.alignment.methods import learned, starts
from lmccheck.alignment.methods._joint import SHARES
from lmccheck.alignment.methods.best import solve
from lmccheck.data.load import Batch, Data
from lmccheck.evaluate.calibration import CalibrationBarrier
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is claimed here holds of any number of steps: learning is cut short."""
    monkeypatch.setattr(learned, "train", partial(learned.train, steps=30))


# best


def rescaled_pair() -> lmccheck.ModelPair:
    """Return θ, and a permuted θ whose ReLU units are rescaled by 0.2 to 5: no permutation connects the two."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    theta = randomised(module, 1)
    other = dict(theta)
    for made, read in (("0", "2"), ("2", "4")):
        scale = torch.exp(3.2 * torch.rand(12, dtype=torch.float64) - 1.6)
        other[f"{made}.weight"] = other[f"{made}.weight"] * scale[:, None]
        other[f"{made}.bias"] = other[f"{made}.bias"] * scale
        other[f"{read}.weight"] = other[f"{read}.weight"] / scale
    x = torch.randn(256, 6, dtype=torch.float64)
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    spec = lmccheck.discover_symmetry(module, (x[:2].float(),))
    return lmccheck.load_pair(
        theta,
        spec.apply(other, spec.moving(2)),
        model=module,
        data=(x[:8], y[:8]),
        calibration=(x, y),
        loss="mse",
        device="cpu",
    )


def judged(pair: lmccheck.ModelPair, weights: Weights, points: tuple[float, ...] = (0.25, 0.5, 0.75)) -> float:
    """Return the barrier in mean squared error on all calibration data, by plain forward passes."""
    batch = pair.calibration.batches[0]

    def loss(state: Weights) -> float:
        output = outputs_of(pair.module, state, (batch.inputs,), torch.float64)[0]
        return float(((output - batch.targets) ** 2).mean())

    ends = loss(pair.theta_a), loss(pair.theta_b)
    middle = [{k: (1 - t) * pair.theta_a[k] + t * weights[k] for k in weights} for t in points]
    return max(0.0, *(loss(m) - (1 - t) * ends[0] - t * ends[1] for t, m in zip(points, middle, strict=True)))


def test_best_takes_the_lowest_calibration_barrier_of_all() -> None:
    """It records every method's objective and barrier, each as a plain loop measures it, and takes the smallest."""
    pair = rescaled_pair()
    alignment = lmccheck.align(pair, "best")
    table = {row["method"]: row for row in alignment.facts["candidates"]}
    assert list(table) == [*starts(), "learned"]
    spec = alignment.spec
    for method, row in table.items():
        found = solve(problem_of(pair), method)
        weights = spec.apply(pair.theta_b, found.permutation)
        assert row["calibration_barrier"] == pytest.approx(judged(pair, weights), rel=1e-9)
        assert row["objective"] == found.objective
    lowest = min(row["calibration_barrier"] for row in table.values())
    assert 0 < lowest < table["identity"]["calibration_barrier"]
    assert len({row["calibration_barrier"] for row in table.values()}) > 2  # there was something to choose from
    assert alignment.facts["calibration_barrier"] == lowest
    assert table[alignment.facts["chosen"]]["calibration_barrier"] == lowest
    assert judged(pair, alignment.weights) == pytest.approx(lowest, rel=1e-9)
    assert judged(pair, spec.apply(pair.theta_b, alignment.permutation)) == pytest.approx(lowest, rel=1e-9)


def test_a_calibration_barrier_is_the_highest_over_the_chord() -> None:
    """x·v·w for v, w from (1, 1) to (−1, 0), where the loss is (1 − (1−2t)(1−t))²; over the chord t by .1406, .5 and
    .5156 at a quarter, at half-way and at three quarters."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    a, b = {"0.weight": one, "1.weight": one}, {"0.weight": -one, "1.weight": 0 * one}
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    pair = lmccheck.load_pair(a, b, model=module, data=(0 * x, x), calibration=(x, x), loss="mse", device="cpu")
    assert CalibrationBarrier(pair)(pair.theta_b) == pytest.approx(0.515625, abs=1e-12)


def test_the_joint_match_is_the_one_of_the_lowest_loss_half_way() -> None:
    """Of all shares, as a plain forward pass on the calibration data measures it; wide groups get fewer matches."""
    pair = rescaled_pair()
    problem = problem_of(pair)
    found = solve(problem, "together")
    losses = [row["loss_half_way"] for row in found.facts["matches"]]
    assert len(losses) == len(SHARES)
    assert found.facts["chosen"]["loss_half_way"] == min(losses)
    weights = problem.spec.apply(pair.theta_b, found.permutation)
    batch = pair.calibration.batches[0]
    middle = {k: (pair.theta_a[k] + weights[k]) / 2 for k in weights}
    output = outputs_of(pair.module, middle, (batch.inputs,), torch.float64)[0]
    assert min(losses) == pytest.approx(float(((output - batch.targets) ** 2).mean()), rel=1e-9)
    assert [affordable(problem.spec, budget, 5) for budget in (0, 10**9)] == [1, 5]
    cost = sum(group.copies * group.size**3 for group in problem.spec.groups)
    assert affordable(problem.spec, 3 * cost, 5) == 3


@pytest.mark.parametrize("method", ["best", slowly("learned"), "transport-both"])
def test_the_choice_never_sees_evaluation_data(method: str) -> None:
    """Other evaluation inputs and garbage for targets: the same permutation, bit for bit, and the same facts."""
    pair = rescaled_pair()
    first = lmccheck.align(pair, method)
    garbage = Data((Batch(1e3 * torch.randn(11, 6), -1e6 * torch.rand(11, 3)),), "garbage", True)
    second = lmccheck.align(pair.measured_on(garbage, pair.calibration), method)
    assert all(torch.equal(first.permutation[name], second.permutation[name]) for name in first.permutation)
    assert first.facts == second.facts
    third = lmccheck.align(pair.measured_on(pair.data, replaced(pair.calibration)), method)
    assert first.facts != third.facts  # calibration data is what counts


def replaced(data: Data) -> Data:
    """Return data with other samples."""
    batch = data.batches[0]
    return Data((Batch(batch.inputs.flip(0) * 2 - 1, batch.targets * 0),), data.origin, True)


@pytest.mark.slow
def test_a_seed_decides_everything() -> None:
    """Two runs with one seed agree bit for bit, facts included."""
    for method in ("best", "weight-matching"):
        runs = [lmccheck.align(rescaled_pair(), method, seed=3) for _ in range(2)]
        assert all(torch.equal(runs[0].permutation[k], runs[1].permutation[k]) for k in runs[0].permutation)
        assert runs[0].facts == runs[1].facts
        assert runs[0].objective == runs[1].objective


def test_without_calibration_data_best_is_weight_matching() -> None:
    """And says so; the methods that need data refuse in one line."""
    pair = independent_pair(deep())
    pair = pair.measured_on(pair.data, None)
    best, plain = lmccheck.align(pair, "best"), lmccheck.align(pair, "weight-matching")
    assert all(torch.equal(best.permutation[k], plain.permutation[k]) for k in plain.permutation)
    assert best.facts["chosen"] == "weight-matching"
    assert best.facts["because"] == "no calibration data"
    for method in ("activation-matching", "transport", "transport-both", "learned"):
        with pytest.raises(lmccheck.SourceError, match="needs calibration data and none is given"):
            lmccheck.align(pair, method)


def test_learning_never_ends_worse_than_it_began() -> None:
    """Loss half-way, over the judging batches: what learned returns is at most that of its start, and is reported."""
    for seed in range(2):
        pair = independent_pair(deep(), seed, samples=256)
        found = solve(problem_of(pair), "learned")
        losses = found.facts["losses_half_way"]
        assert -found.objective == min(losses) <= losses[0]
        assert found.facts["start"] in starts()
        aligned = problem_of(pair).spec.apply(pair.theta_b, found.permutation)
        middle = {k: (pair.theta_a[k] + aligned[k]) / 2 for k in aligned}
        batch = pair.calibration.batches[0]
        output = outputs_of(pair.module, middle, (batch.inputs,), torch.float64)[0]
        assert -found.objective == pytest.approx(float(((output - batch.targets) ** 2).mean()), rel=1e-9)
