"""The loss at the worst point is a loss that was measured there, whatever the property's value is measured above."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lmccheck


def linear():
    return nn.Linear(4, 3)


def mlp(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def drawn(seed, build=linear):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: 3 * tensor for name, tensor in build().state_dict().items()}


def data(seed=0, samples=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)


def loss_of(weights, bias):
    inputs, targets = data()
    return cross_entropy(inputs.double() @ weights.double().T + bias.double(), targets).item()


def test_of_a_pair_and_of_a_set():
    """By hand: (1 − t)·a + t·b of linear models at the t that is named, no unit of which moves."""
    states = [drawn(seed) for seed in range(3)]
    given = {"model": linear, "data": data(), "device": "cpu"}
    own = [loss_of(state["weight"], state["bias"]) for state in states]

    def between(i, j, t):
        return loss_of(
            *((1 - t) * states[i][name].double() + t * states[j][name].double() for name in ("weight", "bias"))
        )

    pair = lmccheck.linear_connectivity(lmccheck.load_pair(states[0], states[1], **given), points=5, limit=100.0)
    assert pair.finding.worst_loss == pytest.approx(between(0, 1, pair.details["worst_t"]), rel=1e-5)
    assert pair.finding.merge.loss == pytest.approx(between(0, 1, 0.5), rel=1e-5)
    assert [end.loss for end in pair.finding.endpoints] == pytest.approx(own[:2], rel=1e-5)
    many = lmccheck.set_connectivity(states, points=3, limit=100.0, **given)
    i, j = (many.finding.matrix.names.index(name) for name in many.finding.where.pair)
    assert many.finding.worst_loss == pytest.approx(between(i, j, many.details["worst_t"]), rel=1e-5)
    assert [end.loss for end in many.finding.endpoints] == pytest.approx(own, rel=1e-5)
    mean = [sum(state[name].double() for state in states) / 3 for name in ("weight", "bias")]
    assert many.finding.merge.loss == pytest.approx(loss_of(*mean), rel=1e-5)


def test_a_gap_is_said_of_every_line():
    """One good model and one that answers wrong: the note names the merge's own loss and the better endpoint's."""
    inputs, targets = data()
    good = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    bad = {"weight": torch.zeros(3, 4), "bias": torch.tensor([0.0, 0.0, 50.0])}
    pair = lmccheck.load_pair(good, bad, model=linear, data=(inputs, targets), device="cpu")
    result = lmccheck.linear_connectivity(pair, align="none", points=3, limit=0.05)
    wrong = (targets != 2).double().mean().item() * 50.0
    (note,) = [note for note in result.details["notes"] if "hides" in note]
    gap = result.details["loss_b"] - result.details["loss_a"]
    assert result.details["loss_b"] == pytest.approx(wrong, rel=1e-3)
    assert f"the chord between them hides up to {gap:.4g} nats" in note
    half = loss_of(good["weight"], bad["bias"] / 2)
    assert f"{half:.4g} at t = 0.5, beside {result.details['loss_a']:.4g} of a" in note
    alike = lmccheck.load_pair(good, good, model=linear, data=(inputs, targets), device="cpu")
    assert not any("hides" in note for note in lmccheck.linear_connectivity(alike, points=3).details["notes"])


def test_of_fused_networks_and_of_what_was_saved(tmp_path):
    """One of the losses of the curve; that of the path, and of the dropped network, which are measured anew."""
    given = {"data": data(), "calibration": data(1), "device": "cpu"}
    fused = lmccheck.fused_connectivity(
        drawn(1, mlp), drawn(2, lambda: mlp(5)), model_a=mlp, model_b=lambda: mlp(5), points=3, limit=100.0, **given
    )
    at = fused.details["t"].index(fused.details["worst_t"])
    assert fused.finding.worst_loss == fused.details["losses"][at]
    pair = lmccheck.load_pair(drawn(1, mlp), drawn(2, mlp), model=mlp, **given)
    found = lmccheck.ten_segment_path(pair, epsilon=100.0, profile="dev")
    lmccheck.save_path(found.witness, tmp_path / "path.safetensors")
    again = lmccheck.verify_path(pair, tmp_path / "path.safetensors", epsilon=100.0, profile="dev")
    assert again.finding.worst_loss == again.details["certified_max"] == pytest.approx(found.finding.worst_loss)
    dropped = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev")
    verified = lmccheck.verify_dropout(pair, dropped.witness, epsilon=100.0)
    side = dropped.details["worst_side"]
    assert dropped.finding.worst_loss == pytest.approx(dropped.value + dropped.details[f"loss_{side}"])
    assert verified.finding.worst_loss == pytest.approx(dropped.finding.worst_loss)
