"""The search for dropped networks: repeatable, on data of its own, refused where it cannot be."""

from __future__ import annotations

import pytest
import torch
from networks.dropping import case, loss_of, pair_of, state
from torch import nn

import lmccheck
from lmccheck.dropping.choose_units import SearchSettings, merged_twins, unit_counts
from lmccheck.dropping.search import find_dropped
from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.evaluate.split import split
from lmccheck.properties.dropout_stability import dropout_stability


def test_twins_that_are_too_many_kinds_are_left_alone() -> None:
    """Where units are all different nothing is merged, and a share of 1 keeps everything exactly."""
    pair, structure = case("relu")
    theta = structure.canonical(pair.theta_a)
    assert merged_twins(structure, theta, unit_counts(structure, 0.5)) is None
    whole = find_dropped(pair.a, structure, [0], SearchSettings(keep=1.0, profile="dev")).best[0]
    assert loss_of(pair, structure, whole.weights) == pytest.approx(loss_of(pair, structure, theta), abs=1e-13)


def test_a_search_repeats_itself() -> None:
    """The same seed finds the same weights, and a level's result does not depend on which others are asked for."""
    pair, structure = case("gelu")
    first = find_dropped(pair.b, structure, [0, 1, 2], SearchSettings(profile="dev"))
    again = find_dropped(pair.measured_on(pair.data, pair.calibration).b, structure, [1], SearchSettings(profile="dev"))
    assert all(torch.equal(first.best[1].weights[n], t) for n, t in again.best[1].weights.items())
    assert first.facts["levels"][1] == again.facts["levels"][1]
    other = find_dropped(pair.b, structure, [1], SearchSettings(seed=1, profile="dev"))
    assert other.facts["levels"][1]["random_losses"] != first.facts["levels"][1]["random_losses"]


def test_what_cannot_be_searched_is_refused() -> None:
    """No calibration data, norms across units, and options that make no sense are errors, never a verdict."""
    pair, structure = case("relu")
    with pytest.raises(SourceError, match="calibration"):
        dropout_stability(pair.measured_on(pair.data, None))
    with pytest.raises(SourceError, match="calibration"):
        find_dropped(pair.measured_on(pair.data, None).a, structure, [0], SearchSettings())
    for wrong in ({"epsilon": -1.0}, {"profile": "fast"}, {"seed": 0.5}, {"keep": 2.0}):
        with pytest.raises(LmcError, match=next(iter(wrong))):
            dropout_stability(pair, **wrong)
    with pytest.raises(LmcError, match="levels 0 to 2"):
        find_dropped(pair.a, structure, [3], SearchSettings())
    normed = lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()  # noqa: E731
    with pytest.raises(UnsupportedArchitecture, match=r"layer_norm|norm"):
        dropout_stability(pair_of(normed, (5,)))


def test_parts_of_the_calibration_data_share_no_sample() -> None:
    """A quarter is held out, all batches are of one size; a user's own batches are taken as they are."""
    pair, _ = case("relu")
    parts = split(pair.network, "tests", 200, seed=3)
    sizes = {batch.samples for batch in (*parts.fit, *parts.held)}
    assert len(sizes) == 1
    fit, held = (torch.cat([batch.inputs for batch in part]) for part in (parts.fit, parts.held))
    assert len(held) * 3 == len(fit)
    assert len(torch.cat([fit, held]).unique(dim=0)) == len(fit) + len(held) <= 200
    data, mask = parts.first(100)
    assert data.samples == len(mask)
    assert torch.equal(data.batches[0].inputs, parts.held[0].inputs)
    assert int(mask.sum()) == sum(b.samples for b in data.batches if any(b is h for h in parts.held))


def test_statistics_behind_what_is_dropped_are_taken_afresh() -> None:
    """Units that all give about 10: half of them, doubled, shift the next layer's means, which BatchNorm then learns.

    The running means of what is found are those of a forward pass of the dropped network, no longer those of θ.
    """
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    theta = state(build, 0)
    theta["0.bias"] = torch.full((8,), 10.0, dtype=torch.float64)
    torch.manual_seed(3)
    inputs = torch.randn(400, 5, dtype=torch.float64)
    read = torch.relu(inputs @ theta["0.weight"].T + theta["0.bias"]) @ theta["2.weight"].T
    theta["3.running_mean"], theta["3.running_var"] = read.mean(0), read.var(0)
    data = inputs, torch.arange(400) % 3
    pair = lmccheck.load_pair(theta, state(build, 1), model=build, data=data, calibration=data)
    found = dropout_stability(pair, refit=False, profile="dev", epsilon=9.0).witness.found["a"][0]
    weights = {name: tensor.double() for name, tensor in found.weights.items()}
    read = torch.relu(inputs @ weights["0.weight"].T + weights["0.bias"]) @ weights["2.weight"].T
    error = read.std(0) / 10  # of the mean of at least a hundred samples, and of one taken over some of them
    assert bool(((weights["3.running_mean"] - read.mean(0)).abs() < error).all())
    assert float((weights["3.running_mean"] - theta["3.running_mean"]).abs().max()) > 1
    assert found.how.endswith("statistics re-estimated")
