"""Points of a line: which are measured, where the barrier is said to be, and what lies at them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from networks.dropping import case
from networks.small import seeded, small_batchnorm, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.data.load import Batch
from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.line import Point, barrier, sample
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
from lmccheck.evaluate.points import interpolate, working_dtype
from lmccheck.evaluate.repair import UnitMoments
from lmccheck.modules.runner import Runner


def measured_at(peak: float, points: int, rounds: int) -> list[float]:
    """Return the t at which a tent with its tip at ``peak`` is measured."""
    return [point.t for point in sample(lambda t: Point(t, -abs(t - peak), None), points, rounds, -1.0, -1.0)]


def test_every_round_halves_the_cells_beside_the_worst_point() -> None:
    """Both neighbours of the worst t, at half the distance of the round before; nothing outside of [0, 1]."""
    assert measured_at(0.5, 3, 0) == [0.0, 0.5, 1.0]
    assert measured_at(0.5, 3, 1) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert measured_at(0.5, 3, 2) == [0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0]
    assert measured_at(0.0, 3, 2) == [0.0, 0.125, 0.25, 0.5, 1.0]
    assert measured_at(0.3, 5, 1) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]


def test_of_equal_heights_the_first_is_named() -> None:
    """A curve that is its own chord has its barrier, 0, at t = 0; NaN is higher than any number."""
    assert barrier([(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)], 1.0, 3.0) == (0.0, 0.0)
    assert barrier([(0.0, 1.0), (0.25, math.nan), (0.5, 9.0), (1.0, 1.0)], 1.0, 1.0) == (math.inf, 0.25)


def test_integers_half_way_are_those_of_b() -> None:
    """Up to the middle they are a's, from there on b's."""
    a, b = {"n": torch.tensor(1)}, {"n": torch.tensor(5)}
    assert [int(interpolate(a, b, t)["n"]) for t in (0.0, 0.25, 0.499, 0.5, 0.75, 1.0)] == [1, 1, 1, 5, 5, 5]


def test_one_float64_tensor_at_either_end_makes_float64_of_all() -> None:
    """Wherever it is; half precision and integers make float32."""
    narrow, wide = (
        {"w": torch.zeros(1), "v": torch.zeros(1).half()},
        {"w": torch.zeros(1), "v": torch.zeros(1).double()},
    )
    assert working_dtype(wide, narrow) == working_dtype(narrow, wide) == working_dtype(wide) == torch.float64
    assert working_dtype(narrow, narrow) == working_dtype({"n": torch.tensor(1)}) == torch.float32


def test_a_pass_over_the_data_counts_once_however_many_batches_it_has() -> None:
    """Two points on three batches are two evaluations."""
    batches = [(torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)) for n in (3, 2, 4)]
    pair = lmccheck.load_pair(*(seeded(small_mlp, k) for k in (0, 1)), model=small_mlp, data=batches, device="cpu")
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    for theta in (pair.theta_a, pair.theta_b):
        assert len(evaluator.measure(evaluator.weights(theta), reestimate=False, label="").losses) == 9
    assert evaluator.evaluations == 2


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_endpoint_whose_loss_is_not_finite_is_named_with_its_sample(number: float) -> None:
    """The loss, the sample and how many there are; a loss between the endpoints may be anything."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets > 1, number, 1.0)

    data = torch.randn(4, 4), torch.tensor([0, 1, 2, 2])
    states = [seeded(small_mlp, k) for k in (0, 1)]
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data, loss=loss, device="cpu")
    with pytest.raises(SourceError, match=rf"is {number} at sample 2 \(2 of 4 samples\), expected finite losses"):
        lmccheck.linear_connectivity(pair)


def test_re_estimation_leaves_a_batchnorm_as_it_was() -> None:
    """Its momentum is put back, and it is in evaluation mode again, also where the network cannot run."""
    runner = Runner(nn.Sequential(nn.BatchNorm1d(3, momentum=0.37)))
    layer = runner.module[0]
    batchnorm.reestimate(runner, (Batch(torch.randn(8, 3), torch.zeros(8)),))
    assert (layer.momentum, layer.training) == (0.37, False)
    with pytest.raises(SourceError):
        batchnorm.reestimate(runner, (Batch(torch.randn(8, 5), torch.zeros(8)),))
    assert (layer.momentum, layer.training) == (0.37, False)


def test_running_statistics_are_no_buffers_that_are_interpolated() -> None:
    """They are replaced; a float buffer of the user's own is interpolated, and named."""
    module = small_batchnorm()
    assert batchnorm.other_statistics(module) == []
    module.register_buffer("scale", torch.ones(2))
    module.register_buffer("count", torch.ones(2, dtype=torch.int64))
    assert batchnorm.other_statistics(module) == ["scale"]


def test_functions_are_compared_by_the_largest_change_over_the_size() -> None:
    """max |after − before| / (1 + max |before|); what is no number is infinitely far."""
    before, after = [torch.tensor([3.0, -1.0])], [torch.tensor([3.0, -2.0])]
    assert relative_deviation(before, after) == 1 / 4
    assert relative_deviation(before, [torch.tensor([3.0, math.nan])]) == math.inf
    assert relative_deviation([torch.tensor([0.0]), *before], [torch.tensor([0.5]), *after]) == 0.5
    assert relative_deviation([], []) == 0.0
    ruled_out, infinite = torch.tensor([3.0, -math.inf]), torch.tensor([3.0, math.inf])
    assert relative_deviation([ruled_out], [torch.tensor([2.0, -math.inf])]) == 1 / 4
    assert relative_deviation([ruled_out], [torch.tensor([3.0, -2.0])]) == math.inf
    assert relative_deviation([torch.tensor([3.0, -2.0])], [ruled_out]) == math.inf
    assert relative_deviation([infinite], [infinite]) == math.inf


def test_first_outputs_are_float64_and_stay_when_other_weights_are_run() -> None:
    """Also where a network hands out its own weights; the first samples alone are run."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> tuple[Tensor, nn.Parameter]:
            return x * self.w, self.w

    data = torch.randn(10, 3), torch.zeros(10, 3)
    ends = {"w": torch.tensor([0.1, 1.0, 2.0])}, {"w": torch.tensor([5.0, 6.0, 7.0])}
    pair = lmccheck.load_pair(*ends, model=Bare, data=data, loss="mse", device="cpu")
    outputs = FirstOutputs(pair.network, "tests", 4)
    first = outputs(ends[0])
    outputs(ends[1])
    assert first[1].tolist() == ends[0]["w"].double().tolist()
    assert first[0].dtype == torch.float64
    assert torch.equal(first[0], data[0].double()[: len(first[0])] * ends[0]["w"].double())


@pytest.mark.parametrize("parts", [[7], [1, 6], [3, 0, 4], [2, 2, 3]])
def test_moments_of_units_are_those_of_all_samples_however_they_came(parts: list[int]) -> None:
    """Mean and population deviation; of large means, of small deviations, and exactly 0 where nothing varies."""
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values * torch.tensor([1.0, 1e-3, 5.0, 1e-2, 0.0]) + torch.tensor([0.0, 1.0, 1000.0, -1.0, 3.0])
    moments = UnitMoments()
    for part in values.split(parts):
        alone = moments.add(part)
        assert alone.count == len(part)
    assert torch.allclose(moments.mean, values.mean(0), rtol=1e-12)
    assert torch.allclose(moments.deviation, values.var(0, correction=0).sqrt(), rtol=1e-9)
    assert float(moments.deviation[4]) == 0.0


def losses_of(pair: lmccheck.ModelPair, weights: dict[str, Tensor]) -> Tensor:
    """Return per-sample losses on the evaluation data by the module itself."""
    pair.module.load_state_dict(weights)
    (batch,) = pair.data.batches
    return nn.functional.cross_entropy(pair.module.eval()(batch.inputs), batch.targets, reduction="none").detach()


def test_multipliers_are_counted_one_by_one() -> None:
    """Three lines are three passes, whether they run together or not, and each has its own losses."""
    pair, structure = case("relu")
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    lines = {"2.weight": torch.tensor([[1.0] * 9, [0.0] * 9, [0.5] * 9], dtype=torch.float64)}
    together = runs.losses(lines)
    assert runs.evaluations == 3
    for k in range(3):
        changed = {**pair.theta_a, "2.weight": pair.theta_a["2.weight"] * lines["2.weight"][k]}
        assert torch.allclose(together[k], losses_of(pair, changed), atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "deaf"])
def test_the_probe_refuses_by_itself_what_loading_refuses(kind: str) -> None:
    """An evaluator may be made of a network that no checkpoint was loaded into."""

    class Wrapped(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(1) if kind == "random" else 2.0 * x

    data = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    pair = lmccheck.load_pair(*(seeded(small_mlp, k) for k in (0, 1)), model=small_mlp, data=data, device="cpu")
    said = "two outputs for the same weights" if kind == "random" else "does not change with its weights"
    with pytest.raises(UnsupportedArchitecture, match=said):
        Evaluator(dataclasses.replace(pair.network, module=Wrapped(*small_mlp())), pair.theta_a)
