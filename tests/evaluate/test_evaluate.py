"""Evaluation against independent oracles: plain PyTorch loops, torch's own BatchNorm update, closed forms."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from networks import Written
from networks.small import seeded, small_batchnorm, small_mlp
from torch import nn

import lmccheck
from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch, load_data
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.points import Line, interpolate
from lmccheck.modules.runner import Runner
from lmccheck.network.loss import load_loss, measured


def test_losses_and_errors_equal_a_plain_loop() -> None:
    """Mean loss and 0-1 error equal PyTorch's own on the whole data at once."""
    states = [seeded(small_mlp, k) for k in (0, 1)]
    inputs, targets = torch.randn(50, 4), torch.randint(0, 3, (50,))
    pair = lmccheck.load_pair(*states, model=small_mlp, data=(inputs, targets))
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    found = evaluator.measure(evaluator.weights(interpolate(*states, 0.3)), reestimate=True, label="")
    plain = small_mlp()
    plain.load_state_dict({k: 0.7 * states[0][k] + 0.3 * states[1][k] for k in states[0]})
    logits = plain(inputs)
    assert found.loss == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-7)
    assert found.error == pytest.approx((logits.argmax(1) != targets).double().mean().item(), abs=1e-12)
    assert evaluator.evaluations == 1


def test_the_users_module_is_never_touched() -> None:
    """Evaluating at other weights leaves the module's parameters, statistics and mode alone."""
    module = small_batchnorm().train()
    before = copy.deepcopy(module.state_dict())
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    data = torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    lmccheck.linear_connectivity(lmccheck.load_pair(*states, model=module, data=data, calibration=data), points=3)
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_statistics_of_one_batch_are_torchs_own() -> None:
    """On one batch re-estimation equals torch.optim.swa_utils.update_bn exactly."""
    inputs = torch.randn(32, 1, 4, 4)
    runner = Runner(small_batchnorm())
    reference = copy.deepcopy(runner.module)
    batchnorm.reestimate(runner, (Batch(inputs, torch.zeros(32)),))
    torch.optim.swa_utils.update_bn([inputs], reference)
    for name, value in reference.state_dict().items():
        assert torch.equal(runner.module.state_dict()[name], value), name
    assert not any(part.training for part in runner.module.modules())


def test_statistics_of_uneven_batches_are_averaged_by_sample() -> None:
    """The first layer's mean is the mean over all samples, however they were batched."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(3))
    inputs = torch.randn(10, 3) * 2 + 1
    runner = Runner(module)
    batchnorm.reestimate(runner, tuple(Batch(part, torch.zeros(len(part))) for part in inputs.split([7, 3])))
    assert torch.allclose(runner.module[0].running_mean, inputs.mean(0), atol=1e-6)
    expected = 0.7 * inputs[:7].var(0) + 0.3 * inputs[7:].var(0)
    assert torch.allclose(runner.module[0].running_var, expected, atol=1e-6)


def test_dropout_stays_off_while_statistics_are_taken() -> None:
    """Only BatchNorm layers are in training mode."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 3)
    runner = Runner(nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)))
    batchnorm.reestimate(runner, (Batch(inputs, torch.zeros(64)),))
    assert torch.allclose(runner.module[1].running_mean, inputs.mean(0), atol=1e-6)


def test_interpolation_is_exact_at_both_ends() -> None:
    """t = 0 and t = 1 return the endpoints bit for bit; integers come from the nearer end."""
    a, b = {"w": torch.randn(3), "n": torch.tensor(1)}, {"w": torch.randn(3), "n": torch.tensor(5)}
    assert interpolate(a, b, 0.0)["w"] is a["w"]
    assert interpolate(a, b, 1.0)["w"] is b["w"]
    assert int(interpolate(a, b, 0.4)["n"]) == 1
    assert int(interpolate(a, b, 0.6)["n"]) == 5


def test_a_line_holds_no_point_and_gives_each_in_its_dtype() -> None:
    """As ``interpolate`` of both ends in that dtype: 0.1 in float32 is another number in float64."""
    a = {"w": torch.tensor([0.1, -torch.inf]), "n": torch.tensor(1)}
    b = {"w": torch.tensor([0.7, -torch.inf], dtype=torch.float64), "n": torch.tensor(5)}
    line = Line(a, b, torch.float64, torch.device("cpu"))
    for t in (0.0, 0.3, 0.6, 1.0):
        expected = interpolate({"w": a["w"].double(), "n": a["n"]}, b, t)
        assert dict(line.at(t)).keys() == expected.keys()
        assert len(line.at(t)) == 2
        assert all(torch.equal(found, expected[name]) for name, found in line.at(t).items())
        assert line.at(t)["w"].dtype == torch.float64
    rounded = {"w": torch.tensor([0.1, -torch.inf], dtype=torch.float64), "n": b["n"]}
    assert torch.equal(*Line(a, rounded, torch.float32, torch.device("cpu")).ends("w"))
    assert not torch.equal(*Line(a, rounded, torch.float64, torch.device("cpu")).ends("w"))


def test_half_precision_is_evaluated_in_float32() -> None:
    """bf16 checkpoints are upcast, the result says so."""
    states = [{k: v.bfloat16() for k, v in seeded(small_mlp, s).items()} for s in (0, 1)]
    data = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
    result = lmccheck.linear_connectivity(lmccheck.load_pair(*states, model=small_mlp, data=data), points=3)
    assert result.details["precision"] == "float32"
    assert any("bfloat16" in note for note in result.details["notes"])


def test_float64_networks_run_in_float64_throughout() -> None:
    """A norm written 'in float32' does not cut a float64 run down to float32 noise."""
    from networks import RMSNorm

    runner = Runner(RMSNorm(4), dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (runner(x, "") - expected).abs().max() < 1e-14


def one_number(x: torch.Tensor, y: torch.Tensor, a: float, b: float, loss: object = "mse") -> lmccheck.ModelPair:
    """y = a·x and y = b·x; each in float64 only where that is needed to hold its number."""
    dtypes = [torch.float32 if float(torch.tensor(number)) == number else torch.float64 for number in (a, b)]
    states = [{"weight": torch.tensor([[number]], dtype=d)} for number, d in zip((a, b), dtypes, strict=True)]
    return lmccheck.load_pair(*states, model=nn.Linear(1, 1, bias=False), data=(x, y), loss=loss, device="cpu")


def as_they_are(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss of a user's own, in float32: the outputs themselves."""
    return outputs[:, 0]


def test_means_are_taken_in_float64() -> None:
    """Of 2²⁴ and 1 in turn the mean is 2²³ + ½, which no float32 is; nor is a half the sum of 2²⁴ + 1 and 0."""
    x = torch.tensor([2.0**24, 1.0] * 500)[:, None]
    pair = one_number(x, torch.zeros(1000), 1.0, 1.0, as_they_are)
    evaluator = Evaluator(pair.network, pair.theta_a)
    assert evaluator.dtype == torch.float32
    found = evaluator.measure(evaluator.weights(pair.theta_a), reestimate=False, label="")
    assert found.losses.dtype == torch.float64
    assert found.loss == 2**23 + 0.5


def test_built_in_losses_are_taken_in_float64() -> None:
    """4097² is odd and above 2²⁴; −log softmax of logits 0 and −17 is e⁻¹⁷ and no zero."""
    squared = load_loss("mse").function(torch.tensor([[4097.0]]), torch.tensor([[0.0]]))
    assert float(squared) == 4097**2
    entropy = load_loss("cross_entropy").function(torch.tensor([[0.0, -17.0]]), torch.tensor([0]))
    assert float(entropy) == pytest.approx(math.log1p(math.exp(-17)), rel=1e-9)


@pytest.mark.parametrize("wide", ["a", "b"])
def test_either_endpoint_may_need_float64(wide: str) -> None:
    """y = (1 + 2⁻⁴⁰)·x at targets x costs 2⁻⁸⁰·E[x²], half-way a quarter: in float32 all would be 0."""
    x = torch.tensor([[1.0], [2.0], [4.0]])
    numbers = (1 + 2.0**-40, 1.0) if wide == "a" else (1.0, 1 + 2.0**-40)
    result = lmccheck.linear_connectivity(one_number(x, x, *numbers), align="none", points=3, profile="dev")
    assert result.details["precision"] == "float64"
    assert result.details[f"loss_{wide}"] == pytest.approx(2.0**-80 * 7, rel=1e-9)
    assert result.details["losses"][1] == pytest.approx(2.0**-82 * 7, rel=1e-9)


CALLS = count()


class Growing(nn.Module):
    """A linear layer whose outputs grow by a share of themselves with every call, whoever calls."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.layer, self.share = nn.Linear(4, 3), share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, multiplied."""
        return self.layer(x) * (1 + self.share * (next(CALLS) % 100))


@pytest.mark.parametrize(("share", "refused"), [(1e-3, True), (1e-6, False)])
def test_how_much_two_runs_may_differ(share: float, refused: bool) -> None:
    """A ten-thousandth is what a GPU's order of summation may change; thousandths are another answer."""
    data = 100 + torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)
    state = {"layer.weight": torch.full((3, 4), 0.1), "layer.bias": torch.tensor([1.0, 2.0, 3.0])}
    pair = lmccheck.load_pair(state, state, model=Growing(0.0), data=data, device="cpu")
    network = dataclasses.replace(pair.network, module=Growing(share))  # which loading would refuse first
    with pytest.raises(UnsupportedArchitecture, match="outputs") if refused else contextlib.nullcontext():
        Evaluator(network, pair.theta_a)


def test_batches_cover_all_samples_once() -> None:
    """Batches that lmccheck makes itself are near-equal and lose nothing."""
    data = load_data((torch.arange(10_001.0).unsqueeze(1), torch.arange(10_001)))
    batches = rebatched(data)
    assert torch.equal(torch.cat([b.targets for b in batches]), torch.arange(10_001))
    assert max(b.samples for b in batches) - min(b.samples for b in batches) <= 1


def test_batches_of_the_users_own_are_kept() -> None:
    """An iterable of batches is evaluated batch by batch as given."""
    data = load_data([(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(5, 2), torch.zeros(5))])
    assert [b.samples for b in rebatched(data)] == [3, 5]


def test_next_token_loss_by_hand() -> None:
    """Logits at t are held against token t+1; −100 does not count."""
    logits, targets = torch.randn(2, 4, 5), torch.tensor([[1, 2, 3, 4], [0, 1, -100, 2]])
    values, wrong = measured(load_loss("next_token"), logits, targets, "data")
    log = logits.double().log_softmax(-1)
    first = -(log[0, 0, 2] + log[0, 1, 3] + log[0, 2, 4]) / 3
    second = -(log[1, 0, 1] + log[1, 2, 2]) / 2
    assert torch.allclose(values, torch.stack([first, second]), atol=1e-6)
    assert wrong is not None
    assert wrong[0] == sum(int(logits[0, t].argmax() != targets[0, t + 1]) for t in range(3)) / 3


def test_mse_by_hand() -> None:
    """The mean over a sample's outputs."""
    values, wrong = measured(
        load_loss("mse"), torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]]), "data"
    )
    assert values.tolist() == [2.5, 5.0]
    assert wrong is None


def test_a_midpoint_that_overflows_fails_and_says_inf() -> None:
    """Networks whose midpoint is NaN are not connected; they are not an error of the endpoints."""
    root = Written(lambda s, x: x * torch.sqrt(s.w.abs() - 1), w=nn.Parameter(torch.zeros(1)))
    ends = {"w": torch.tensor([2.0])}, {"w": torch.tensor([-2.0])}
    data = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    result = lmccheck.linear_connectivity(lmccheck.load_pair(*ends, model=root, data=data), align="none", points=5)
    assert result.verdict == "fail"
    assert math.isinf(result.value)


class GivesItsWeights(nn.Module):
    """Returns, beside what it computes, a parameter itself: six numbers, one per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 6)
        self.own = nn.Parameter(torch.arange(6.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.other(self.one(x).relu()), "own": self.own}


def test_losses_that_are_a_network_s_very_weights_stay_what_they_were() -> None:
    """In float64 nothing is converted on the way, and yet they are copied, whatever is loaded next."""
    torch.manual_seed(0)
    module = GivesItsWeights().double()
    data = [(torch.randn(6, 3), torch.zeros(6))]
    single = lmccheck.load_model(module.state_dict(), model=module, data=data, loss=lambda out, y: out["own"])
    evaluator = Evaluator(single.network, single.theta)
    weights = dict(single.theta)
    first = evaluator.measure(weights, reestimate=False, label="")
    second = evaluator.measure({**weights, "own": weights["own"] + 1}, reestimate=False, label="")
    evaluator.rest()
    assert first.losses.tolist() == list(range(6))
    assert second.losses.tolist() == list(range(1, 7))
