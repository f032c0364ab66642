"""The barrier: its definition against an independent evaluation, and the relations that hold for every pair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lmccheck
from lmccheck.evaluate.line import Point, barrier, chord, sample


def network() -> nn.Module:
    """5-8-6-3."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def with_batchnorm() -> nn.Module:
    """A conv net with BatchNorm and flatten."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


def state(build: object, seed: int, scale: float = 2.0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        k: v * scale if v.is_floating_point() and "running" not in k else v for k, v in build().state_dict().items()
    }  # type: ignore[operator]  # tests pass a builder


DATA = (
    torch.randn(60, 5, generator=torch.Generator().manual_seed(0)),
    torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(1)),
)


def pair(seed: int, other: int) -> lmccheck.ModelPair:
    return lmccheck.load_pair(state(network, seed), state(network, other), model=network, data=DATA)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_barrier_equals_an_independent_evaluation(seed: int) -> None:
    """Losses and barrier equal a plain PyTorch loop over the reported t with the reported permutation, to 1e-9."""
    p = pair(seed, seed + 1)
    result = lmccheck.linear_connectivity(p, points=9)
    module = network()

    def loss(weights: dict[str, Tensor]) -> float:
        return F.cross_entropy(torch.func.functional_call(module, weights, (DATA[0].double(),)), DATA[1]).item()

    b = {k: v.clone() for k, v in p.theta_b.items()}
    first, second = result.witness.permutation["0"], result.witness.permutation["2"]
    b["0.weight"], b["0.bias"], b["2.weight"] = b["0.weight"][first], b["0.bias"][first], b["2.weight"][:, first]
    b["2.weight"], b["2.bias"], b["4.weight"] = b["2.weight"][second], b["2.bias"][second], b["4.weight"][:, second]
    ends = loss(p.theta_a), loss(p.theta_b)
    curve = [loss({k: (1 - t) * p.theta_a[k] + t * b[k] for k in b}) for t in result.details["t"]]
    assert result.details["losses"] == pytest.approx(curve, abs=1e-9)
    expected = max(v - (1 - t) * ends[0] - t * ends[1] for t, v in zip(result.details["t"], curve, strict=True))
    assert result.value == pytest.approx(expected, abs=1e-9)
    assert (result.details["loss_a"], result.details["loss_b"]) == pytest.approx(ends, abs=1e-9)


def test_barrier_with_batchnorm_equals_an_independent_evaluation() -> None:
    """Statistics from torch's update_bn on the whole calibration data at every t, chord of the originals."""
    a, b = state(with_batchnorm, 0), state(with_batchnorm, 1)
    torch.manual_seed(2)
    data = torch.randn(40, 1, 4, 4), torch.randint(0, 3, (40,))
    calibration = torch.randn(64, 1, 4, 4), torch.zeros(64, dtype=torch.int64)
    result = lmccheck.linear_connectivity(
        lmccheck.load_pair(a, b, model=with_batchnorm, data=data, calibration=calibration), align="none", points=5
    )
    module = with_batchnorm()

    def loss(weights: dict[str, Tensor], again: bool) -> float:
        module.load_state_dict(weights)
        if again:
            torch.optim.swa_utils.update_bn([calibration[0].double()], module.train())
        return F.cross_entropy(module.eval()(data[0].double()), data[1]).item()

    curve = [
        loss({k: (1 - t) * a[k] + t * b[k] if a[k].is_floating_point() else a[k] for k in a}, again=True)
        for t in result.details["t"]
    ]
    ends = loss(a, False), loss(b, False)
    assert result.details["losses"] == pytest.approx(curve, abs=1e-9)
    assert result.value == pytest.approx(
        max(v - (1 - t) * ends[0] - t * ends[1] for t, v in zip(result.details["t"], curve, strict=True))
    )


def test_a_network_and_itself_have_no_barrier() -> None:
    """A = B: barrier exactly zero, the identity is kept."""
    result = lmccheck.linear_connectivity(pair(3, 3), limit=0.0)
    assert result.passed
    assert result.value == 0.0
    assert result.witness.is_identity


def test_a_network_and_itself_have_no_barrier_in_float32() -> None:
    """Interpolation between equal numbers is exact, so float32 rounding makes no barrier either."""
    states = [{k: v.float() for k, v in state(network, 3).items()}] * 2
    result = lmccheck.linear_connectivity(lmccheck.load_pair(*states, model=network, data=DATA), limit=0.0)
    assert result.passed
    assert "a and b are identical" in result.details["notes"]


def test_a_fail_that_re_estimation_alone_causes_says_so() -> None:
    """With calibration data unlike the evaluation data the endpoints themselves move; alignment is not blamed."""
    a = state(with_batchnorm, 0)
    torch.manual_seed(2)
    inputs = torch.randn(40, 1, 4, 4)
    module = with_batchnorm()
    module.load_state_dict(a)
    labels = module.eval()(inputs.double()).argmax(1)
    pair = lmccheck.load_pair(a, a, model=with_batchnorm, data=(inputs, labels), calibration=(50 * inputs + 9, labels))
    result = lmccheck.linear_connectivity(pair, limit=1e-6)
    assert result.verdict == "fail"
    assert "re-estimating the BatchNorm of a and b alone exceeds the limit" in result.details["failure"][0]


def test_barrier_is_symmetric() -> None:
    """Unaligned, B to A is the same curve backwards."""
    there = lmccheck.linear_connectivity(pair(1, 2), align="none", profile="dev").details
    back = lmccheck.linear_connectivity(pair(2, 1), align="none", profile="dev").details
    assert there["barrier"] == pytest.approx(back["barrier"], abs=1e-12)
    assert there["losses"] == pytest.approx(back["losses"][::-1], abs=1e-12)


def test_barrier_is_invariant_under_a_joint_permutation() -> None:
    """Permuting both endpoints alike changes nothing."""
    p = pair(4, 5)
    spec = lmccheck.discover_symmetry(p.module, p.example_inputs())
    pi = spec.random(1)
    moved = lmccheck.load_pair(spec.apply(p.theta_a, pi), spec.apply(p.theta_b, pi), model=network, data=DATA)
    assert lmccheck.linear_connectivity(moved, align="none").value == pytest.approx(
        lmccheck.linear_connectivity(p, align="none").value, abs=1e-12
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_relations_between_the_definitions(seed: int) -> None:
    """excess ≤ barrier, and barrier is at least zero at the ends of a segment without BatchNorm."""
    details = lmccheck.linear_connectivity(pair(seed, seed + 7), align="none", points=7).details
    assert details["excess"] <= details["barrier"] + 1e-12
    assert details["barrier"] >= 0
    assert details["error_barrier"] is not None
    assert len(details["t"]) == len(details["losses"]) == len(details["errors"]) == len(details["naive_losses"])
    assert details["t"][0] == 0.0
    assert details["t"][-1] == 1.0


def test_the_grid_is_refined_around_the_worst_point() -> None:
    """Refinement adds points beside the worst t and never lowers the barrier."""
    coarse = lmccheck.linear_connectivity(pair(1, 2), align="none", points=5, profile="dev")
    fine = lmccheck.linear_connectivity(pair(1, 2), align="none", points=5, profile="thorough")
    assert len(coarse.details["t"]) == 5
    assert len(fine.details["t"]) > 5
    assert fine.value >= coarse.value


def test_refinement_goes_to_the_greatest_height_over_the_chord() -> None:
    """A chord from 10 to 0 with a bump at t = ¾: the losses are largest near 0, the points are added beside ¾."""

    def at(t: float) -> Point:
        return Point(t, 10 * (1 - t) + max(0.0, 1 - 4 * abs(t - 0.75)), None)

    found = sample(at, 5, 2, 10.0, 0.0)
    assert [point.t for point in found] == [0.0, 0.25, 0.5, 0.625, 0.6875, 0.75, 0.8125, 0.875, 1.0]


@given(ends=st.tuples(*[st.floats(-1e20, 1e20)] * 2), t=st.floats(0, 1))
def test_the_chord_is_exact_at_both_ends_and_between_equal_ones(ends: tuple[float, float], t: float) -> None:
    """Whatever the rounding between: no barrier is made where nothing is interpolated."""
    assert (chord(0.0, *ends), chord(1.0, *ends)) == ends
    assert chord(t, ends[0], ends[0]) == ends[0]
    assert barrier([(0.0, ends[0]), (1.0, ends[1])], *ends)[0] == 0.0


def test_a_chord_that_rounds() -> None:
    """1e16 + (1 − 1e16) is 2 or 0, not the 1 that stands at the end; nor is 0.1 + (0.3 − 0.1) what 0.3 is."""
    assert chord(1.0, 1e16, 1.0) == 1.0
    assert chord(1.0, 0.7, 0.1) == 0.1


def test_the_naive_errors_are_those_of_nothing_aligned() -> None:
    """B is A permuted: aligned the line is one point without any barrier; as given 0-1 errors are a plain loop's."""
    theta = {k: v if k.endswith("weight") else 0 * v for k, v in state(network, 10).items()}  # biases drown inputs
    spec = lmccheck.discover_symmetry(network(), (DATA[0][:2].double(),))
    labels = torch.func.functional_call(network(), theta, (DATA[0].double(),)).argmax(1)  # both ends make no error
    data = DATA[0], labels
    p = lmccheck.load_pair(theta, spec.apply(theta, spec.moving(3)), model=network, data=data)
    details = lmccheck.linear_connectivity(p, points=9, profile="dev").details

    def error(t: float) -> float:
        weights = {k: (1 - t) * theta[k] + t * p.theta_b[k] for k in theta}
        outputs = torch.func.functional_call(network(), weights, (DATA[0].double(),))
        return float((outputs.argmax(1) != labels).double().mean())

    errors = [error(t) for t in details["t"]]
    assert details["naive_errors"] == pytest.approx(errors, abs=1e-12)
    assert details["error_barrier_naive"] == pytest.approx(max(errors), abs=1e-12)
    assert details["error_barrier_naive"] > 0.05
    assert details["error_barrier"] == pytest.approx(0.0, abs=1e-12)
    assert details["errors"] == [0.0] * 9


def test_a_relative_limit_is_taken_of_the_worse_endpoint() -> None:
    """ "5%" of the larger endpoint loss, in the loss's own unit."""
    result = lmccheck.linear_connectivity(pair(1, 2), limit="5%")
    assert result.limit == pytest.approx(0.05 * max(result.details["loss_a"], result.details["loss_b"]))


def test_a_result_is_not_a_boolean() -> None:
    """Four verdicts are not two: bool(result) is refused, raise_for_verdict says what was measured."""
    result = lmccheck.Result("linear_connectivity", "fail", 0.2, 0.1, "nats")
    with pytest.raises(TypeError, match="passed"):
        bool(result)
    with pytest.raises(lmccheck.VerdictError, match=r"linear_connectivity: fail: measured 0.2 nats, limit 0.1 nats"):
        result.raise_for_verdict()
    lmccheck.Result("linear_connectivity", "pass", 0.0, 0.1, "nats").raise_for_verdict()


def test_the_barrier_over_re_estimated_ends_is_told_apart() -> None:
    """With BatchNorm both are reported: over the original endpoints (the verdict) and over the re-estimated ends."""
    a, b = state(with_batchnorm, 0), state(with_batchnorm, 1)
    torch.manual_seed(2)
    data = torch.randn(40, 1, 4, 4), torch.randint(0, 3, (40,))
    normalised = lmccheck.load_pair(a, b, model=with_batchnorm, data=data, calibration=(2 * data[0], data[1]))
    details = lmccheck.linear_connectivity(normalised, align="none", points=5).details
    losses, t = details["losses"], details["t"]
    over = max(v - (1 - x) * losses[0] - x * losses[-1] for x, v in zip(t, losses, strict=True))
    assert details["barrier_reestimated"] == pytest.approx(over, abs=1e-12)
    assert details["barrier_reestimated"] != pytest.approx(details["barrier"], abs=1e-6)
    assert "do so in the merged model" in details["notes"][0]
    assert lmccheck.linear_connectivity(pair(1, 2), points=5).details["barrier_reestimated"] is None


def test_the_functional_gap_bounds_the_loss() -> None:
    """T20: L(M_t) ≤ t·L_A + (1−t)·L_B + √2·E‖f(M_t) − [t·f_A + (1−t)·f_B]‖ for cross entropy, at every t."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (256,), generator=generator)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    states = [
        {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in net.state_dict().items()}
        for _ in range(2)
    ]
    pair = lmccheck.load_pair(*states, model=net, data=(x, y), device="cpu")
    result = lmccheck.linear_connectivity(pair, align="none", limit=100.0)
    outputs = [torch.func.functional_call(net, state, x) for state in states]
    ends = [result.details["loss_a"], result.details["loss_b"]]
    slack = []
    for t, loss in zip(result.details["t"], result.details["losses"], strict=True):
        merged = {n: (1 - t) * states[0][n] + t * states[1][n] for n in states[0]}
        mixed = (1 - t) * outputs[0] + t * outputs[1]
        gap = float((torch.func.functional_call(net, merged, x) - mixed).norm(dim=1).mean())
        bound = (1 - t) * ends[0] + t * ends[1] + 2**0.5 * gap
        assert loss <= bound + 1e-12
        slack.append(bound - loss)
    assert min(slack) >= 0
    assert max(slack) > 0.1
