"""A refit is least squares layer by layer, and changes nothing where nothing is lost."""

from __future__ import annotations

import pytest
import torch
from networks.dropping import case, loss_of

from lmccheck.dropping.choose_units import random_units, unit_counts
from lmccheck.dropping.refit import Refit
from lmccheck.evaluate.regression import Moments, ridge
from lmccheck.evaluate.split import split


def test_a_refit_is_least_squares_layer_by_layer() -> None:
    """Each layer is fitted to what it gave in θ, on what it reads in the network that is already refitted."""
    pair, structure = case("tanh")
    theta, parts = structure.canonical(pair.theta_a), split(pair.network, "tests", 200)
    refit = Refit(pair.network, structure, theta, parts, torch.float64)
    keep = random_units(structure, unit_counts(structure, 0.5), torch.Generator().manual_seed(0))
    state, facts = refit(0, keep, polish=False)
    fit = torch.cat([batch.inputs for batch in parts.fit])
    now, original = fit, fit
    for k, group in enumerate([*structure.groups, None]):
        name = f"{2 * k}"
        given = original @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]
        if k:
            before = keep[structure.groups[k - 1]]
            outs = keep[group] if group is not None else torch.arange(3)
            x, start = now[:, before], theta[f"{name}.weight"][outs][:, before].T
            moments = Moments()
            moments.add(x, given[:, outs])
            weight, bias = ridge(moments, start, facts["layers"][f"{name}.weight"])
            assert torch.allclose(state[f"{name}.weight"][outs][:, before].T, weight, atol=1e-9)
            assert torch.allclose(state[f"{name}.bias"][outs], bias, atol=1e-9)
        now = (now @ state[f"{name}.weight"].T + state[f"{name}.bias"]).tanh()
        original = given.tanh()


@pytest.mark.parametrize("name", ["cnn", "swiglu", "stream", "relu"])
def test_a_refit_of_units_that_span_the_others_changes_nothing(name: str) -> None:
    """With all units kept a refit finds θ's function again: convolutions, norms, gates and streams are read rightly."""
    pair, structure = case(name)
    theta = structure.canonical(pair.theta_a)
    refit = Refit(pair.network, structure, theta, split(pair.network, "tests", 200), torch.float64)
    away = {n: t + (0.5 if n in structure.columns else 0.0) for n, t in theta.items() if t.is_floating_point()}
    assert refit.layer_data is not None  # the targets are those of θ
    refit.theta = {**theta, **away}  # where the fit starts, and what it writes into, are wrong
    state, facts = refit(0, structure.keep_all(), polish=False)
    assert set(facts["layers"]) == set(structure.columns)
    assert loss_of(pair, structure, state) == pytest.approx(loss_of(pair, structure, theta), abs=2e-3)


def test_a_constant_goes_into_the_norm_where_there_is_no_bias() -> None:
    """A convolution without bias before a BatchNorm: only the running mean takes it, and only of later levels."""
    pair, structure = case("cnn")
    theta = structure.canonical(pair.theta_a)
    refit = Refit(pair.network, structure, theta, split(pair.network, "tests", 200), torch.float64)
    keep = random_units(structure, unit_counts(structure, 0.5), torch.Generator().manual_seed(0))
    state, _ = refit(0, keep, polish=False)
    changed = {name for name in theta if not torch.equal(state[name], theta[name])}
    assert changed == {
        "4.weight", "5.running_mean", "7.weight", "7.bias", "10.weight", "10.bias", "12.weight", "12.bias"
    }  # fmt: skip
    dead = structure.others(structure.levels[1][0], keep[structure.levels[1][0]])
    assert torch.equal(state["5.running_mean"][dead], theta["5.running_mean"][dead])


def test_the_mean_before_the_norm_is_what_it_was() -> None:
    """The constant is not shrunk: on the data fitted to, E[conv − running mean] of every kept unit is that of θ."""
    pair, structure = case("cnn")
    theta = structure.canonical(pair.theta_a)
    parts = split(pair.network, "tests", 200)
    keep = random_units(structure, unit_counts(structure, 0.5), torch.Generator().manual_seed(0))
    state, _ = Refit(pair.network, structure, theta, parts, torch.float64)(0, keep, polish=False)
    inputs = torch.cat([batch.inputs for batch in parts.fit]).double()
    assert not torch.equal(state["5.running_mean"], theta["5.running_mean"])

    def centred(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = []
        module = pair.module.double().eval()
        hook = module[4].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        torch.func.functional_call(module, dict(structure.stored(weights)), (inputs,))
        hook.remove()
        return seen[0].mean((0, 2, 3)) - weights["5.running_mean"]

    kept = keep[structure.levels[1][0]]
    assert torch.allclose(centred(state)[kept], centred(theta)[kept], atol=1e-9)
