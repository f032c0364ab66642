"""Steps of weight matching: each gains what it promises, none lowers the objective, streams are placed first."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, residual
from networks.planted import BUILD, Weights, deep, independent_pair, planted, problem_of
from networks.quick import slowly
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.matching.annealed import annealed_start, sinkhorn
from lmccheck.alignment.matching.descent import descend
from lmccheck.alignment.matching.norms import counted
from lmccheck.alignment.matching.reassign import reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods.best import solve
from lmccheck.alignment.methods.weight_matching import match
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of


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
        spec = pair.network.spec
        a, b = counted(spec, pair.theta_a), counted(spec, pair.theta_b)
        start = annealed_start(spec, a, b, spec.random(seed))
        found = descend(spec, a, b, start, "annealed", torch.Generator().manual_seed(0))
        assert found.objective == pytest.approx(found.objectives[0], rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "encoder_chunk", "llama_without_rotary"])
@pytest.mark.parametrize("seed", [0, slowly(1)])
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
