"""Fails that are settled early: a line, path or merge that is too high by far is told so after a few samples."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.small import perceptron
from torch import Tensor, nn

import lmccheck
from lmccheck.data.load import Batch, Data
from lmccheck.errors import LmcError, SourceError, WitnessError
from lmccheck.paths.path import Path, Segment

COUNT = 4000


class Product(nn.Module):
    """Answers u·v·x: θ and −θ are one function, and half way between them lies 0."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.u(x))


def data(noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """x of both signs, and x with noise on it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 1, generator=generator)
    return x, x + noise * torch.randn(COUNT, 1, generator=generator)


def pair(noise: float = 0.5, **more: Any) -> lmccheck.ModelPair:
    """θ and −θ, of which both answer x: at t the answer is (1 − 2t)²·x."""
    ends = [{"u.weight": torch.tensor([[s]]), "v.weight": torch.tensor([[s]])} for s in (1.0, -1.0)]
    settings = {"model": Product, "data": data(noise), "loss": "mse", "device": "cpu", **more}
    return lmccheck.load_pair(*ends, **settings)


def height(t: float, noise: float = 0.5) -> float:
    """The line's height over the chord, from the formula."""
    x, y = (each.double() for each in data(noise))
    return float(((1 - 2 * t) ** 2 * x - y).square().mean() - (x - y).square().mean())


def test_a_high_line_fails_after_a_few_samples() -> None:
    """The value is an estimate near the true height, which its interval holds; what was not measured is said."""
    found = lmccheck.linear_connectivity(pair(), align="none", limit=0.1, early_fail=1e-6)
    early = found.details["early"]
    assert found.verdict == "fail"
    assert found.value == pytest.approx(height(0.5), rel=0.5)
    assert found.interval is not None
    assert 0.1 < found.interval[0] < height(0.5) < found.interval[1] == math.inf
    assert (early["error"], early["of"], early["tried"], found.details["worst_t"]) == (1e-6, COUNT, 7, 0.5)
    assert 0 < early["after"] <= early["drawn"] <= early["samples_drawn"] <= 0.05 * 23 * COUNT
    known = f"settled after {early['after']} of 4,000 samples (a wrong fail is less likely than 1 in a million)"
    assert found.details["known"] == known
    text = "\n".join(found.lines)
    assert f"{known}; not measured: the other points, the curve" in text
    assert f"an estimate from the {early['drawn']} samples drawn, " in text
    assert found.details["worst_loss"] == pytest.approx(found.value + found.details["loss_a"])
    assert "losses" not in found.details
    assert found.evaluations == 3  # both ends, and less than one pass


@pytest.mark.parametrize("limit", [0.96, 1.0])
def test_a_line_that_is_close_to_the_limit_is_measured_as_without(limit: float) -> None:
    """Height 0.97 here: verdict, value, curve and notes are those of the whole measurement."""
    assert height(0.5) == pytest.approx(0.97, abs=0.01)
    whole = lmccheck.linear_connectivity(pair(), align="none", points=5, limit=limit)
    early = lmccheck.linear_connectivity(pair(), align="none", points=5, limit=limit, early_fail=1e-6)
    assert (early.verdict, early.value) == (whole.verdict, whole.value)
    assert (early.details["losses"], early.details["known"]) == (whole.details["losses"], whole.details["known"])
    assert early.interval is None
    assert "early" not in early.details


def test_by_default_nothing_is_settled_early() -> None:
    found = lmccheck.linear_connectivity(pair(), align="none", limit=0.1)
    assert "early" not in found.details
    assert found.value == pytest.approx(height(0.5), rel=1e-5)


def test_a_part_of_the_samples_fails_early() -> None:
    """One site of ten is far from 0; over all samples the line is low enough."""
    x, _ = data()
    far = torch.arange(COUNT) % 10 == 0
    x = torch.where(far[:, None], 3.0, 0.1) * x.sign()
    sites = tuple("far" if one else "near" for one in far.tolist())
    given = Data((Batch(x, x),), "data", True, columns={"site": sites})
    whole = lmccheck.linear_connectivity(pair(data=given), align="none", limit=1.0, early_fail=1e-6)
    assert whole.verdict == "pass"
    found = lmccheck.linear_connectivity(pair(data=given), align="none", limit=1.0, by="site", early_fail=1e-6)
    assert (found.verdict, found.details["worst_data"], found.details["early"]["of"]) == ("fail", "site far", 400)
    assert found.value == pytest.approx(9.0)
    assert "on site far, the part that is settled first; others may be worse" in found.details["failure"][1]


@pytest.mark.parametrize("wrong", [True, 0, 0.5, -1e-6, "1e-6"])
def test_an_error_rate_is_a_small_number(wrong: Any) -> None:
    with pytest.raises(LmcError, match=r"early_fail = .*expected false, or how likely a wrong fail may be"):
        lmccheck.linear_connectivity(pair(), early_fail=wrong)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(1)


def test_a_loss_of_the_users_own_must_say_that_it_is_never_negative() -> None:
    """It is refused without the attribute, or with another bound; with it the fail is settled."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return squared(output, target)

    settings: dict[str, Any] = {"align": "none", "limit": 0.1, "early_fail": 1e-6}
    with pytest.raises(SourceError, match=r"early_fail: the loss '.*loss' does not say that it is never negative"):
        lmccheck.linear_connectivity(pair(loss=loss), **settings)
    loss.lower = -1  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="says lower = -1, expected its attribute lower = 0"):
        lmccheck.linear_connectivity(pair(loss=loss), **settings)
    loss.lower = 0  # type: ignore[attr-defined]
    assert "early" in lmccheck.linear_connectivity(pair(loss=loss), **settings).details


def test_a_negative_value_of_a_loss_that_says_it_has_none_is_an_error() -> None:
    """Whether an endpoint shows it or the line does."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return squared(output, target) - below

    loss.lower = 0  # type: ignore[attr-defined]
    below = 0.5
    with pytest.raises(SourceError, match=r"at an endpoint, expected none below 0, as its attribute lower = 0 says"):
        lmccheck.linear_connectivity(pair(loss=loss), align="none", limit=0.1, early_fail=1e-6)

    def other(output: Tensor, target: Tensor) -> Tensor:
        return squared(output, target) - 1e-3 * (output.abs().sum(1) < 1e-6)

    other.lower = 0  # type: ignore[attr-defined]
    x = torch.ones(200, 1)
    x[::7] = 0.01
    with pytest.raises(SourceError, match=r"-0\.0009 at t = 0\.5, expected none below 0"):
        lmccheck.linear_connectivity(pair(loss=other, data=(x, x)), align="none", limit=0.1, early_fail=1e-6)


CLASSES = torch.arange(3).repeat(700)
INPUTS = torch.eye(3).repeat(700, 1)


def linear(weight: Tensor) -> dict[str, Tensor]:
    return {"weight": weight, "bias": torch.zeros(len(weight))}


SURE = linear(4 * torch.eye(3))  # of every class
BLIND = linear(4 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))  # takes class 2 for class 1


def merge(made: dict[str, Tensor], **more: Any) -> Any:
    """A merge of two parents that are sure, whatever the recipe makes of them."""
    parents = {"x": SURE, "y": linear(3 * torch.eye(3))}
    settings = {"model": lambda: nn.Linear(3, 3), "data": (INPUTS, CLASSES), "device": "cpu", **more}
    return lmccheck.load_merge(parents, {"call": lambda given: made}, **settings)


METRICS = [("loss", 0.2), ("error", 5.0), ("accuracy", 5.0), ("loss", "50%"), ("error", "50%")]


@pytest.mark.parametrize(("metric", "limit"), METRICS)
def test_a_ruined_merge_fails_early_by_any_mean(metric: str, limit: Any) -> None:
    """The interval holds what the whole measurement reads, and the verdict is the same."""
    whole = lmccheck.merged_loss(merge(BLIND), metric=metric, limit=limit)
    found = lmccheck.merged_loss(merge(BLIND), metric=metric, limit=limit, early_fail=1e-6)
    early = found.details["early"]
    assert whole.verdict == "fail"
    assert (found.verdict, found.limit, found.unit) == (whole.verdict, whole.limit, whole.unit)
    assert early["drawn"] <= early["samples_drawn"] <= 0.1 * 3 * 2100
    assert found.interval is not None
    assert found.limit <= found.interval[0] <= whole.value <= found.interval[1]
    assert math.isinf(found.interval[1]) == (metric == "loss")
    assert found.details["reference"] == whole.details["reference"] == "x"
    assert found.details["worst_loss"] == pytest.approx(whole.details["worst_loss"], rel=0.5)
    assert "not measured: the merge on all samples" in "\n".join(found.lines)


@pytest.mark.parametrize("metric", ["loss", "error", "accuracy"])
def test_a_good_merge_passes_as_it_does_without(metric: str) -> None:
    """Nothing passes early: the value is exact."""
    whole = lmccheck.merged_loss(merge(SURE), metric=metric, limit=0.1)
    found = lmccheck.merged_loss(merge(SURE), metric=metric, limit=0.1, early_fail=1e-6)
    assert (found.verdict, found.value, found.details["known"]) == ("pass", whole.value, "exact")


def test_a_class_that_is_lost_fails_early_by_class() -> None:
    found = lmccheck.merged_loss(merge(BLIND), metric="error", by="class", limit=5.0, early_fail=1e-6)
    assert (found.verdict, found.details["worst_data"], found.details["early"]["of"]) == ("fail", "class 2", 700)
    assert found.value == 100.0


def test_a_metric_that_is_no_mean_of_what_is_never_negative_is_refused() -> None:
    def margin(model: nn.Module, batches: Any) -> Tensor:
        return torch.cat([model(inputs).max(1).values for inputs, _ in batches])

    with pytest.raises(LmcError, match=r"early_fail with metric .*margin.*expected one of loss, token-loss"):
        lmccheck.merged_loss(merge(BLIND), metric=margin, limit=0.1, early_fail=1e-6)


def permuted_pair() -> lmccheck.ModelPair:
    """A perceptron and itself with its hidden units in another order, on data that it labels."""
    torch.manual_seed(0)
    a = {name: 3 * tensor.clone() for name, tensor in perceptron(6, 12, 12, 3).state_dict().items()}
    b, names = dict(a), [name for name in a if name.endswith("weight")]
    for first, second in pairwise(names):
        order = torch.randperm(12)
        bias = first.replace("weight", "bias")
        b |= {first: b[first][order], bias: b[bias][order], second: b[second][:, order]}
    x = torch.randn(1500, 6)
    y = torch.func.functional_call(perceptron(6, 12, 12, 3), a, (x,)).argmax(1)
    return lmccheck.load_pair(a, b, model=perceptron(6, 12, 12, 3), data=(x, y), calibration=(x[:64], y[:64]))


@pytest.fixture(scope="module")
def paths() -> tuple[Any, Any, Any]:
    """A pair, the path between its networks as it is measured without, and with early_fail."""
    two = permuted_pair()
    settings: dict[str, Any] = {"keep": 0.25, "refit": False, "certify": "never", "epsilon": 0.02}
    return two, lmccheck.ten_segment_path(two, **settings), lmccheck.ten_segment_path(two, **settings, early_fail=1e-6)


def test_a_high_path_fails_early(paths: tuple[Any, Any, Any]) -> None:
    """Its excess at a spot is at most that of the path; the interval holds the spot's own, measured by hand."""
    two, whole, found = paths
    early = found.details["early"]
    assert (whole.verdict, found.verdict, found.limit) == ("fail", "fail", whole.limit)
    assert early["samples_drawn"] <= 0.1 * whole.evaluations * 1500
    assert found.evaluations < 0.1 * whole.evaluations
    number, place = int(found.details["worst_segment"][:-1]) - 1, "\n".join(found.lines)
    s = 1.0 if f"segment {number + 1} at 1" in place else 0.5
    module, batch = perceptron(6, 12, 12, 3).double(), two.data.batches[0]
    x, y = batch.inputs.double(), batch.targets
    loss = F.cross_entropy(torch.func.functional_call(module, found.witness.between(number, s), (x,)), y)
    true = float(loss) - max(found.details["loss_a"], found.details["loss_b"])
    assert found.limit < found.interval[0] < true <= whole.value + 1e-9
    assert "not measured: the rest of the path" in place


def test_a_saved_path_fails_early_where_it_is_verified(paths: tuple[Any, Any, Any]) -> None:
    """By the same seed on the same samples: the same estimate. A path that claims what is not so stays an error."""
    two, _, found = paths
    again = lmccheck.verify_path(two, found.witness, early_fail=1e-6)
    assert (again.verdict, again.value, again.details["early"]) == ("fail", found.value, found.details["early"])
    segments = list(found.witness.segments)
    segments[0] = replace(segments[0], kind="a")
    with pytest.raises(WitnessError):
        lmccheck.verify_path(two, replace(found.witness, segments=tuple(segments)), early_fail=1e-6)


def test_a_path_that_is_low_is_certified_as_without(paths: tuple[Any, Any, Any]) -> None:
    two, whole, _ = paths
    found = lmccheck.verify_path(two, whole.witness, epsilon=50.0, certify="never", early_fail=1e-6)
    assert (found.verdict, found.value) == ("pass", pytest.approx(whole.value, rel=1e-9))
    assert "early" not in found.details


def test_a_chain_fails_early_at_a_bend() -> None:
    """From θ by way of 0 to −θ: at the bend the answer is 0, and the excess E[y²] − E[(x − y)²]."""
    two = pair()
    bend = {name: torch.zeros_like(tensor) for name, tensor in two.theta_a.items()}
    tied = {name: name for name in bend}
    chain = Path((dict(two.theta_a), bend, dict(two.theta_b)), (Segment("l", ""), Segment("l", "")), tied)
    found = lmccheck.verify_path(two, chain, epsilon=0.1, early_fail=1e-6)
    assert (found.verdict, found.details["worst_segment"], found.details["kinds"]) == ("fail", "1l", "ll")
    assert found.value == pytest.approx(height(0.5), rel=0.5)
    assert found.interval is not None
    assert 0.1 < found.interval[0] < height(0.5)
    noisy = pair(noise=2.0)  # endpoints lose 4
    assert lmccheck.verify_path(noisy, chain, epsilon=1.5, early_fail=1e-6).passed
