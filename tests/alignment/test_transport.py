"""Transport is the recursion of Ferbach et al. 2024; its plan is the best permutation."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from networks.planted import deep, independent_pair, problem_of
from scipy.optimize import linear_sum_assignment

import lmccheck
from lmccheck.alignment.matching.layerwise import by_transport
from lmccheck.alignment.methods.transport import match_transport
from lmccheck.symmetry.compose import inverse


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_transport_is_the_layerwise_recursion(seed: int, bias: bool) -> None:
    """Π_ℓ and W₂² per unit equal a slow reference: explicit Σ with a constant 1, scipy's assignment, POT's emd2."""
    pair = independent_pair(deep(bias), seed)
    found = match_transport(problem_of(pair))
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
    twin = pair.with_weights(pair.theta_a, spec.apply(pair.theta_a, spec.moving(4)))
    found = match_transport(problem_of(twin))
    assert max(found.facts["transport_cost"].values()) == pytest.approx(0, abs=1e-12)
    back = inverse(spec, spec.moving(4))
    assert all(torch.equal(found.permutation[name], back[name]) for name in back)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_transport_plan_is_the_best_permutation(size: int) -> None:
    """by_transport against all permutations, ties included."""
    generator = torch.Generator().manual_seed(size)
    for tables in (torch.randn(20, size, size, generator=generator), torch.randint(0, 2, (20, size, size)).double()):
        for table in tables.double():
            found = by_transport(table)
            order, value = found.permutation, found.value
            rows = torch.arange(size)
            best = max(float(table[rows, torch.tensor(p)].sum()) for p in itertools.permutations(range(size)))
            assert sorted(order.tolist()) == list(range(size))
            assert value == pytest.approx(best, abs=1e-12)
            assert value == pytest.approx(float(table[rows, order].sum()), abs=1e-12)


def test_a_plan_that_is_a_mixture_becomes_the_best_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where units are tied a solver may split them; a unit of A takes one of B all the same."""
    monkeypatch.setattr(ot, "emd", lambda a, b, cost, most: np.outer(a, b))
    found = by_transport(torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert found.permutation.tolist() == [1, 0, 2]
    assert found.value == 5.0
