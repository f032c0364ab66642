"""Means of many models are summed in float64, one model in memory at a time; so is what leaving one out gives."""

from __future__ import annotations

import math

import pytest
import torch
from networks.small import seeded, small_mlp

import lmccheck
from lmccheck.evaluate.means import MeanLosses, MeanWithout, RunningMean


def test_a_running_mean_is_the_weighted_mean() -> None:
    """Written out in float64; a model may be taken out without being kept; equal models give that model."""
    states = [seeded(small_mlp, seed) for seed in range(4)]
    weights = [1.0, 2.5, 0.0, 7.0]
    mean, apart = RunningMean(), MeanWithout()
    for state, weight in zip(states, weights, strict=True):
        apart.add(state, weight)
        if state is not states[3]:
            mean.add(state, weight)
    for name in states[0]:
        both = states[0][name].double() + 2.5 * states[1][name].double()
        assert torch.equal(mean.at()[name], (both / 3.5).float())
        three = (both + 7 * states[3][name].double()) / 10.5
        assert torch.allclose(apart.at(torch.float64)[name], three, atol=1e-15)
        assert torch.allclose(apart.without(states[2], 0.0, 10.5, torch.float64)[name], three, atol=1e-15)
        assert torch.allclose(apart.without(states[3], 7.0, 3.5, torch.float64)[name], both / 3.5, atol=1e-15)
    same = RunningMean()
    for _ in range(7):
        same.add(states[0], 0.1)
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in same.at().items())


def test_masks_integers_and_ties_stay_what_they_are() -> None:
    """±inf stays ±inf whatever is added or taken out, integers are the first model's, tied names share a tensor."""
    mask, shared = torch.tensor([0.0, -math.inf]), torch.ones(2)
    states = [{"mask": mask, "count": torch.tensor(k), "one": (tied := shared * k), "other": tied} for k in (1, 3)]
    mean = MeanWithout()
    for state in states:
        mean.add(state)
    found = mean.without(states[1], 1.0, others=1.0)
    assert torch.equal(found["mask"], mask)
    assert torch.equal(mean.at()["mask"], mask)
    assert int(mean.at()["count"]) == 1
    assert found["one"] is found["other"]
    assert mean.at()["one"].tolist() == [2.0, 2.0]
    assert found["one"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scale", "weights"), [(1.0, [1e15, 1, 3]), (1.0, [1, 1e30, 3]), (1e12, [1, 1, 1]), (1e18, [1, 2, 1])]
)
def test_what_dominates_a_mean_is_left_out_exactly(scale: float, weights: list[float]) -> None:
    """The mean of the others, and its height, by hand, whatever the one is larger by."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    states = [{"weight": torch.randn(2, 3)} for _ in range(3)]
    large = max(range(3), key=lambda k: weights[k])
    states[large]["weight"] *= scale
    result = lmccheck.set_connectivity(
        states, model=lambda: torch.nn.Linear(3, 2, bias=False), data=(inputs.float(), targets.float()), loss="mse",
        align="none", over="mean", weights=weights,
    )  # fmt: skip

    def loss(weight: torch.Tensor) -> float:
        return float((inputs @ weight.T - targets).square().mean(1).mean())

    (u, one), (v, other) = ((weights[k], states[k]["weight"].double()) for k in range(3) if k != large)
    expected = loss((u * one + v * other) / (u + v))
    assert result.details["leave_one_out"][f"model {large}"] == pytest.approx(expected, rel=1e-5)
    heights = MeanLosses([1.0, 1e-30, 3e-30], [7.0, 2.0, 4.0], None, 7.0, None, [5.0, None, None])
    assert heights.height_without(0) == pytest.approx(5 - (2 + 3 * 4) / 4)


def test_a_share_of_a_loss_is_of_the_models_that_count() -> None:
    """One of weight 0, however bad, widens no limit."""
    inputs, targets = torch.randn(20, 3), torch.zeros(20, 2)
    states = [{"weight": torch.full((2, 3), value)} for value in (1.0, 2.0, 1000.0)]
    result = lmccheck.set_connectivity(
        states, model=lambda: torch.nn.Linear(3, 2, bias=False), data=(inputs, targets), loss="mse", align="none",
        over="mean", weights=[1, 3, 0], limit="10%",
    )  # fmt: skip
    assert result.limit == pytest.approx(0.1 * float(4 * inputs.double().sum(1).square().mean()), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [3, 1, 0], {"model 2": 2, "model 0": 1, "model 1": 1}])
def test_the_verdict_over_the_mean_is_in_closed_form(weights: object) -> None:
    """For one linear layer under squared error, mean and leave-one-out are written out by hand."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 3), torch.randn(20, 2)
    states = [{"weight": torch.randn(2, 3), "bias": torch.zeros(2)} for _ in range(3)]
    data = inputs, targets
    result = lmccheck.set_connectivity(
        states, model=lambda: torch.nn.Linear(3, 2), data=data, loss="mse", align="none", over="mean", weights=weights
    )
    raw = {None: [1, 1, 1], "list": [3, 1, 0], "dict": [1, 1, 2]}[None if weights is None else type(weights).__name__]
    shares = [w / sum(raw) for w in raw]

    def loss(weight: torch.Tensor) -> float:
        return float((inputs.double() @ weight.T - targets.double()).square().mean(1).mean())

    own = [loss(state["weight"].double()) for state in states]
    mean = sum(w * state["weight"].double() for w, state in zip(shares, states, strict=True))
    assert result.value == pytest.approx(loss(mean) - sum(w * x for w, x in zip(shares, own, strict=True)), abs=1e-6)
    assert result.value < 0, "squared error of a linear layer is convex"
    found = result.details["leave_one_out"]
    for k, state in enumerate(states):
        others = (mean - shares[k] * state["weight"].double()) / (1 - shares[k])
        assert found[f"model {k}"] == pytest.approx(loss(others), abs=1e-6)
    assert result.details["weights"] == shares
    best = min(found, key=found.get)
    assert result.details["helps_most"] == (best if found[best] < result.details["mean_loss"] else None)
    assert result.evaluations == 7


def test_a_diverged_member_is_the_one_whose_removal_helps_most() -> None:
    """Of five near copies and a stranger; the failure says so, and that the mean without it is within the limit."""
    torch.manual_seed(1)
    first = seeded(small_mlp, 0)
    states = [{n: t + 0.01 * torch.randn_like(t) for n, t in first.items()} for _ in range(5)]
    states.insert(2, {n: t + 3 * torch.randn_like(t) for n, t in first.items()})
    inputs = torch.randn(64, 4)
    with torch.no_grad():
        targets = torch.func.functional_call(small_mlp(), first, (inputs,)).argmax(1)
    given = {"model": small_mlp, "data": (inputs, targets), "align": "none", "over": "mean"}
    result = lmccheck.set_connectivity(states, **given, limit=0.0)
    assert result.details["helps_most"] == "model 2"
    assert any("least without model 2" in note for note in result.details["notes"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "weights: got 2, expected one for each of the 3 models"),
        ({"model 0": 1, "model 1": 1, "modl 2": 1}, "weights: 'modl 2' is no model .did you mean 'model 2'"),
        ({"model 0": 1}, "weights: none for 'model 1'; mend: say one for each model"),
        ([0, 0, 0], "weights: got nothing but zeros"),
        ([1, -1, 1], "weights = .* expected numbers ≥ 0, one for each"),
        ([1, math.nan, 1], "weights = .* expected numbers ≥ 0, one for each"),
        ("abc", "weights = 'abc'"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: object, message: str) -> None:
    """Of the wrong number, of an unknown model, negative, all zero."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    data = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with pytest.raises(lmccheck.LmcError, match=message):
        lmccheck.set_connectivity(states, model=small_mlp, data=data, align="none", over="mean", weights=weights)


def test_pairs_of_a_set_are_measured_as_they_are() -> None:
    """``align = "none"`` moves nothing: both matrices are linear_connectivity's; weights are those of the mean."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    inputs, targets = torch.randn(40, 4), torch.randint(0, 3, (40,))
    given = {"model": small_mlp, "data": (inputs, targets)}
    result = lmccheck.set_connectivity(states, **given, align="none", weights=[1, 0, 3])
    assert result.witness is None
    assert result.details["matrix"] == result.details["matrix_naive"]
    pair = lmccheck.load_pair(states[0], states[2], **given)
    line = lmccheck.linear_connectivity(pair, align="none", points=5, profile="dev")
    assert result.details["matrix"][0][2] == pytest.approx(line.value, abs=1e-7)
    mean = {n: (states[0][n].double() + 3 * states[2][n].double()) / 4 for n in states[0]}
    outputs = torch.func.functional_call(small_mlp().double(), mean, (inputs.double(),))
    assert result.details["mean_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(outputs, targets)), abs=1e-6
    )
