"""Every method finds a permutation planted under noise; transport is Ferbach's recursion; best looks at no verdict."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Attention, residual
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment import transport
from lmccheck.alignment.api import METHODS, verified_spec
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching.annealed import annealed_start, sinkhorn
from lmccheck.alignment.matching.norms import counted
from lmccheck.alignment.matching.reassign import affordable, reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods.best import STARTS, solve
from lmccheck.alignment.methods.joint import SHARES
from lmccheck.alignment.methods.weight_matching import descend, match
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.store.data import Batch, Data
from lmccheck.symmetry.compose import inverse

Weights = dict[str, Tensor]


def mlp() -> tuple[nn.Module, Tensor]:
    """6-16-16-4."""
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)]
    return nn.Sequential(*layers), torch.randn(256, 6)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Two convolutions, one with BatchNorm, flatten, a hidden linear layer."""
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 3)), torch.randn(256, 3, 6, 6)


def resnet() -> tuple[nn.Module, Tensor]:
    """A stem and two residual blocks with BatchNorm, the second with a projection."""

    def body(width: int, out: int, stride: int) -> nn.Module:
        first = [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))

    stem = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    skip = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
    blocks = [residual(body(8, 8, 1), None, nn.ReLU()), residual(body(8, 12, 2), skip, nn.ReLU())]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*stem, *blocks, *tail), torch.randn(256, 3, 4, 4)


def transformer() -> tuple[nn.Module, Tensor]:
    """A pre-norm block: stream of 16, two heads of 8, a feed-forward layer of 20."""
    attention = residual(nn.Sequential(nn.LayerNorm(16), Attention(16, 2, "chunk")))
    feed_forward = residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)))
    return nn.Sequential(nn.Linear(12, 16), attention, feed_forward, nn.Linear(16, 3)), torch.randn(256, 5, 12)


BUILD = {build.__name__: build for build in (mlp, convolutions, resnet, transformer)}


def with_noise(weights: Weights, share: float, seed: int = 0) -> Weights:
    """Return weights with so much of each tensor's spread in noise; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: value + share * value.std() * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point() and value.numel() > 1
        else value
        for name, value in weights.items()
    }
    return {name: value.abs() + 1e-3 if name.endswith("running_var") else value for name, value in noisy.items()}


def with_own_statistics(module: nn.Module, weights: Weights, x: Tensor) -> Weights:
    """Return weights with the BatchNorm statistics they have on ``x``, as any trained network has its own."""
    twin = copy.deepcopy(module).double().train()
    twin.load_state_dict(weights)
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    twin(x.double())
    return {name: value.detach().clone() for name, value in twin.state_dict().items()}


def planted(
    name: str, seed: int = 0, noise: float = 0.1
) -> tuple[lmccheck.ModelPair, Weights, lmccheck.PermutationSpec]:
    """Return a pair (θ, π·(θ + noise)) with random data, the noisy θ before it was permuted, and the spec."""
    torch.manual_seed(seed)
    module, x = BUILD[name]()
    theta = with_own_statistics(module, randomised(module, seed + 1), x)
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    noisy = with_noise(theta, noise, seed)
    spec = lmccheck.discover_symmetry(module, (x[:2],))
    hidden = spec.apply(noisy, spec.moving(seed + 2))
    pair = lmccheck.load_pair(
        theta, hidden, model=module, data=(x[:16], y[:16]), calibration=(x, y), loss="mse", device="cpu"
    )
    return pair, noisy, spec


@cache
def shared(name: str) -> tuple[lmccheck.ModelPair, Weights]:
    """Return one planted pair for all methods, which keeps what each has found for those that build on it."""
    return planted(name)[:2]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", sorted(BUILD))
def test_every_method_recovers_a_planted_permutation_under_noise(name: str, method: str) -> None:
    """Weight noise of 10 % of each tensor's spread: θ_B comes back bit for bit, and computes what it computed."""
    pair, noisy = shared(name)
    alignment = lmccheck.align(pair, method)
    assert not alignment.is_identity
    assert all(torch.equal(alignment.weights[key], noisy[key]) for key in noisy)
    inputs = (pair.data.batches[0].inputs,)
    before, after = (outputs_of(pair.module, w, inputs, torch.float64)[0] for w in (pair.theta_b, alignment.weights))
    deviation = float((before - after).abs().max() / (1 + before.abs().max()))
    assert deviation <= 1e-9
    assert alignment.function_deviation <= 1e-9


@pytest.mark.parametrize("name", sorted(BUILD))
def test_weights_and_activations_together_recover_it_too(name: str) -> None:
    """The candidate of ``best`` and start of ``learned`` that no name chooses."""
    pair, noisy = shared(name)
    found = solve(problem_of(pair), "together")
    moved = verified_spec(pair)[0].apply(pair.theta_b, found.permutation)
    assert all(torch.equal(moved[key], noisy[key]) for key in noisy)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_sinkhorn_is_doubly_stochastic(size: int) -> None:
    """Rows and columns sum to 1, numbers are not negative, and what scores highest by far gets all."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(size, size, generator=generator)
    matrix = sinkhorn(scores)
    assert (matrix >= 0).all()
    for dim in (0, 1):
        assert matrix.sum(dim).tolist() == pytest.approx([1.0] * size, abs=1e-4)
    order = torch.randperm(size, generator=generator)
    assert torch.allclose(sinkhorn(scores + 100 * torch.eye(size)[order]), torch.eye(size)[order], atol=1e-4)


def test_an_annealed_start_is_a_place_of_rest() -> None:
    """No group of a chain of layers can be reassigned alone for more: a descent from there ends where it begins."""
    for seed in range(4):
        pair = independent_pair(deep(), seed)
        spec, _ = verified_spec(pair)
        a, b = counted(spec, pair.theta_a), counted(spec, pair.theta_b)
        start = annealed_start(spec, a, b, spec.random(seed))
        found = descend(spec, a, b, start, "annealed", torch.Generator().manual_seed(0))
        assert found.objective == pytest.approx(found.objectives[0], rel=1e-5)


@pytest.mark.parametrize("method", ["activation-matching", "transport", "weight-matching"])
def test_noise_as_large_as_the_weights_hides_it(method: str) -> None:
    """The recovery above is no tautology: with ten times the noise the planted permutation is missed."""
    pair, noisy, _ = planted("mlp", noise=10.0)
    alignment = lmccheck.align(pair, method)
    assert not all(torch.equal(alignment.weights[key], noisy[key]) for key in noisy)
    assert alignment.function_deviation <= 1e-9


# transport


def independent_pair(build: Callable[[], nn.Module], seed: int = 0, samples: int = 200) -> lmccheck.ModelPair:
    """Return a pair of independent random weights of a network on 6 inputs, in float64."""
    torch.manual_seed(seed)
    module = build()
    a, b = randomised(module, 10 + seed), randomised(module, 20 + seed)
    x = torch.randn(samples, 6, dtype=torch.float64)
    y = outputs_of(module, a, (x,), torch.float64)[0]
    return lmccheck.load_pair(a, b, model=module, data=(x[:8], y[:8]), calibration=(x, y), loss="mse", device="cpu")


def problem_of(pair: lmccheck.ModelPair) -> Problem:
    spec, _ = verified_spec(pair)
    return Problem(pair, spec, 0, pair.cache["derived"])


def deep(bias: bool = True) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers = [nn.Linear(6, 9, bias), nn.ReLU(), nn.Linear(9, 7, bias), nn.Tanh(), nn.Linear(7, 8, bias), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(8, 3, bias))

    return build


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_transport_is_the_layerwise_recursion(seed: int, bias: bool) -> None:
    """Π_ℓ and W₂² per unit equal a slow reference: explicit Σ with a constant 1, scipy's assignment, POT's emd2."""
    pair = independent_pair(deep(bias), seed)
    found = transport.match_transport(problem_of(pair))
    value = pair.calibration.batches[0].inputs
    before = np.arange(6)
    objective = 0.0
    for layer, act in (("0", torch.relu), ("2", torch.tanh), ("4", torch.relu), ("6", None)):
        rows = np.concatenate([value.numpy(), np.ones((len(value), 1))], 1)
        sigma = sum(np.outer(row, row) for row in rows) / len(rows)
        (wa, ba), (wb, bb) = (
            (w[f"{layer}.weight"].numpy(), w[f"{layer}.bias"].numpy() if bias else np.zeros(len(w[f"{layer}.weight"])))
            for w in (pair.theta_a, pair.theta_b)
        )
        if act is None:  # no unit has the biases of the last layer: they are not counted
            ba, bb = 0 * ba, 0 * bb
        left, right = np.column_stack([wa, ba]), np.column_stack([wb[:, before], bb])
        n = len(left)
        cost = np.array([[(u - v) @ sigma @ (u - v) for v in right] for u in left])
        if act is None:
            objective += sum(left[u] @ sigma @ right[u] for u in range(n))
            break
        _, order = linear_sum_assignment(cost)
        assert found.permutation[layer].tolist() == order.tolist()
        squared = ot.emd2(np.full(n, 1 / n), np.full(n, 1 / n), cost)
        assert found.facts["transport_cost"][layer] == pytest.approx(squared, rel=1e-9)
        assert found.facts["transport_cost"][layer] == pytest.approx(cost[np.arange(n), order].mean(), rel=1e-9)
        objective += sum(left[u] @ sigma @ right[order[u]] for u in range(n))
        before = order
        value = act(F.linear(value, torch.from_numpy(wa), torch.from_numpy(ba)))
    assert found.facts["plain_norm"] == []
    assert found.objective == pytest.approx(objective, rel=1e-9)


def test_transport_is_exact_between_copies() -> None:
    """Between a network and a permuted copy every layer's transport cost is 0."""
    pair = independent_pair(deep())
    spec = lmccheck.discover_symmetry(pair.module, (torch.zeros(2, 6),))
    twin = replace(pair, theta_b=spec.apply(pair.theta_a, spec.moving(4)), cache={})
    found = transport.match_transport(problem_of(twin))
    assert max(found.facts["transport_cost"].values()) == pytest.approx(0, abs=1e-12)
    back = inverse(spec, spec.moving(4))
    assert all(torch.equal(found.permutation[name], back[name]) for name in back)


def random_rotation(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def dimension(weight: Tensor, moment: Tensor) -> float:
    """Return what the package says for one layer of ``weight`` without bias, inputs of second moment ``moment``."""
    pair = independent_pair(deep(False))
    layer = next(x for x in pair_layers(pair) if x.weight == "2.weight")
    padded = torch.zeros(len(moment) + 1, len(moment) + 1, dtype=torch.float64)
    padded[:-1, :-1] = moment
    weighed = transport._weighed({"2.weight": weight}, [layer], {layer.node: padded})
    return transport._dimension({"2.weight": weight}, weighed, layer)


def pair_layers(pair: lmccheck.ModelPair) -> tuple[transport.Layer, ...]:
    return problem_of(pair).traced("test").layers


def test_the_approximate_dimension_of_a_round_cloud_is_its_dimension() -> None:
    """tr(S)²/tr(S²) with W = Σ = 1 is n; of k equal eigenvalues k; between 1 and the rank; the same at any scale."""
    n = 8
    eye = torch.eye(n, dtype=torch.float64)
    assert dimension(eye, eye) == pytest.approx(n, rel=1e-12)
    rng = np.random.default_rng(0)
    for rank in range(1, n + 1):
        q = torch.from_numpy(random_rotation(n, rank))
        flat = q[:, :rank] @ q[:, :rank].T
        assert dimension(eye, flat) == pytest.approx(rank, rel=1e-9)
        assert dimension(q, flat) == pytest.approx(rank, rel=1e-9)
        spread = torch.from_numpy(rng.uniform(0.1, 5, rank))
        moment = q[:, :rank] @ torch.diag(spread) @ q[:, :rank].T
        found = dimension(eye, moment)
        assert found == pytest.approx(float(spread.sum() ** 2 / (spread**2).sum()), rel=1e-9)
        assert 1 - 1e-9 <= found <= rank + 1e-9
        assert dimension(3 * eye, 0.01 * moment) == pytest.approx(found, rel=1e-9)


def test_the_reported_dimension_is_that_of_the_definition() -> None:
    """tr(S)²/tr(S²) of S = W·E[φφᵀ]·Wᵀ with E over the calibration data, layer by layer, by explicit sums."""
    pair = independent_pair(deep(False))
    facts = solve(problem_of(pair), "transport").facts
    value = pair.calibration.batches[0].inputs
    for layer, act in (("0", torch.relu), ("2", torch.tanh), ("4", torch.relu), ("6", torch.relu)):
        weight = pair.theta_a[f"{layer}.weight"]
        outputs = value @ weight.T
        s = sum(torch.outer(row, row) for row in outputs) / len(outputs)
        expected = float(s.trace() ** 2 / (s @ s).trace())
        assert facts["approximate_dimension"][f"{layer}.weight"] == pytest.approx(expected, rel=1e-9)
        value = act(outputs)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "encoder_chunk", "llama_without_rotary"])
@pytest.mark.parametrize("seed", range(2))
def test_outgoing_weights_never_lower_the_objective(name: str, seed: int) -> None:
    """transport-both begins where transport ends and takes steps only that raise ⟨θ_A·Σ, π·θ_B⟩."""
    torch.manual_seed(seed)
    module, inputs = NETWORKS[name]()
    a, b = randomised(module, 2 * seed), randomised(module, 2 * seed + 1)
    shape = (64, *inputs[0].shape[1:])
    x = torch.randn(shape) if inputs[0].is_floating_point() else torch.randint(0, 11, shape)
    y = outputs_of(module, a, (x,), torch.float64)[0]
    pair = lmccheck.load_pair(a, b, model=module, data=(x[:4], y[:4]), calibration=(x, y), loss="mse", device="cpu")
    problem = problem_of(pair)
    first, both = solve(problem, "transport"), solve(problem, "transport-both")
    assert both.objective >= first.objective - 1e-9 * abs(first.objective)


def test_outgoing_weights_raise_the_objective() -> None:
    """On independent networks they do change the permutation, and no group alone can raise the objective further."""
    pair = independent_pair(deep(False), 1)
    problem = problem_of(pair)
    first, both = solve(problem, "transport"), solve(problem, "transport-both")
    assert both.objective > first.objective + 1e-6

    sigmas, value = {}, pair.calibration.batches[0].inputs
    for layer, act in (("0", torch.relu), ("2", torch.tanh), ("4", torch.relu), ("6", torch.relu)):
        sigmas[f"{layer}.weight"] = value.T @ value / len(value)
        value = act(value @ pair.theta_a[f"{layer}.weight"].T)

    def objective(permutation: dict[str, Tensor]) -> float:
        moved = problem.spec.apply(pair.theta_b, permutation)
        return sum(float((pair.theta_a[k] @ sigmas[k] * moved[k]).sum()) for k in sigmas)

    assert both.objective == pytest.approx(objective(both.permutation), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for group in problem.spec.groups:
        for _ in range(200):
            i, j = torch.randperm(group.size, generator=generator)[:2].tolist()
            other = both.permutation[group.name].clone()
            other[[i, j]] = other[[j, i]]
            assert objective({**both.permutation, group.name: other}) <= both.objective + 1e-9


def residual_blocks() -> tuple[nn.Module, Tensor]:
    """Four pre-norm residual blocks on a stream of 16."""

    def body() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    return nn.Sequential(
        nn.Linear(6, 16), *(residual(body()) for _ in range(4)), nn.LayerNorm(16), nn.Linear(16, 4)
    ), torch.randn(256, 6)


def test_a_stream_is_placed_by_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual stream comes before what is inside its blocks: the copy's order there must not count for it yet."""
    monkeypatch.setitem(BUILD, "residual_blocks", residual_blocks)
    for seed in range(4):
        pair, noisy, _ = planted("residual_blocks", seed, noise=0.0)
        alignment = lmccheck.align(pair, "transport")
        assert all(torch.equal(alignment.weights[key], noisy[key]) for key in noisy)


COUPLED = ("gram_matrix", "llama", "llama_without_rotary")
EXACT = ("mlp", "vgg", "resnet", "encoder_chunk", "query_key_norm", "head_mixing", "channel_shuffle")


@pytest.mark.parametrize("name", [*EXACT, *COUPLED])
def test_a_step_gains_what_it_promises(name: str) -> None:
    """From any permutation, for any group: gain() is by how much ⟨A, π·θ_B⟩ of plainly permuted weights changes."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    spec = lmccheck.discover_symmetry(module, inputs)

    def objective(a: Weights, b: Weights, permutation: dict[str, Tensor]) -> float:
        return sum(float((a[k] * v).sum()) for k, v in spec.apply(b, permutation).items())

    for seed in range(3):
        a, b = (counted(spec, randomised(module, 2 * seed + k)) for k in (0, 1))
        for group in spec.groups:
            state = WeightSimilarity(spec, a, b, spec.random(seed))
            step = reassign(spec, group, state.permutation, state.units(group), state.blocks(group))
            rise = objective(a, b, step.permutation) - objective(a, b, spec.random(seed))
            assert state.gain(group, step.permutation, step.gain) == pytest.approx(rise, abs=1e-9)


def test_descents_of_a_group_that_meets_itself_in_one_dimension() -> None:
    """A flattened Gram matrix has a group twice in one dimension: weight matching must not lower its objective."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["gram_matrix"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    for seed in range(12):
        match(spec, randomised(module, 2 * seed), randomised(module, 2 * seed + 1), seed=seed)


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
    assert list(table) == [*STARTS, "learned"]
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


@pytest.mark.parametrize("method", ["best", "learned", "transport-both"])
def test_the_choice_never_sees_evaluation_data(method: str) -> None:
    """Other evaluation inputs and garbage for targets: the same permutation, bit for bit, and the same facts."""
    pair = rescaled_pair()
    first = lmccheck.align(pair, method)
    garbage = Data((Batch(1e3 * torch.randn(11, 6), -1e6 * torch.rand(11, 3)),), "garbage", True)
    second = lmccheck.align(replace(pair, data=garbage, cache={}), method)
    assert all(torch.equal(first.permutation[name], second.permutation[name]) for name in first.permutation)
    assert first.facts == second.facts
    third = lmccheck.align(replace(pair, calibration=replaced(pair.calibration), cache={}), method)
    assert first.facts != third.facts  # calibration data is what counts


def replaced(data: Data) -> Data:
    """Return data with other samples."""
    batch = data.batches[0]
    return Data((Batch(batch.inputs.flip(0) * 2 - 1, batch.targets * 0),), data.origin, True)


def test_a_seed_decides_everything() -> None:
    """Two runs with one seed agree bit for bit, facts included."""
    for method in ("best", "weight-matching"):
        runs = [lmccheck.align(rescaled_pair(), method, seed=3) for _ in range(2)]
        assert all(torch.equal(runs[0].permutation[k], runs[1].permutation[k]) for k in runs[0].permutation)
        assert runs[0].facts == runs[1].facts
        assert runs[0].objective == runs[1].objective


def test_without_calibration_data_best_is_weight_matching() -> None:
    """And says so; the methods that need data refuse in one line."""
    pair = replace(independent_pair(deep()), calibration=None, cache={})
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
        assert found.facts["start"] in STARTS
        aligned = problem_of(pair).spec.apply(pair.theta_b, found.permutation)
        middle = {k: (pair.theta_a[k] + aligned[k]) / 2 for k in aligned}
        batch = pair.calibration.batches[0]
        output = outputs_of(pair.module, middle, (batch.inputs,), torch.float64)[0]
        assert -found.objective == pytest.approx(float(((output - batch.targets) ** 2).mean()), rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_transport_plan_is_the_best_permutation(size: int) -> None:
    """by_transport against all permutations, ties included."""
    generator = torch.Generator().manual_seed(size)
    for tables in (torch.randn(20, size, size, generator=generator), torch.randint(0, 2, (20, size, size)).double()):
        for table in tables.double():
            found = transport.by_transport(table)
            order, value = found.permutation, found.value
            rows = torch.arange(size)
            best = max(float(table[rows, torch.tensor(p)].sum()) for p in itertools.permutations(range(size)))
            assert sorted(order.tolist()) == list(range(size))
            assert value == pytest.approx(best, abs=1e-12)
            assert value == pytest.approx(float(table[rows, order].sum()), abs=1e-12)
