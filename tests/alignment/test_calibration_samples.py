"""Every search that looks at some of the calibration samples only says at how many of how many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks.planted import problem_of
from networks.small import perceptron, seeded, small_mlp
from scipy.optimize import linear_sum_assignment
from torch import nn

import lmccheck
from lmccheck.alignment.matching import activation_norm
from lmccheck.alignment.methods.learned import train
from lmccheck.alignment.methods.transport import match_transport
from lmccheck.data.load import Batch, Data
from lmccheck.evaluate.calibration import CalibrationBarrier, barrier_samples
from lmccheck.properties.remarks import calibration_remarks


def pair_on(samples: int) -> lmccheck.ModelPair:
    """Two small networks and so many calibration samples."""
    x, y = torch.randn(samples, 4), torch.randint(0, 3, (samples,))
    states = [seeded(small_mlp, s) for s in (0, 1)]
    return lmccheck.load_pair(*states, model=small_mlp, data=(x[:9], y[:9]), calibration=(x, y), device="cpu")


def test_transport_takes_all_samples() -> None:
    """Beyond the first 2048 the inputs are 50 times as large: Σ, permutation and cost are those of all 2100."""
    build = lambda: perceptron(4, 6, 3).double()  # noqa: E731  # a builder
    a, b = (seeded(build, s) for s in (0, 1))
    x = torch.randn(2100, 4, dtype=torch.float64)
    x[2048:] = 50 * x[2048:, [1]]
    y = torch.zeros(2100, dtype=torch.int64)
    pair = lmccheck.load_pair(a, b, model=build, data=(x[:9], y[:9]), calibration=(x, y), device="cpu")
    found = match_transport(problem_of(pair))
    rows = np.column_stack([x.numpy(), np.ones(2100)])
    sigma = rows.T @ rows / 2100
    left, right = (np.column_stack([s["0.weight"].numpy(), s["0.bias"].numpy()]) for s in (a, b))
    cost = np.array([[(u - v) @ sigma @ (u - v) for v in right] for u in left])
    order = linear_sum_assignment(cost)[1]
    assert found.permutation["0"].tolist() == order.tolist()
    assert found.facts["transport_cost"]["0"] == pytest.approx(cost[np.arange(6), order].mean(), rel=1e-9)
    assert found.facts["calibration_samples"] == {"of": 2100, "second moments": 2100}
    assert calibration_remarks("transport", found.facts) == []


def test_windows_of_convolutions_are_of_fewer_samples_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 windows a sample, 130 of them in all: 2 samples of each of four batches of 16, 8 of the 64."""
    monkeypatch.setattr(activation_norm, "WINDOWS", 130)
    build = lambda: nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))  # noqa: E731  # a builder
    batches = [(torch.randn(16, 1, 6, 6), torch.zeros(16, dtype=torch.int64)) for _ in range(4)]
    pair = lmccheck.load_pair(
        *(seeded(build, s) for s in (0, 1)), model=build, data=batches[:1], calibration=batches, device="cpu"
    )
    facts = match_transport(problem_of(pair)).facts
    assert facts["calibration_samples"] == {"of": 64, "second moments": 8, "layers": {"0.weight": 8}}
    said = "transport looked at some of the 64 calibration samples only: 8 for second moments"
    assert calibration_remarks("transport", facts) == [said]
    result = lmccheck.linear_connectivity(pair, align="transport", points=3, profile="dev")
    assert said in result.details["notes"]
    # what S is of is not cut: the dimension is that of all samples
    assert result.details["alignment"]["dimension"]["samples"] == 64


@pytest.mark.parametrize(("samples", "seen"), [(1100, 1024), (900, 900)])
def test_weight_matching_says_how_many_it_looked_at(samples: int, seen: int) -> None:
    """Its starts and its choice take 1024 samples; with fewer there is nothing to be said."""
    result = lmccheck.linear_connectivity(pair_on(samples), points=3, profile="dev")
    counts = result.details["alignment"]["calibration_samples"]
    assert counts == {"of": samples, "activations": seen, "losses half-way": seen}
    said = "weight-matching looked at some of the 1100 calibration samples only: 1024 for activations, losses half-way"
    assert [note for note in result.details["notes"] if "looked at" in note] == ([said] if seen < samples else [])


def test_barriers_and_steps_are_compared_on_as_many_as_is_said() -> None:
    """Of 3000: 2048 each; of 100 all; a user's own batches are all taken."""
    for samples, seen in ((3000, 2048), (100, 100)):
        pair = pair_on(samples)
        assert barrier_samples(pair.calibration) == {"of": samples, "barriers": seen}
        assert CalibrationBarrier(pair)._evaluator.network.data.samples == seen
        assert train(problem_of(pair), pair.network.spec.identity(), steps=0).judged == seen
    x, y = torch.randn(3000, 4), torch.randint(0, 3, (3000,))
    own = pair.measured_on(
        pair.data,
        lmccheck.load_pair(
            pair.theta_a,
            pair.theta_b,
            model=small_mlp,
            data=(x[:9], y[:9]),
            calibration=[(x[:2900], y[:2900]), (x[2900:], y[2900:])],
        ).calibration,
    )
    assert barrier_samples(own.calibration) == {"of": 3000, "barriers": 3000}
    assert CalibrationBarrier(own)._evaluator.network.data.samples == 3000


@pytest.mark.parametrize(("targets", "seen"), [(1, 2048), (64, 512), (1000, 256)])
def test_of_long_texts_fewer_are_compared(targets: int, seen: int) -> None:
    """As many as have 2¹⁵ tokens together, 256 at least, 2048 at most."""
    data = Data((Batch(torch.zeros(3000, 2), torch.zeros(3000, targets)),), "x", True)
    assert barrier_samples(data) == {"of": 3000, "barriers": seen}


def test_activation_matching_takes_all_samples() -> None:
    """As it says."""
    facts = lmccheck.align(pair_on(2100), "activation-matching").facts
    assert facts["calibration_samples"] == {"of": 2100, "activations": 2100}
