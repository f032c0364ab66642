"""Every method finds a permutation planted under noise; transport is Ferbach's recursion; best looks at no verdict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks.planted import BUILD, planted, problem_of, shared
from networks.quick import slowly

import lmccheck
from lmccheck.alignment.api import METHODS
from lmccheck.alignment.methods.best import solve
from lmccheck.modules.runner import outputs_of


def cases() -> list[Any]:
    """Every method on every network; the largest network, and what tries all other methods, are slow."""
    pairs = [(name, method) for name in sorted(BUILD) for method in METHODS.names()]
    return [slowly(*p) if p[0] == "resnet" or (p[1] == "best" and p[0] != "mlp") else p for p in pairs]


@pytest.mark.parametrize(("name", "method"), cases())
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
    moved = pair.network.spec.apply(pair.theta_b, found.permutation)
    assert all(torch.equal(moved[key], noisy[key]) for key in noisy)


@pytest.mark.parametrize("method", ["activation-matching", "transport", "weight-matching"])
def test_noise_as_large_as_the_weights_hides_it(method: str) -> None:
    """The recovery above is no tautology: with ten times the noise the planted permutation is missed."""
    pair, noisy, _ = planted("mlp", noise=10.0)
    alignment = lmccheck.align(pair, method)
    assert not all(torch.equal(alignment.weights[key], noisy[key]) for key in noisy)
    assert alignment.function_deviation <= 1e-9
