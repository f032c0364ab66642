"""dropout_stability as users see it: shipped networks pass, failures say why, witnesses are checked anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import Written
from networks.dropping import case
from networks.paths import mlp_pair
from networks.quick import slowly
from torch import nn

import lmccheck
from lmccheck.dropping.stability import load_dropped, measure_dropped
from lmccheck.errors import CheckpointError
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.properties.dropout_stability import dropout_stability

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(("net", "limit"), [("mlp", 0.005), slowly("cnn", 0.02)])
def test_fixtures_are_stable_at_half_their_width(net: str, limit: float, tmp_path: Path) -> None:
    """The shipped digits networks pass with refit, on images that nothing was fitted to; the witness says so again."""
    files = [FIXTURES / f"{net}-seed{k}.safetensors" for k in (0, 1)]
    data = {name: str(FIXTURES / f"digits-{part}.safetensors") for name, part in
            (("data", "test"), ("calibration", "train"))}  # fmt: skip
    pair = lmccheck.load_pair(*files, model=f"models:{net}", base=FIXTURES, **data)
    result = dropout_stability(pair, epsilon=limit, profile="dev")
    assert result.passed
    assert result.value == max(x for row in result.details["epsilon"].values() for x in row)
    assert result.value < max(x for row in result.details["epsilon_plain"].values() for x in row)
    json.dumps(result.details)
    structure = pair.network.structure("tests")
    saved = result.witness.save(tmp_path / "witness.safetensors")
    fresh = pair.measured_on(pair.data, pair.calibration)
    evaluator = Evaluator(fresh.network, fresh.theta_a, fresh.theta_b)
    for side, levels in load_dropped(saved, fresh.named_endpoints, structure).found.items():
        losses = [measure_dropped(evaluator, structure, levels[i], side).loss for i in range(len(levels))]
        own = result.details[f"loss_{side}"]
        assert [loss - own for loss in losses] == pytest.approx(result.details["epsilon"][side], abs=1e-6)


def test_a_witness_of_another_pair_is_refused(tmp_path: Path) -> None:
    """A witness belongs to the numbers it was made from; other files are no witness."""
    pair, structure = case("relu")
    path = dropout_stability(pair, profile="dev").witness.save(tmp_path / "w.safetensors")
    other = pair.with_weights(pair.theta_a, pair.theta_a)
    with pytest.raises(CheckpointError, match="another b"):
        load_dropped(path, other.named_endpoints, structure)
    with pytest.raises(CheckpointError, match="no witness"):
        load_dropped(FIXTURES / "mlp-seed0.safetensors", pair.named_endpoints, structure)


def test_a_failure_says_what_was_searched() -> None:
    """Five lines: what, measured, where, worst and smallest, endpoints; and that a fail proves nothing."""
    pair, _ = case("cnn")
    result = dropout_stability(pair, epsilon=0.0, keep=0.2, profile="dev")
    assert result.verdict == "fail"
    lines = result.details["failure"]
    assert len(lines) == 5
    assert "not found within this budget (10 subsets, seed 0), which does not prove that there are none" in lines[0]
    worst = result.details["worst"]
    assert result.details["epsilon"][worst["side"]][worst["level"]] == worst["epsilon"] == result.value
    assert dropout_stability(pair, epsilon="10000%", keep=0.2, profile="dev").passed
    assert result.evaluations == 4 + sum(  # both ends, as they are and with statistics taken afresh: neither answers
        1 + (f["how"] != f["plain_how"]) for found in result.details["found"].values() for f in found
    )


@pytest.mark.parametrize("between", ["scaled", "cumulated"])
def test_every_hidden_layer_counts(between: str) -> None:
    """A hidden layer whose outputs are no units is left whole, never without a word, and the others' are dropped."""

    def run(s: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = s.first(x)
        hidden = hidden * 1.5 if between == "scaled" else hidden.cumsum(1)
        return s.head(torch.relu(s.second(hidden)))

    def net() -> nn.Module:
        return Written(run, first=nn.Linear(6, 1), second=nn.Linear(1, 8), head=nn.Linear(8, 3))

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 6, generator=generator), torch.arange(32) % 3
    pair = lmccheck.load_pair(net().state_dict(), net().state_dict(), model=net, data=data, calibration=data)
    for measured in (lmccheck.dropout_stability, lmccheck.noise_stability):
        details = measured(pair, profile="dev").details
        assert (list(details["whole"]), details["known"][:32]) == (["first.weight"], "inner: 'first.weight' left whole")
        assert any("left whole: 'first.weight' (" in n and "no path between" in n for n in details["notes"])


@pytest.mark.parametrize("ending", ["log_softmax", "scaled", "two heads"])
def test_no_last_layer_is_needed(ending: str) -> None:
    """Dropout and noise stability speak of units and losses: the output need not be a linear layer's."""

    def run(s: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(s.first(x))
        if ending == "two heads":
            return torch.cat([s.head(hidden), s.other(hidden)], 1)
        logits = s.head(hidden)
        return torch.log_softmax(logits, 1) if ending == "log_softmax" else torch.tanh(logits)

    def net() -> nn.Module:
        return Written(run, first=nn.Linear(6, 8), head=nn.Linear(8, 3), other=nn.Linear(8, 2))

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 6, generator=generator), torch.arange(64) % 3
    pair = lmccheck.load_pair(net().state_dict(), net().state_dict(), model=net, data=data, calibration=data)
    assert lmccheck.dropout_stability(pair, epsilon=100.0).passed
    assert lmccheck.noise_stability(pair, epsilon=100.0).passed
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="the network's output comes from"):
        lmccheck.ten_segment_path(pair, form="ten")


def test_a_saved_witness_is_measured_and_checked_anew(tmp_path: Path) -> None:
    """verify_dropout gives the same ε_i without searching, and refuses a network that is no dropped version."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(64, 6, generator=generator), torch.arange(64) % 3
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    states = [{n: torch.randn(t.shape, generator=generator) for n, t in net.state_dict().items()} for _ in range(2)]
    pair = lmccheck.load_pair(*states, model=net, data=data, calibration=data)
    found = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev")
    file = found.witness.save(tmp_path / "half.safetensors")
    again = lmccheck.verify_dropout(pair, file, epsilon=100.0)
    assert again.value == pytest.approx(found.value, abs=1e-12)
    for side in "ab":
        assert again.details["epsilon"][side] == pytest.approx(found.details["epsilon"][side], abs=1e-12)
    with pytest.raises(lmccheck.SymmetryError, match="4 of 9 units are kept in 0, expected at most 2"):
        lmccheck.verify_dropout(pair, file, keep=0.3)
    from lmccheck.dropping.stability import StabilityWitness

    for name, why in (("0.weight", "incoming weights of 0"), ("2.weight", "reads units of 0 that are not kept")):
        dropped = found.witness.found["a"][0]
        other = {**dropped.weights, name: dropped.weights[name] + 0.1}
        tampered = {**found.witness.found, "a": {**found.witness.found["a"], 0: replace(dropped, weights=other)}}
        with pytest.raises(lmccheck.SymmetryError, match=why):
            lmccheck.verify_dropout(pair, StabilityWitness(tampered, found.witness.theta))


def test_a_share_that_keeps_every_unit_is_no_test() -> None:
    """keep = 1 drops nothing: it is refused, not passed with ε = 0."""
    with pytest.raises(lmccheck.LmcError, match=r"keep = 1\.0 drops no unit.*mend: keep = 0\.5"):
        dropout_stability(mlp_pair([5, 6, 3]), keep=1.0)
