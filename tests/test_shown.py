"""What holds tensors shows itself in one line, in repr and in the printers of Hypothesis and IPython."""

from __future__ import annotations

import pytest
import torch
from hypothesis.vendor.pretty import pretty
from torch import nn

import lmccheck
from lmccheck.network.pair import load_widths


def mlp(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def things():
    """One of every kind that a user may hold."""
    states = [mlp().state_dict() for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 4, generator=generator), torch.randint(3, (64,), generator=generator)
    given = {"data": data, "calibration": data, "device": "cpu"}
    pair = lmccheck.load_pair(states[0], states[1], model=mlp, **given)
    models = lmccheck.load_set(states, model=mlp, **given)
    widths = load_widths(states[0], mlp(5).state_dict(), model_a=mlp, model_b=lambda: mlp(5), **given)
    dropped = lmccheck.dropout_stability(pair, profile="dev")
    found = {
        "result": lmccheck.linear_connectivity(pair, points=3),
        "pair": pair,
        "widths": widths,
        "set": models,
        "network": pair.network,
        "endpoint": pair.a,
        "data": pair.data,
        "batch": pair.data.batches[0],
        "loss": pair.loss,
        "checkpoint": pair.a.checkpoint,
        "spec": pair.network.spec,
        "traced": pair.network.traced,
        "structure": pair.network.structure("a test"),
        "alignment": lmccheck.align(pair),
        "many": lmccheck.align_many(states, model=mlp, **given),
        "witness": dropped.witness,
        "dropped": dropped.witness.found["a"][0],
        "finding": dropped.finding,
        "noise": lmccheck.noise_stability(pair, masks=8).witness,
        "path": lmccheck.ten_segment_path(pair, epsilon=10.0, profile="dev").witness,
        "fusion": lmccheck.fused_connectivity(widths, points=3).witness,
    }
    return found


KINDS = [
    "pair", "widths", "set", "network", "endpoint", "data", "batch", "loss", "checkpoint", "spec", "traced",
    "structure", "alignment", "many", "witness", "dropped", "finding", "noise", "path", "fusion",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_one_line_without_tensors(things, name):
    """At most 300 characters, the class's name first; Hypothesis says the same of it."""
    text = repr(things[name])
    assert "\n" not in text
    assert len(text) <= 300
    assert "tensor(" not in text
    assert text.startswith(f"{type(things[name]).__name__}(")
    assert pretty(things[name]) == text


def test_what_a_pair_says_of_itself(things):
    """Its checkpoints, its model, and what it is measured on."""
    text = repr(things["pair"])
    for part in ("state dict a", "state dict b", "cross_entropy", "64 samples", "cpu"):
        assert part in text


def test_a_result_is_its_lines_everywhere(things):
    """Also where Hypothesis prints it."""
    assert pretty(things["result"]) == repr(things["result"])


def test_long_names_are_cut():
    """A thousand characters of a name do not fill a terminal."""
    state = mlp().state_dict()
    data = torch.zeros(2, 4), torch.zeros(2).long()
    pair = lmccheck.load_pair(state, state, model=mlp, data=data, name="x\n" * 999, device="cpu")
    assert len(repr(pair)) == 300
    assert repr(pair).endswith("…)")
    assert "\n" not in repr(pair)
