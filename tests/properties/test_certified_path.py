"""All ten segments of a path known: those between a network and its dropped version bounded by enclosures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks.small import perceptron
from torch import nn

import lmccheck


def convolutional() -> nn.Module:
    """A small conv net with BatchNorm and pooling."""
    convolution = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))


BUILDS = {"mlp": (lambda: perceptron(6, 10, 8, 3), (6,)), "conv": (convolutional, (1, 6, 6))}


def pair_of(name: str) -> lmccheck.ModelPair:
    build, shape = BUILDS[name]
    torch.manual_seed(0)
    module = build()
    x = torch.randn(80, *shape)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({n: p.clone() for n, p in build().state_dict().items()})
    data = x, torch.arange(80) % 3
    return lmccheck.load_pair(*states, model=module, data=data, calibration=data)


def highest(pair: lmccheck.ModelPair, path: lmccheck.Path, name: str) -> float:
    """The highest loss at 41 points of every segment, by the module itself in float64."""
    module = BUILDS[name][0]().double().eval()
    x, y = pair.data.batches[0].inputs.double(), pair.data.batches[0].targets
    found = 0.0
    for number in range(len(path.segments)):
        for s in np.linspace(0, 1, 41):
            with torch.no_grad():
                out = torch.func.functional_call(module, path.between(number, float(s)), (x,))
            found = max(found, F.cross_entropy(out, y).item())
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_all_ten_segments_are_certified_and_again_from_the_file(name: str, tmp_path: Path) -> None:
    """Nothing at 410 points is above the bound, which is within 1e-3 of it; verify_path says the same of the file."""
    pair = pair_of(name)
    found = lmccheck.ten_segment_path(pair, epsilon=1.0, certify="always")
    kinds = [segment["known"] for segment in found.details["segments"]]
    assert kinds.count("certified") == 2
    assert "sampled" not in kinds
    assert found.verdict == "pass"
    assert found.details["known"].startswith("certified ≤ ")
    bound = found.details["certified_bound"]
    assert not found.details["exact"]
    top = max(found.details["loss_a"], found.details["loss_b"])
    true = highest(pair, found.witness, name) - top
    assert true <= bound + 1e-12
    assert bound <= true + 1e-3
    assert found.value <= bound
    file = found.witness.save(tmp_path / "path.safetensors")
    again = lmccheck.verify_path(pair, file, certify="always")
    assert again.details["known"] == found.details["known"]
    assert again.details["certified_bound"] == pytest.approx(bound, abs=1e-12)


def test_without_a_proof_segments_stay_sampled_and_always_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """never costs nothing; always, with a budget that does not do, is no pass."""
    from lmccheck.properties import low_loss_path

    pair = pair_of("mlp")
    never = lmccheck.ten_segment_path(pair, epsilon=1.0, certify="never")
    assert never.details["known"] == "8 of 10 segments exact, 2 sampled"
    assert never.details["certified_bound"] is None
    monkeypatch.setitem(low_loss_path.PASSES["always"], "ci", 3.0)
    always = lmccheck.ten_segment_path(pair, epsilon=1.0, certify="always")
    assert always.verdict == "inconclusive"
    assert always.value == never.value
    assert any("not certified" in note for note in always.details["notes"])


def test_what_no_loss_exceeds_is_never_below_one_that_was_seen() -> None:
    """A bound in float64 may be a rounding below a loss that was summed in another order."""
    from types import SimpleNamespace
    from typing import Any

    from lmccheck.paths.certify import Certificate

    bounded = SimpleNamespace(how="certified", largest=1.5, bound=1.5 - 1e-12)
    segments: Any = (bounded, SimpleNamespace(how="constant", largest=1.0, bound=None))
    found = Certificate(segments, 1.5, 1.0, 0.5, 0, 0.0)
    assert found.bound == found.excess == 0.5
