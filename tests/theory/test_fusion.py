"""Soft transport between widths: exact where units are permuted, split or merged with their like; honest elsewhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Written
from networks.quick import slowly
from networks.widths import (
    BUILD,
    IMAGES,
    NORMS,
    VECTORS,
    copied,
    fused,
    largest_difference,
    mlp,
    narrow,
)
from scipy.optimize import linprog
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.matching.layerwise import transport_plan
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of

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


@pytest.mark.parametrize(("times", "norm"), [(2, "activations"), slowly(2, "weights"), slowly(3, "activations")])
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


@pytest.mark.parametrize("norm", ["activations", slowly("weights")])
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

    def run(s: Written, x: Tensor) -> Tensor:
        y = s.first(x)
        y = torch.cat([y, x, F.relu(s.second(y))], 1)
        y = F.relu(s.third(F.relu(s.norm(y))))
        y = y * torch.sigmoid(s.up(F.relu(s.down(y.mean((2, 3))))))[:, :, None, None]
        return s.head(y.flatten(1))

    def net(w: int) -> nn.Module:
        first = {"first": nn.Conv2d(3, 2 * w, 1), "second": nn.Conv2d(2 * w, 3 * w, 3, padding=1)}
        then = {"norm": nn.BatchNorm2d(5 * w + 3), "third": nn.Conv2d(5 * w + 3, 2 * w, 1)}
        gate = {"down": nn.Linear(2 * w, w), "up": nn.Linear(w, 2 * w)}
        return Written(run, **first, **then, **gate, head=nn.Linear(72 * w, 2))

    torch.manual_seed(0)
    wide, slim = net(4), net(2)
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
