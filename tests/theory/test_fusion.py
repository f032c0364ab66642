"""Soft transport between widths: exact where units are permuted, split or merged with their like; honest elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Attention, Residual
from safetensors.torch import load_file, save_file
from scipy.optimize import linprog
from torch import Tensor, nn

import lmccheck
from lmccheck.evaluate.line import chord
from lmccheck.fusion.carrier import Carrier
from lmccheck.fusion.recursion import transport_plan
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of

FIXTURES = Path(__file__).parents[2] / "fixtures"
NORMS = ("activations", "weights")
Weights = dict[str, Tensor]


def mlp(scale: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5 * scale), nn.ReLU(), nn.Linear(5 * scale, 7 * scale), nn.Tanh(), nn.Linear(7 * scale, 4)
    )


def convolutions(scale: int = 1) -> nn.Module:
    """Flattened channels, read by a hidden linear layer."""
    first = [nn.Conv2d(3, 4 * scale, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(4 * scale, 3 * scale, 2), nn.GELU(), nn.Flatten(), nn.Linear(12 * scale, 5 * scale)]
    return nn.Sequential(*first, *second, nn.ReLU(), nn.Linear(5 * scale, 2))


def batchnorm(scale: int = 1) -> nn.Module:
    first = [nn.Conv2d(3, 4 * scale, 3, bias=False), nn.BatchNorm2d(4 * scale), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(4 * scale, 3 * scale, 3), nn.BatchNorm2d(3 * scale), nn.Flatten(),
                         nn.Linear(12 * scale, 2))  # fmt: skip


def residual(scale: int = 1) -> nn.Module:
    """A stream that two blocks read, through a norm, and write."""

    def block() -> nn.Module:
        return Residual(
            nn.Sequential(
                nn.LayerNorm(4 * scale), nn.Linear(4 * scale, 5 * scale), nn.GELU(), nn.Linear(5 * scale, 4 * scale)
            )
        )

    return nn.Sequential(nn.Linear(6, 4 * scale), block(), block(), nn.Linear(4 * scale, 3))


def transformer(scale: int = 1) -> nn.Module:
    """Two heads of four, whatever the width of the stream."""

    class Heads(Attention):
        def __init__(self, width: int) -> None:
            super().__init__(8, 2, "separate")
            self.q, self.k, self.v = nn.Linear(width, 8), nn.Linear(width, 8, bias=False), nn.Linear(width, 8)
            self.out = nn.Linear(8, width)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q, k, v = (part(x).view(n, t, 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(n, t, 8))

    width = 4 * scale
    return nn.Sequential(
        nn.Linear(6, width), Residual(nn.Sequential(nn.LayerNorm(width), Heads(width))), nn.Linear(width, 3)
    )


IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
VECTORS = torch.randn(64, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
SEQUENCES = torch.randn(48, 5, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
BUILD: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
    "mlp": (mlp, VECTORS),
    "convolutions": (convolutions, IMAGES),
    "batchnorm": (batchnorm, IMAGES),
    "residual": (residual, VECTORS),
    "transformer": (transformer, SEQUENCES),
}
# which units a dimension of a tensor holds, written by hand; − where it holds their outgoing weights
AXES: dict[str, dict[str, str]] = {
    "mlp": {"0.weight": "0:p", "0.bias": "0:p", "2.weight": "0:q 1:-p", "2.bias": "0:q", "4.weight": "1:-q"},
    "convolutions": {
        "0.weight": "0:p", "0.bias": "0:p", "3.weight": "0:q 1:-p", "3.bias": "0:q",
        "6.weight": "0:r 1:-q", "6.bias": "0:r", "8.weight": "1:-r",
    },
    "batchnorm": {
        "0.weight": "0:p", **{f"1.{name}": "0:p" for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": "0:q 1:-p", "3.bias": "0:q",
        **{f"4.{name}": "0:q" for name in ("weight", "bias", "running_mean", "running_var")}, "6.weight": "1:-q",
    },
    "residual": {
        "0.weight": "0:s", "0.bias": "0:s", "3.weight": "1:-s",
        **{f"{k}.body.0.{name}": "0:s" for k in (1, 2) for name in ("weight", "bias")},
        **{f"{k}.body.1.weight": f"0:h{k} 1:-s" for k in (1, 2)}, **{f"{k}.body.1.bias": f"0:h{k}" for k in (1, 2)},
        **{f"{k}.body.3.weight": f"0:s 1:-h{k}" for k in (1, 2)}, **{f"{k}.body.3.bias": "0:s" for k in (1, 2)},
    },
    "transformer": {
        "0.weight": "0:s", "0.bias": "0:s", "2.weight": "1:-s", "1.body.0.weight": "0:s", "1.body.0.bias": "0:s",
        **{f"1.body.1.{name}.weight": "1:-s" for name in "qkv"}, "1.body.1.out.weight": "0:s",
        "1.body.1.out.bias": "0:s",
    },
}  # fmt: skip
SIZES = {
    "mlp": {"p": 5, "q": 7},
    "convolutions": {"p": 4, "q": 3, "r": 5},
    "batchnorm": {"p": 4, "q": 3},
    "residual": {"s": 4, "h1": 5, "h2": 5},
    "transformer": {"s": 4},
}


def narrow(name: str, seed: int = 1) -> Weights:
    """Random float64 weights of the network as it is."""
    torch.manual_seed(seed)
    return randomised(BUILD[name][0](1), seed)


def copied(name: str, weights: Weights, times: int, seed: int = 3) -> Weights:
    """Return the network in which every hidden unit occurs ``times``, its outgoing weights shared, in random order."""
    generator = torch.Generator().manual_seed(seed)
    maps = {
        group: (torch.randperm(times * size, generator=generator) % size) for group, size in sorted(SIZES[name].items())
    }
    result = dict(weights)
    for tensor, axes in AXES[name].items():
        for dim, group in (axis.split(":") for axis in axes.split()):
            of = maps[group.removeprefix("-")]
            value, dim = result[tensor], int(dim)
            block = value.shape[dim] // SIZES[name][group.removeprefix("-")]
            value = value.index_select(dim, (of[:, None] * block + torch.arange(block)).flatten())
            result[tensor] = value / times if group.startswith("-") else value
    return result


def fused(name: str, a: Weights, b: Weights, scale_a: int, scale_b: int, **options: Any) -> lmccheck.Fusion:
    build, x = BUILD[name]
    y = outputs_of(build(scale_b), b, (x,), torch.float64)[0]
    given = {"data": (x[:32], y[:32]), "calibration": (x, y), "loss": "mse", "device": "cpu", **options}
    return lmccheck.fuse(a, b, model_a=lambda: build(scale_a), model_b=lambda: build(scale_b), **given)


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


# exact cases


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(BUILD))
def test_equal_widths_give_the_permuted_network_bit_for_bit(name: str, norm: str) -> None:
    """A planted permutation is undone exactly, heads and their dimensions included, and every plan is one."""
    theta = narrow(name)
    spec = lmccheck.discover_symmetry(BUILD[name][0](1), (BUILD[name][1][:2].float(),))
    found = fused(name, theta, spec.apply(theta, spec.moving(2)), 1, 1, norm=norm)
    assert all(torch.equal(found.weights[key], theta[key]) for key in theta)
    assert found.function_preserving
    assert found.function_deviation <= 1e-9
    for group, plan in found.plans.items():
        assert torch.equal((plan * len(plan)).round().sum(0), torch.ones(len(plan), dtype=torch.float64)), group
        assert found.costs[group] <= 1e-9


@pytest.mark.parametrize(("times", "norm"), [(2, "activations"), (2, "weights"), (3, "activations")])
@pytest.mark.parametrize("name", sorted(BUILD))
def test_split_units_find_their_copies(name: str, times: int, norm: str) -> None:
    """A has every unit of B several times over, its outgoing weights shared: fusion finds A, the function is B's."""
    theta = narrow(name)
    wide = copied(name, theta, times)
    x = BUILD[name][1]
    before, after = (outputs_of(BUILD[name][0](s), w, (x,), torch.float64)[0] for s, w in ((1, theta), (times, wide)))
    assert float((before - after).abs().max()) <= 1e-12  # the plant itself is sound
    found = fused(name, wide, theta, times, 1, norm=norm)
    assert largest_difference(found.weights, wide) <= 1e-12
    assert found.function_preserving
    assert found.function_deviation <= 1e-9
    assert found.loss_fused == pytest.approx(found.loss_b, abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(BUILD))
def test_copies_are_merged_again(name: str, norm: str) -> None:
    """B has every unit of A twice: their outgoing weights add up to A's."""
    theta = narrow(name)
    found = fused(name, theta, copied(name, theta, 2), 1, 2, norm=norm)
    assert largest_difference(found.weights, theta) <= 1e-12
    assert found.function_preserving


@pytest.mark.parametrize("name", sorted(BUILD))
def test_any_network_is_split_without_loss(name: str) -> None:
    """Whatever A is: where B's widths divide A's, B's function stays, in float64."""
    torch.manual_seed(5)
    found = fused(name, randomised(BUILD[name][0](2), 11), narrow(name), 2, 1)
    assert found.function_preserving
    assert any(cost > 1e-3 for cost in found.costs.values())
    assert "its function was kept" in found.summary()["statement"]


def test_float32_checkpoints_keep_their_dtype() -> None:
    """Halves are exact in float32, too."""
    theta = {name: value.float() for name, value in narrow("mlp").items()}
    found = fused("mlp", copied("mlp", theta, 2), theta, 2, 1)
    assert {value.dtype for value in found.weights.values()} == {torch.float32}
    assert found.function_preserving


# what is not exact


@pytest.mark.parametrize("name", sorted(BUILD))
def test_merging_changes_the_function_and_says_so(name: str) -> None:
    """A narrower A: the deviation is that of both networks on the data, measured here anew."""
    build, x = BUILD[name]
    torch.manual_seed(5)
    wide = randomised(build(2), 11)
    found = fused(name, narrow(name), wide, 1, 2)
    outputs = outputs_of(build(2), wide, (x[:32],), torch.float64)[0]
    after = outputs_of(build(1), found.weights, (x[:32],), torch.float64)[0]
    assert found.function_deviation == pytest.approx(
        float((outputs - after).abs().max() / (1 + outputs.abs().max())), rel=1e-9
    )
    assert found.function_deviation > 1e-3
    assert found.function_preserving is False
    summary = found.summary()
    assert "not function-preserving" in summary["statement"]
    assert f"{found.function_deviation:.2e}" in summary["statement"]
    json.dumps(summary)
    if name == "batchnorm":
        assert "re-estimate" in summary["batchnorm"]["note"]
        assert summary["batchnorm"]["loss_fused_reestimated"] > 0


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (6, 3), (3, 6), (4, 6), (7, 5), (1, 4), (64, 96)])
def test_the_plan_is_an_optimal_transport_between_equal_masses(n_a: int, n_b: int) -> None:
    """Marginals, and the value of scipy's linear program."""
    cost = torch.rand(n_a, n_b, generator=torch.Generator().manual_seed(n_a * 100 + n_b), dtype=torch.float64)
    plan = transport_plan(cost)
    assert torch.allclose(plan.sum(1), torch.full((n_a,), 1 / n_a, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(plan.sum(0), torch.full((n_b,), 1 / n_b, dtype=torch.float64), atol=1e-12)
    marginals = np.concatenate([np.kron(np.eye(n_a), np.ones((1, n_b))), np.kron(np.ones((1, n_a)), np.eye(n_b))])
    masses = np.concatenate([np.full(n_a, 1 / n_a), np.full(n_b, 1 / n_b)])
    best = linprog(cost.numpy().ravel(), A_eq=marginals, b_eq=masses, bounds=(0, None), method="highs").fun
    assert float((plan * cost).sum()) == pytest.approx(best, abs=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_fusion_is_the_layerwise_recursion(norm: str) -> None:
    """Widths 10-14 from 15-7: costs, plans and weights equal a slow reference with explicit Σ and formulas."""
    torch.manual_seed(5)
    layers = [nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 7), nn.Tanh(), nn.Linear(7, 4)]
    module_a, module_b = mlp(2), nn.Sequential(*layers)
    a, b = randomised(module_a, 11), randomised(module_b, 12)
    data = VECTORS, outputs_of(module_a, a, (VECTORS,), torch.float64)[0]
    found = lmccheck.fuse(a, b, model_a=module_a, model_b=module_b, data=data, calibration=data, loss="mse", norm=norm)
    value, outgoing = VECTORS, torch.eye(6, dtype=torch.float64)
    for layer, act in (("0", torch.relu), ("2", torch.tanh)):
        rows = torch.cat([value, torch.ones(len(value), 1, dtype=torch.float64)], 1)
        sigma = rows.T @ rows / len(rows) if norm == "activations" else torch.eye(rows.shape[1], dtype=torch.float64)
        moved = b[f"{layer}.weight"] @ outgoing.T
        left = torch.cat([a[f"{layer}.weight"], a[f"{layer}.bias"][:, None]], 1)
        right = torch.cat([moved, b[f"{layer}.bias"][:, None]], 1)
        cost = torch.stack([torch.stack([(u - v) @ sigma @ (u - v) for v in right]) for u in left])
        plan = found.plans[layer]
        assert found.costs[layer] == pytest.approx(float((transport_plan(cost) * cost).sum()), rel=1e-6)
        assert float((plan * cost).sum()) == pytest.approx(found.costs[layer], rel=1e-6)
        average, outgoing = len(left) * plan, len(right) * plan
        assert torch.allclose(found.weights[f"{layer}.weight"], average @ moved, atol=1e-12)
        assert torch.allclose(found.weights[f"{layer}.bias"], average @ b[f"{layer}.bias"], atol=1e-12)
        value = act(F.linear(value, a[f"{layer}.weight"], a[f"{layer}.bias"]))
    assert torch.allclose(found.weights["4.weight"], b["4.weight"] @ outgoing.T, atol=1e-12)
    assert torch.equal(found.weights["4.bias"], b["4.bias"])
    total = b["4.weight"].sum(1)
    assert torch.allclose(found.weights["4.weight"].sum(1), total, atol=1e-12)  # the mass of outgoing weights is kept


@pytest.mark.parametrize("name", ["batchnorm", "convolutions", "mlp"])
def test_equal_widths_are_what_transport_finds(name: str) -> None:
    """Of independent weights: the same permutation and the same W₂² as the alignment method of that name."""
    build, x = BUILD[name]
    torch.manual_seed(5)
    a, b = randomised(build(2), 11), randomised(build(2), 12)
    y = outputs_of(build(2), a, (x,), torch.float64)[0]
    given: dict[str, Any] = {"data": (x, y), "calibration": (x, y), "loss": "mse"}
    aligned = lmccheck.align(lmccheck.load_pair(a, b, model=build(2), **given), "transport")
    found = lmccheck.fuse(a, b, model_a=build(2), model_b=build(2), **given)
    assert all(torch.equal(found.weights[key], aligned.weights[key]) for key in a)
    assert found.costs == pytest.approx(aligned.facts["transport_cost"], rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_rows_before_a_batchnorm_means_nothing(norm: str) -> None:
    """Rows of B's layers at other scales, its statistics with them: its copies in A are found as before, at no cost."""
    theta = narrow("batchnorm")
    scaled = dict(theta)
    for layer, batch in (("0", "1"), ("3", "4")):
        scale = torch.logspace(-1, 1, len(theta[f"{batch}.weight"]), dtype=torch.float64)
        scaled[f"{layer}.weight"] = theta[f"{layer}.weight"] * scale[:, None, None, None]
        if layer == "3":
            scaled["3.bias"] = theta["3.bias"] * scale
        scaled[f"{batch}.running_mean"] = theta[f"{batch}.running_mean"] * scale
        scaled[f"{batch}.running_var"] = (theta[f"{batch}.running_var"] + 1e-5) * scale**2 - 1e-5
    found = fused("batchnorm", copied("batchnorm", theta, 2), scaled, 2, 1, norm=norm)
    assert largest_difference(found.weights, copied("batchnorm", scaled, 2)) <= 1e-12
    assert max(found.costs.values()) <= 1e-9


# other families, in other widths


def test_concatenated_channels_and_squeezed_gates() -> None:
    """DenseNet's concatenations and a gate's product, widths divided: the function stays."""

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2 * width, 1), nn.Conv2d(2 * width, 3 * width, 3, padding=1)
            self.norm, self.third = nn.BatchNorm2d(5 * width + 3), nn.Conv2d(5 * width + 3, 2 * width, 1)
            self.down, self.up, self.head = nn.Linear(2 * width, width), nn.Linear(width, 2 * width), None
            self.head = nn.Linear(72 * width, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y = torch.cat([y, x, F.relu(self.second(y))], 1)
            y = F.relu(self.third(F.relu(self.norm(y))))
            y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))[:, :, None, None]
            return self.head(y.flatten(1))

    torch.manual_seed(0)
    wide, slim = Net(4), Net(2)
    data = IMAGES[:16], torch.zeros(16, 2, dtype=torch.float64)
    given: dict[str, Any] = {"data": data, "calibration": (IMAGES, torch.zeros(64, 2)), "loss": "mse"}
    a, b = randomised(wide, 1), randomised(slim, 2)
    found = lmccheck.fuse(a, b, model_a=wide, model_b=slim, **given)
    assert found.function_preserving
    back = lmccheck.fuse(b, a, model_a=slim, model_b=wide, **given)
    assert not back.function_preserving
    assert back.function_deviation > 0


@pytest.mark.parametrize(
    "name", ["autoencoder_tied", "einsum_bilinear", "head_mixing", "language_model_tied", "mlp_weight_shared"]
)
def test_networks_of_equal_widths_stay_functions(name: str) -> None:
    """Tied tables, layers used twice, heads that cannot be told apart: permuted at most, and exactly."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    a, b = randomised(module, 1), randomised(module, 2)
    y = outputs_of(module, a, inputs, torch.float64)[0]
    found = lmccheck.fuse(a, b, model_a=module, model_b=module, data=(inputs[0], y), loss="mse", norm="weights")
    assert found.function_preserving


# trained networks


class Digits(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden1, self.hidden2, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden2(F.relu(self.hidden1(x)))))


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """MLPs of widths 64 and 128 on scikit-learn's digits, and the data."""
    train, test = (load_file(FIXTURES / f"digits-{part}.safetensors") for part in ("train", "test"))
    found: dict[str, Any] = {
        "data": (test["inputs"], test["targets"]),
        "calibration": (train["inputs"], train["targets"]),
    }
    for width in (64, 128):
        torch.manual_seed(width)
        net = Digits(width)
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(25):
            for chosen in torch.randperm(len(train["inputs"])).split(64):
                optimiser.zero_grad()
                F.cross_entropy(net(train["inputs"][chosen]), train["targets"][chosen]).backward()
                optimiser.step()
        found[str(width)] = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return found


def arguments(digits: dict[str, Any], a: int, b: int) -> tuple[Weights, Weights, dict[str, Any]]:
    given = {"data": digits["data"], "calibration": digits["calibration"]}
    models = {"model_a": lambda: Digits(a), "model_b": lambda: Digits(b)}
    return digits[str(a)], digits[str(b)], {**given, **models}


def at_random(digits: dict[str, Any], a: int, b: int, seed: int) -> Weights:
    """θ_B at A's width, its units assigned without a look at them."""
    inputs = (digits["data"][0][:2],)
    carrier = Carrier(*(lmccheck.discover_symmetry(Digits(width), inputs) for width in (a, b)))
    generator = torch.Generator().manual_seed(seed)
    for group in carrier.a.groups:
        carrier.place(group.name, transport_plan(torch.rand(a, b, generator=generator)))
    return carrier.carry(digits[str(b)])


def loss_of(digits: dict[str, Any], width: int, weights: Weights) -> float:
    outputs = outputs_of(Digits(width), weights, (digits["data"][0],), torch.float32)[0]
    return float(F.cross_entropy(outputs, digits["data"][1]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_wide_network_fused_into_a_narrow_one_beats_random_merging(digits: dict[str, Any], norm: str) -> None:
    """Trained widths 128 -> 64: far better than units merged at random, still not the same function."""
    a, b, given = arguments(digits, 64, 128)
    found = lmccheck.fuse(a, b, norm=norm, **given)
    random = [loss_of(digits, 64, at_random(digits, 64, 128, seed)) for seed in range(3)]
    assert found.loss_fused == pytest.approx(loss_of(digits, 64, found.weights), rel=1e-5)
    assert found.loss_b == pytest.approx(loss_of(digits, 128, b), rel=1e-5)
    assert found.loss_fused < 0.6 * min(random)
    assert not found.function_preserving


def test_a_narrow_network_fused_into_a_wide_one_lies_nearer(digits: dict[str, Any]) -> None:
    """Trained widths 64 -> 128: the function stays, and the midpoint is better than that of a random splitting."""
    a, b, given = arguments(digits, 128, 64)
    result = lmccheck.fused_connectivity(a, b, limit=10.0, points=5, **given)
    assert result.passed
    assert result.details["function_preserving"]
    assert result.details["losses"][-1] == pytest.approx(result.details["loss_b"], abs=1e-5)
    midpoint = result.details["losses"][result.details["t"].index(0.5)]
    random = []
    for seed in range(3):
        split = at_random(digits, 128, 64, seed)
        random.append(loss_of(digits, 128, {name: (a[name] + split[name]) / 2 for name in a}))
    assert midpoint < min(random)


# the property


def test_damage_by_fusion_counts_against_the_chord(digits: dict[str, Any]) -> None:
    """The chord ends at B's own loss: what fusion alone costs is the height at t = 1, and fails."""
    a, b, given = arguments(digits, 64, 128)
    result = lmccheck.fused_connectivity(a, b, limit=0.01, points=5, **given)
    details = result.details
    assert result.verdict == "fail"
    assert result.property == "fused_connectivity"
    assert details["loss_a"] == pytest.approx(loss_of(digits, 64, a), rel=1e-5)
    assert details["loss_b"] == pytest.approx(loss_of(digits, 128, b), rel=1e-5)
    assert details["t"][-1] == 1.0
    assert details["losses"][-1] == pytest.approx(details["loss_fused"], rel=1e-6)
    heights = [
        loss - chord(t, details["loss_a"], details["loss_b"])
        for t, loss in zip(details["t"], details["losses"], strict=True)
    ]
    assert result.value == max(heights) == details["barrier"]
    assert result.value >= details["loss_fused"] - details["loss_b"] > 0.01
    assert "not the same function" in details["notes"][0]
    assert details["function_preserving"] is False
    assert len(details["failure"]) == 5
    assert isinstance(result.witness, lmccheck.Fusion)
    json.dumps(details)
    t = details["t"].index(0.5)
    half = {name: (a[name] + result.witness.weights[name]) / 2 for name in a}
    assert details["losses"][t] == pytest.approx(loss_of(digits, 64, half), rel=1e-4)


def test_batchnorm_is_reestimated_on_the_segment() -> None:
    """And without calibration data there is nothing to do it on."""
    theta, wide = narrow("batchnorm"), copied("batchnorm", narrow("batchnorm"), 2)
    build, x = BUILD["batchnorm"]
    y = outputs_of(build(1), theta, (x,), torch.float64)[0]
    given: dict[str, Any] = {"model_a": lambda: build(2), "model_b": lambda: build(1), "data": (x, y), "loss": "mse"}
    result = lmccheck.fused_connectivity(wide, theta, calibration=(x, y), points=3, limit=100.0, **given)
    assert result.passed
    assert max(result.details["losses"]) == pytest.approx(min(result.details["losses"]), rel=1e-9)  # one and the same
    assert any("re-estimated" in note for note in result.details["notes"])
    with pytest.raises(lmccheck.SourceError, match="no calibration data is given"):
        lmccheck.fused_connectivity(wide, theta, norm="weights", **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit = -1; expected a number"),
        ({"limit": "five"}, "limit = 'five'; expected"),
        ({"points": 2}, "points = 2; expected a whole number from 3 to 10001"),
        ({"profile": "quick"}, "profile = 'quick'; expected \"dev\", \"ci\" or \"thorough\""),
        ({"norm": "weigths"}, r"norm = 'weigths' \(did you mean 'weights'\?\)"),
        ({"seed": 0.5}, "seed = 0.5; expected an integer"),
        ({"calibration": None}, "norm = 'activations' needs calibration data"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    theta = narrow("mlp")
    data = VECTORS, torch.zeros(64, 4, dtype=torch.float64)
    given = {"data": data, "calibration": data, "loss": "mse", **options}
    with pytest.raises(lmccheck.LmcError, match=message) as caught:
        lmccheck.fused_connectivity(theta, theta, model_a=mlp, model_b=mlp, **given)
    assert "\n" not in str(caught.value)


# refusals


class Heads(nn.Module):
    """Attention of so many heads, then a linear layer."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.first, self.attention, self.head = nn.Linear(6, 8), Attention(8, heads, "separate"), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.first(x)))


class Tied(nn.Module):
    """An encoder whose transpose decodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t())


class Extra(nn.Module):
    """A stored tensor that nothing reads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net, self.unread = mlp(1), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def layers(*widths: int) -> nn.Module:
    parts: list[nn.Module] = []
    for k in range(len(widths) - 1):
        parts += [nn.Linear(widths[k], widths[k + 1]), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "depth": (lambda: layers(6, 8, 4), lambda: layers(6, 8, 8, 4), "tensor '4.weight' is in b and not in a"),
    "width one": (lambda: layers(6, 8, 4), lambda: layers(6, 1, 4), r"group '0' \(8 units\) of a is none in b"),
    "outputs": (lambda: layers(6, 8, 4), lambda: layers(6, 8, 5), "dimension 0 of tensor '2.weight' has 4 .* and 5"),
    "heads": (lambda: Heads(2), lambda: Heads(4), "group 'attention.q/0' has 1 × 2 units in a and 1 × 4 in b"),
    "tied": (lambda: Tied(8), lambda: Tied(5), "'encoder.weight' both makes and reads them"),
    "unread": (lambda: Extra(3), lambda: Extra(4), "dimension 0 of tensor 'unread' has 3 positions in a and 4"),
    "kernel": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        "dimension 2 of tensor '0.weight' has 1 positions in a and 3 in b",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_networks_that_differ_in_more_than_widths_are_refused(name: str) -> None:
    """In one line that names the tensor or the group."""
    build_a, build_b, message = REFUSED[name]
    torch.manual_seed(0)
    a, b = build_a(), build_b()
    x = SEQUENCES.float() if name == "heads" else IMAGES.float() if name == "kernel" else VECTORS.float()
    data = x, torch.zeros(len(x))
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=message) as caught:
        lmccheck.fuse(a.state_dict(), b.state_dict(), model_a=a, model_b=b, data=data, loss="mse", norm="weights")
    assert "\n" not in str(caught.value)
    assert "mend" in str(caught.value)


def test_each_endpoint_is_checked_against_its_own_network(tmp_path: Path) -> None:
    """Paths and state dicts; the message says whose it is."""
    torch.manual_seed(0)
    wide, slim = mlp(2), mlp(1)
    for name, module in (("wide", wide), ("slim", slim)):
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors", metadata={"of": name})
    data = VECTORS.float(), torch.zeros(64, dtype=torch.int64)
    given: dict[str, Any] = {"data": data, "calibration": data, "base": tmp_path}
    found = lmccheck.fuse("wide.safetensors", "slim.safetensors", model_a=wide, model_b=slim, **given)
    assert found.metadata == {"of": "slim"}
    with pytest.raises(lmccheck.CheckpointError, match=r"slim.safetensors: tensor '0.weight' has shape \(5, 6\)"):
        lmccheck.fuse("wide.safetensors", "slim.safetensors", model_a=wide, model_b=wide, **given)
    with pytest.raises(lmccheck.CheckpointError, match=r"state dict b: tensor '0.weight' has shape \(5, 6\)"):
        lmccheck.fuse("wide.safetensors", slim.state_dict(), model_a=wide, model_b=wide, **given)
    broken = {name: torch.full_like(value, torch.nan) for name, value in slim.state_dict().items()}
    with pytest.raises(lmccheck.CheckpointError, match=r"state dict b: tensor '0.weight': got"):
        lmccheck.fuse("wide.safetensors", broken, model_a=wide, model_b=slim, **given)
