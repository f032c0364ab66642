"""One checkpoint by itself: what is measured of it is what a pair says of its endpoint, in words of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks.dropping import CASES, case
from networks.quick import slowly
from torch import Tensor

import lmccheck
from lmccheck.errors import CheckpointError, WitnessError
from lmccheck.finding import Failure

PER_END = {  # keys of details that hold an entry per endpoint
    "dropout_stability": ("epsilon", "epsilon_plain", "losses", "errors", "found"),
    "noise_stability": (),
}


def single(name: str, side: str = "a") -> lmccheck.SingleModel:
    """Return an endpoint of a case's pair, loaded by itself."""
    pair, _ = case(name)
    theta = {"a": pair.theta_a, "b": pair.theta_b}[side]
    module = CASES[name][0]()
    return lmccheck.load_model(theta, model=module, data=pair.data, calibration=pair.calibration)


@pytest.mark.parametrize(("name", "side"), [("tanh", "a"), slowly("cnn", "b")])
@pytest.mark.parametrize(
    ("check", "settings"),
    [
        ("dropout_stability", {"seed": 5}),
        ("noise_stability", {"seed": 5, "masks": 9, "diagnostics": True}),
        ("noise_stability", {"seed": 5, "masks": 9, "noise": "gaussian"}),
    ],
)
def test_a_pair_says_of_its_endpoint_what_the_model_says_of_itself(
    name: str, side: str, check: str, settings: dict[str, object]
) -> None:
    """Every number, bit for bit: subsets, refits and masks depend on the seed, not on what lies at the other end."""
    run = getattr(lmccheck, check)
    pair, one = run(case(name)[0], profile="dev", **settings), run(single(name, side), profile="dev", **settings)
    for key in PER_END[check]:
        assert pair.details[key][side] == one.details[key]["model"]
    for key in ("loss", "error"):
        assert pair.details[f"{key}_{side}"] == one.details[f"{key}_model"]
    if check == "noise_stability":
        assert pair.details[side] == one.details["model"]
        assert pair.details["gaussian"][side] == one.details["gaussian"]["model"]
        told = [found.details["diagnostics"] for found in (pair, one)]  # constants, or why there are none
        assert told[0].get(side, told[0].get("why")) == told[1].get("model", told[1].get("why"))
        assert one.value == one.details["model"]["quantile"]
    else:
        assert one.value == max(one.details["epsilon"]["model"])
        for level, dropped in pair.witness.found[side].items():
            again = one.witness.found["model"][level]
            assert all(torch.equal(units, again.keep[group]) for group, units in dropped.keep.items())
            assert all(torch.equal(tensor, again.weights[n]) for n, tensor in dropped.weights.items())


def masked_loss(theta: dict[str, Tensor], inputs: Tensor, targets: Tensor, factors: dict[int, Tensor]) -> float:
    """Return the loss of the tanh perceptron with hidden layer k's units multiplied by ``factors[k]``."""
    value = inputs
    for k in range(3):
        value = (value @ theta[f"{2 * k}.weight"].T + theta[f"{2 * k}.bias"]).tanh() * factors.get(k, 1.0)
    return float(F.cross_entropy(value @ theta["6.weight"].T + theta["6.bias"], targets))


def test_costs_are_those_of_a_masked_forward_pass() -> None:
    """Without refit θ_i multiplies the kept units by their scale and all others by 0, in every layer from i on."""
    one = single("tanh")
    found = lmccheck.dropout_stability(one, refit=False, profile="dev", keep=0.5)
    (batch,) = one.data.batches
    own = masked_loss(one.theta, batch.inputs, batch.targets, {})
    groups = [level[0] for level in found.details["levels"]]
    for level, dropped in found.witness.found["model"].items():
        scale = found.details["found"]["model"][level]["plain_scale"]
        factors = {}
        for k, group in enumerate(groups[level:], level):
            factors[k] = torch.zeros([9, 7, 8][k], dtype=torch.float64)
            factors[k][dropped.keep[group]] = scale[group] if isinstance(scale, dict) else scale
            assert len(dropped.keep[group]) == [4, 3, 4][k]
        expected = masked_loss(one.theta, batch.inputs, batch.targets, factors) - own
        assert found.details["epsilon"]["model"][level] == pytest.approx(expected, abs=1e-12)


def test_a_saved_witness_is_verified_without_training(tmp_path: Path) -> None:
    """The same ε from the file; a pair's witness, and that of another model, are told apart."""
    one, other = single("relu"), single("relu", "b")
    made = lmccheck.dropout_stability(one, epsilon=5.0, profile="dev")
    file = made.witness.save(tmp_path / "w.safetensors")
    again = lmccheck.verify_dropout(single("relu"), file)
    assert (again.verdict, again.limit) == ("pass", 5.0)
    assert again.details["epsilon"] == {"model": pytest.approx(made.details["epsilon"]["model"], abs=1e-12)}
    with pytest.raises(CheckpointError, match="was made from another model than that of state dict; mend: load what"):
        lmccheck.verify_dropout(other, file)
    both = lmccheck.dropout_stability(case("relu")[0], epsilon=5.0, profile="dev").witness
    with pytest.raises(CheckpointError, match=r"dropped networks of a pair, expected those of the model; mend: verify"):
        lmccheck.verify_dropout(one, both.save(tmp_path / "pair.safetensors"))
    with pytest.raises(CheckpointError, match=r"dropped networks of a single model, expected those of a and b; mend:"):
        lmccheck.verify_dropout(case("relu")[0], file)
    with pytest.raises(WitnessError, match="networks of 'a', expected those of the model"):
        lmccheck.verify_dropout(one, both)


@pytest.mark.parametrize("check", ["dropout_stability", "noise_stability", "gaussian", "verify_dropout"])
def test_what_is_said_of_one_model_names_no_endpoints(check: str) -> None:
    """Failures, notes and repr speak of the model."""
    one = single("cnn")
    given: dict[str, object] = {"epsilon": 0.0, "keep": 0.1, "refit": False, "profile": "dev"}
    if check == "noise_stability":
        given = {"epsilon": 0.0, "p": 0.9, "masks": 20}
    if check == "gaussian":
        check, given = "noise_stability", {"epsilon": 0.0, "noise": "gaussian", "size": 2.0, "masks": 20}
    if check == "verify_dropout":
        given = {"witness": lmccheck.dropout_stability(one, **given).witness}  # type: ignore[arg-type]  # by its name
    found = getattr(lmccheck, check)(one, **given)
    assert found.verdict == "fail"
    text = "\n".join([repr(found), *found.details["failure"], *found.notes])
    assert not re.search(r"endpoint|\bboth\b|\bpair\b| a is | of model|for model", text), text
    assert "the model" in text
    assert isinstance(found.finding.failure, Failure)
    assert f"its own loss: {found.details['loss_model']:.4g} nats" in text
    assert re.fullmatch(r"(layer=\d+)?", str(found.finding.where))


def test_a_property_of_something_else_says_what_it_is_of() -> None:
    """One line: what was got, what it is a property of, and how that is loaded."""
    one, (pair, _) = single("relu"), case("relu")
    models = lmccheck.load_set([pair.theta_a, pair.theta_b], model=pair.module, data=pair.data)
    for run, given, said in (
        (lmccheck.linear_connectivity, one, r"got a single model, expected a pair; mend: lmccheck.load_pair\("),
        (lmccheck.set_connectivity, one, r"got a single model, expected a set; mend: lmccheck.load_set\("),
        (lmccheck.dropout_stability, models, "got a set, expected a pair or a single model; mend: lmccheck.load_pair"),
        (lmccheck.dropout_stability, pair.a, "got an endpoint, expected a pair or a single model; mend: lmccheck.load"),
        (lmccheck.dropout_stability, "a.safetensors", r"got str, expected a pair or a single model; mend: .* or lmcc"),
    ):
        with pytest.raises(TypeError, match=rf"^{run.__name__}\(\): {said}"):
            run(given)
