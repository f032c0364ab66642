"""A set passes and fails by its worst pair, which is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks.sets import DIGITS, FIXTURES, SMALL
from networks.small import seeded, small_mlp
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.alignment.barriers import measure_barriers
from lmccheck.properties.set_connectivity import table


def test_the_mean_of_all_is_measured() -> None:
    """Its loss equals that of the mean written out."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    many = lmccheck.align_many(states, **SMALL)
    found = measure_barriers(many)
    module = small_mlp()
    for weights, loss in ((many.weights, found.mean_loss), (states, found.mean_loss_naive)):
        mean = {k: sum(w[k] for w in weights) / 3 for k in states[0]}
        outputs = torch.func.functional_call(module, mean, (SMALL["data"][0],))
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(outputs, SMALL["data"][1]).item(), abs=1e-6)


def test_a_set_passes_and_fails_by_its_worst_pair() -> None:
    """Verdict, value, details; a share of the loss is that of each pair's worse model."""
    models = ["mlp-seed0.safetensors", "mlp-seed1.safetensors"]
    result = lmccheck.set_connectivity(models, **DIGITS, limit=0.07)
    assert result.passed
    assert result.property == "set_connectivity"
    assert result.unit == "nats"
    details = result.details
    assert result.value == max(map(max, details["matrix"])) == pytest.approx(0.0329, abs=1e-3)
    assert details["worst_pair"] == details["names"] == ["mlp-seed0", "mlp-seed1"]
    assert details["cycle_error"] == 0
    assert details["matrix_naive"][0][1] > 0.5
    assert details["mean_loss"] < details["mean_loss_naive"]
    assert details["table"].splitlines()[0].split() == details["names"]
    assert "failure" not in details

    failed = lmccheck.set_connectivity(models, **DIGITS, limit="10%")
    assert failed.verdict == "fail"
    assert failed.limit == pytest.approx(0.1 * max(failed.details["losses"]))
    lines = failed.details["failure"]
    assert "mlp-seed0 and mlp-seed1: not linearly connected after merge-many" in lines[0]
    assert lines[1].startswith("barrier 0.03293 nats, limit 0.0076")
    assert lines[3].endswith("; 1 of 1 pairs above the limit")


def test_the_worst_pair_is_named() -> None:
    """Of two copies and a stranger, the stranger."""
    first = load_file(FIXTURES / "mlp-seed0.safetensors")
    spec = lmccheck.align(lmccheck.load_pair(first, first, **DIGITS)).spec
    models = [first, "mlp-seed1.safetensors", spec.apply(first, spec.random(3))]
    result = lmccheck.set_connectivity(models, **DIGITS, limit=0.01)
    assert result.verdict == "fail"
    assert "mlp-seed1" in result.details["worst_pair"]
    assert result.details["matrix"][0][2] == pytest.approx(0, abs=1e-6)
    assert "2 of 3 pairs above the limit" in result.details["failure"][3]


def test_a_table_of_names() -> None:
    """Columns are named as rows are."""
    assert table(["a", "b"], [[0.0, 0.25], [0.25, 0.0]]).splitlines()[2].split() == ["a", "0", "0.25"]


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their folders; by their place where even these are equal."""
    for folder in "xy":
        (tmp_path / folder).mkdir()
        save_file(seeded(small_mlp, ord(folder)), tmp_path / folder / "m.safetensors")
    many = lmccheck.align_many(["x/m.safetensors", "y/m.safetensors"], **SMALL, base=tmp_path)
    assert many.names == ("x", "y")
    twice = lmccheck.align_many(["x/m.safetensors", "x/m.safetensors"], **SMALL, base=tmp_path)
    assert twice.names == ("m (0)", "m (1)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2}, "set_connectivity: points = 2; expected a whole number from 3 to 10001"),
        ({"limit": -1}, "set_connectivity: limit = -1; expected a number"),
        ({"limit": "5"}, "set_connectivity: limit = '5'; expected a number"),
    ],
)
def test_what_cannot_be_checked_is_said_before_anything_is_done(options: dict[str, Any], message: str) -> None:
    """Models are not looked at."""
    with pytest.raises(lmccheck.LmcError, match=message):
        lmccheck.set_connectivity([], **SMALL, **options)


def test_a_model_whose_loss_is_not_finite_is_named() -> None:
    """As linear_connectivity names an endpoint."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    states[1] = {name: tensor * (1e25 if "weight" in name else 1) for name, tensor in states[1].items()}
    many = lmccheck.align_many(states, **SMALL)
    with pytest.raises(lmccheck.SourceError, match=r"model 1: its cross_entropy on data .* is nan at sample"):
        lmccheck.barrier_matrix(many)
    with pytest.raises(lmccheck.LmcError, match="barrier_matrix: points = True"):
        lmccheck.barrier_matrix(many, points=True)
