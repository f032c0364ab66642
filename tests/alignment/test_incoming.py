"""The naive matching of Ferbach et al. 2024: incoming weights and biases alone, Euclidean, from the inputs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations

import numpy as np
import pytest
import torch
from networks import Written
from networks.small import perceptron, seeded
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import lmccheck
from lmccheck.symmetry.compose import inverse

State = Mapping[str, Tensor]


def pair_of(build: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> lmccheck.ModelPair:
    """Return two networks from two seeds, without calibration data: the method needs none."""
    states = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in seeded(build, s).items()} for s in (0, 1)]
    data = torch.randn(4, *shape), torch.zeros(4, dtype=torch.int64)
    return lmccheck.load_pair(*states, model=build, data=data, device="cpu")


def distances(left: Tensor, right: Tensor) -> np.ndarray:
    """Return the squared distances of rows, one by one."""
    a, b = (rows.double().flatten(1).numpy() for rows in (left, right))
    return np.array([[((u - v) ** 2).sum() for v in b] for u in a])


def rows_of(state: State, layer: str, before: np.ndarray) -> Tensor:
    """Return a layer's incoming weights, earlier units in their new order, beside its biases."""
    weight = state[f"{layer}.weight"][:, before]
    return torch.cat([weight, state[f"{layer}.bias"][:, None]], 1) if f"{layer}.bias" in state else weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_on_a_perceptron_it_is_scipys_assignment_layer_by_layer(dtype: torch.dtype, bias: bool) -> None:
    """The same permutation, and the mean squared distance of what it pairs."""
    pair = pair_of(lambda: perceptron(5, 40, 30, 20, 3, bias=bias), (5,), dtype)
    found = lmccheck.align(pair, "incoming")
    before, total = np.arange(5), 0.0
    for layer in ("0", "2", "4"):
        cost = distances(rows_of(pair.theta_a, layer, np.arange(len(before))), rows_of(pair.theta_b, layer, before))
        rows, before = linear_sum_assignment(cost)
        assert found.permutation[layer].tolist() == before.tolist()
        assert found.facts["incoming_cost"][layer] == pytest.approx(cost[rows, before].mean(), rel=1e-12)
        total += cost[rows, before].sum()
    assert found.objective == pytest.approx(-total, rel=1e-12)
    assert found.facts["dimension"]["why"] == "no calibration data"


@pytest.mark.parametrize("seed", range(3))
def test_no_permutation_of_a_tiny_layer_is_nearer(seed: int) -> None:
    """Brute force over both layers in turn, earlier permutations applied; large biases lose nothing to rounding."""
    build = lambda: perceptron(2, 4, 3, 2)  # noqa: E731  # a builder
    a, b = (seeded(build, 10 * seed + k) for k in (1, 2))
    for state in (a, b):
        state["0.bias"] = state["0.bias"] + 3e4  # products of float32 would be known to ±60 only
    data = torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)
    found = lmccheck.align(lmccheck.load_pair(a, b, model=build, data=data, device="cpu"), "incoming")
    before: tuple[int, ...] = (0, 1)
    for layer in ("0", "2"):
        cost = distances(rows_of(a, layer, np.arange(len(before))), rows_of(b, layer, np.array(before)))
        before = min(permutations(range(len(cost))), key=lambda p: sum(cost[u, v] for u, v in enumerate(p)))
        assert found.permutation[layer].tolist() == list(before)


def test_a_planted_permutation_is_found_at_no_distance() -> None:
    """Every incoming weight finds its own."""
    build = lambda: perceptron(5, 17, 13, 3)  # noqa: E731  # a builder
    state = seeded(build, 3)
    data = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    spec = lmccheck.discover_symmetry(build(), (data[0],))
    moved = spec.moving(5)
    found = lmccheck.align(
        lmccheck.load_pair(state, spec.apply(state, moved), model=build, data=data, device="cpu"), "incoming"
    )
    back = inverse(spec, moved)
    assert all(torch.equal(found.permutation[name], back[name]) for name in back)
    assert found.objective == 0.0
    assert set(found.facts["incoming_cost"].values()) == {0.0}


def gated() -> nn.Module:
    """Two layers that make one group of units together, a gate and its twin, and a residual block on it."""

    def run(s: Written, x: Tensor) -> Tensor:
        stream = s.gate(x).sigmoid() * s.up(x)
        stream = stream + s.out(s.inner(stream).relu())
        return s.head(stream)

    parts = {"gate": nn.Linear(3, 5), "up": nn.Linear(3, 5), "inner": nn.Linear(5, 4), "out": nn.Linear(4, 5)}
    return Written(run, **parts, head=nn.Linear(5, 2))


def test_all_producers_of_a_group_count_that_can_be_compared_by_then() -> None:
    """A gated stream: gate and twin together, and the block's bias; its weights read units that come later."""
    pair = pair_of(gated, (3,), torch.float64)
    found = lmccheck.align(pair, "incoming")
    a, b = pair.theta_a, pair.theta_b
    names = ("gate.weight", "gate.bias", "up.weight", "up.bias", "out.bias")
    cost = sum(distances(a[name].reshape(5, -1), b[name].reshape(5, -1)) for name in names)
    stream = linear_sum_assignment(cost)[1]
    group = next(g for g in pair.network.spec.groups if g.size == 5)
    assert found.permutation[group.name].tolist() == stream.tolist()
    assert found.facts["incoming_cost"][group.name] == pytest.approx(cost[np.arange(5), stream].mean(), rel=1e-12)
    cost = distances(rows_of(a, "inner", np.arange(5)), rows_of(b, "inner", stream))
    other = next(g for g in pair.network.spec.groups if g.size == 4)
    assert found.permutation[other.name].tolist() == linear_sum_assignment(cost)[1].tolist()


def normed() -> nn.Module:
    """Two convolutions, the first with BatchNorm."""
    first = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 2))


def test_a_batchnorm_is_taken_with_its_convolution() -> None:
    """Rows γ·W/√(σ² + ε), biases β + γ·(b − μ)/√(σ² + ε); the next reads channels in their new order."""
    pair = pair_of(normed, (2, 6, 6), torch.float64)
    ends = [
        {**theta, "1.weight": torch.randn(6).double(), "1.bias": torch.randn(6).double()}
        for theta in (pair.theta_a, pair.theta_b)
    ]
    pair = pair.with_weights(*ends)
    found = lmccheck.align(pair, "incoming")
    folded = []
    for state in (pair.theta_a, pair.theta_b):
        gain = state["1.weight"] / (state["1.running_var"] + 1e-5) ** 0.5
        shift = state["1.bias"] + gain * (state["0.bias"] - state["1.running_mean"])
        folded.append(torch.cat([gain[:, None] * state["0.weight"].flatten(1), shift[:, None]], 1))
    first = linear_sum_assignment(distances(*folded))[1]
    assert found.permutation["0"].tolist() == first.tolist()
    rows = [
        torch.cat([state["3.weight"][:, order].flatten(1), state["3.bias"][:, None]], 1)
        for state, order in ((pair.theta_a, np.arange(6)), (pair.theta_b, first))
    ]
    assert found.permutation["3"].tolist() == linear_sum_assignment(distances(*rows))[1].tolist()


def test_what_reads_the_units_has_no_say() -> None:
    """Other outgoing weights of B leave the permutation as it was: Git Re-Basin's weight matching takes them."""
    pair = pair_of(lambda: perceptron(4, 9, 3), (4,), torch.float64)
    other = {**pair.theta_b, "2.weight": torch.randn(3, 9, dtype=torch.float64) * 100}
    both = [lmccheck.align(p, "incoming").permutation["0"] for p in (pair, pair.with_weights(pair.theta_a, other))]
    assert torch.equal(*both)
    matched = [lmccheck.align(p).permutation["0"] for p in (pair, pair.with_weights(pair.theta_a, other))]
    assert not torch.equal(*matched)
