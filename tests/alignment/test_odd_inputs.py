"""Alignment on odd inputs is one line or right: nothing to move, units that stand still, overflow, half precision."""

from __future__ import annotations

import pytest
import torch
from networks.small import perceptron, seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching.activations import Moments
from lmccheck.alignment.matching.layerwise import by_transport
from lmccheck.alignment.methods.learned import train
from lmccheck.errors import LmcError, SourceError


def narrow() -> nn.Module:
    """4-1-3: no unit may move."""
    return perceptron(4, 1, 3)


@pytest.mark.parametrize("method", ["learned", "incoming", "transport", "activation-matching"])
def test_nothing_may_move(method: str) -> None:
    """A hidden layer of one unit: the identity, from methods that train or solve, too."""
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    pair = lmccheck.load_pair(
        *(seeded(narrow, k) for k in (0, 1)), model=narrow, data=data, calibration=data, device="cpu"
    )
    alignment = lmccheck.align(pair, method)
    assert alignment.is_identity
    assert all(torch.equal(alignment.weights[name], pair.theta_b[name]) for name in pair.theta_b)


def pair_with(calibration: object, scale: float = 1.0) -> lmccheck.ModelPair:
    """Two small networks, their weights times ``scale``, and ordinary evaluation data."""
    states = [{k: v * scale for k, v in seeded(small_mlp, s).items()} for s in (0, 1)]
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    return lmccheck.load_pair(*states, model=small_mlp, data=data, calibration=calibration, device="cpu")


@pytest.mark.parametrize("method", ["transport", "transport-both", "activation-matching", "weight-matching"])
def test_activations_that_overflow_are_one_line(method: str) -> None:
    """Inputs of 3e38 are finite and what the layers make of them is not: the data and the layer are named."""
    x = torch.full((6, 4), 3e38) * torch.tensor([1.0, -1.0, 1.0, 1.0])
    with pytest.raises(
        SourceError, match=r"(?s)^calibration .*(inputs of layers of a|activations at).*mend: look"
    ) as e:
        lmccheck.align(pair_with((x, torch.zeros(6, dtype=torch.int64)), scale=9.0), method)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("method", ["transport", "activation-matching"])
def test_activations_whose_squares_overflow_are_matched(method: str) -> None:
    """Inputs of 1e25 without biases: as at the scale of 1, since both norm and correlation are scale-free."""
    build = lambda: perceptron(4, 6, 5, 3, bias=False)  # noqa: E731  # a builder
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    found = []
    for scale in (1.0, 2.0**83):
        states = [seeded(build, s) for s in (0, 1)]
        pair = lmccheck.load_pair(*states, model=build, data=(x[:8], y[:8]), calibration=(scale * x, y), device="cpu")
        found.append(lmccheck.align(pair, method))
    assert all(torch.equal(found[0].permutation[name], found[1].permutation[name]) for name in ("0", "2"))
    one, other = (f.facts["approximate_dimension"] for f in found)
    assert one == pytest.approx(other, rel=1e-5)


def correlations(dtype: torch.dtype) -> Tensor:
    """Return correlations, with themselves, of 20 units around 1000 that vary by 0.02, and an ordinary one."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(21, 5000, generator=generator, dtype=torch.float64)
    values[:20] = 1000 + 0.02 * values[:20]
    values = values.to(dtype)
    moments = Moments(21)
    moments.add(values, values)
    return moments.similarity("correlation")


def test_a_correlation_that_squares_cannot_tell_is_none() -> None:
    """In float32 the squares of 1000 ± 0.02 drown the variance: 0, never a number above 1; in float64 it is known."""
    assert torch.allclose(correlations(torch.float64), torch.eye(21, dtype=torch.float64), atol=0.08)
    found = correlations(torch.float32)
    assert float(found[:20].abs().max()) == 0.0
    assert float(found[20, 20]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_matched_and_kept(dtype: torch.dtype) -> None:
    """A planted permutation of half precision weights is found, bit for bit and in their dtype."""
    state = {name: tensor.to(dtype) for name, tensor in seeded(small_mlp, 3).items()}
    data = torch.randn(40, 4), torch.randint(0, 3, (40,))
    spec = lmccheck.discover_symmetry(small_mlp(), (data[0][:2],))
    moved = spec.apply(state, spec.moving(1))
    pair = lmccheck.load_pair(state, moved, model=small_mlp, data=data, calibration=data, device="cpu")
    for method in ("incoming", "transport", "activation-matching", "weight-matching"):
        weights = lmccheck.align(pair, method).weights
        assert all(torch.equal(weights[name], state[name]) for name in state), method
        assert {tensor.dtype for tensor in weights.values()} == {dtype}


@pytest.mark.parametrize("method", ["transport", "activation-matching", "incoming"])
def test_dead_and_duplicated_units_and_a_single_sample(method: str) -> None:
    """Ties everywhere: a permutation that keeps the function; one sample has one dimension."""
    states = [seeded(small_mlp, s) for s in (0, 1)]
    for state in states:
        state["0.weight"][3:] = state["0.weight"][3]
        state["0.bias"][3:] = -1e3  # dead, and alike
        state["2.weight"][:2] = 0.0
    x = torch.ones(1, 4), torch.zeros(1, dtype=torch.int64)
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data, calibration=x, device="cpu")
    alignment = lmccheck.align(pair, method)
    pair.network.spec.check(alignment.permutation)
    assert alignment.function_deviation <= 1e-9
    assert set(alignment.facts["approximate_dimension"].values()) == {1.0}


def test_what_no_plan_is_best_for_is_refused() -> None:
    """Costs that are no numbers: POT would warn and return some plan."""
    for bad in (float("nan"), float("inf")):
        table = torch.eye(3, dtype=torch.float64)
        table[1, 2] = bad
        with pytest.raises(LmcError, match="costs of transport hold NaN or infinite values"):
            by_transport(table)


def test_a_mean_over_uneven_batches_is_one_over_samples() -> None:
    """The loss half-way that ``learned`` starts from: batches of 500 and of 12 count by their samples."""
    x, y = torch.randn(512, 4), torch.randint(0, 3, (512,))
    x[500:] += 3
    pair = pair_with([(x[:500], y[:500]), (x[500:], y[500:])])
    losses = []
    for calibration in (pair.calibration, pair_with((x, y)).calibration):
        problem = Problem(pair.measured_on(pair.data, calibration))
        losses.append(train(problem, problem.spec.identity(), steps=0).losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
