"""verify_dropout: what the theory may change passes, whatever else is handed in is refused, from memory and file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks.paths import masked, mlp_pair, structure_for
from networks.small import perceptron
from networks.witnesses import edited, honest, normed, pair_of, residual_normed, with_level
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmccheck
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.stability import StabilityWitness
from lmccheck.errors import CheckpointError, SymmetryError
from lmccheck.store import files

NETWORKS = {"chain": normed, "residual": residual_normed}
FIRST = {"chain": "0", "residual": "stem"}  # whose units come first: nothing that is dropped feeds it
LATER = {"chain": ("3", "4"), "residual": ("inner", "norm")}  # a layer that reads them, and the BatchNorm behind it
FIRST_NORM = {"chain": "1", "residual": "stem_norm"}


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: pytest.FixtureRequest) -> tuple[str, lmccheck.ModelPair, StabilityWitness]:
    pair = pair_of(NETWORKS[request.param]())
    return request.param, pair, honest(pair)


def refused(pair: lmccheck.ModelPair, witness: StabilityWitness, why: str, folder: Path) -> None:
    """Both the witness and the file of it are refused, in one line."""
    file = witness.save(folder / "forged.safetensors")
    for given in (witness, file):
        with pytest.raises(CheckpointError, match=why) as caught:
            lmccheck.verify_dropout(pair, given)
        assert "\n" not in str(caught.value)


def test_a_witness_is_of_the_weights_that_were_asked_about(tmp_path: Path) -> None:
    """Training goes on in the same memory before the file is written: it verifies on what was measured, as before."""
    torch.manual_seed(0)
    module = perceptron(4, 6, 3)
    data = (torch.randn(40, 4), torch.randint(0, 3, (40,)))
    given = {"model": perceptron(4, 6, 3), "data": data, "calibration": data, "loss": "cross_entropy"}
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    single = lmccheck.load_model(module.state_dict(), **given)
    result = lmccheck.dropout_stability(single, epsilon=9.0, profile="dev", refit=False)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(torch.randn_like(tensor))
    file = result.witness.save(tmp_path / "witness.safetensors")
    again = lmccheck.verify_dropout(lmccheck.load_model(first, **given), file)
    assert again.value == pytest.approx(result.value, abs=1e-12)


def test_honest_networks_pass_from_memory_and_file(
    made: tuple[str, lmccheck.ModelPair, StabilityWitness], tmp_path: Path
) -> None:
    """Halves drawn at random, refitted by hand, with other statistics behind them: all of it the theory may change."""
    name, pair, witness = made
    layer, norm = LATER[name]
    dropped = witness.found["a"][0]
    changes = {f"{layer}.weight": 1.3, f"{norm}.running_mean": 0.7, f"{norm}.running_var": 1.5, "head.weight": 0.9}
    for tensor, factor in changes.items():
        if tensor in dropped.weights:
            dropped = edited(dropped, tensor, lambda value, factor=factor: value * factor)
    free = with_level(witness, dropped)
    for given in (witness, free, free.save(tmp_path / "free.safetensors")):
        result = lmccheck.verify_dropout(pair, given)
        assert result.passed
        assert result.limit == 100.0  # the witness's own


FORGERIES: dict[str, tuple[Callable[[str, Dropped], Dropped], str]] = {
    "producer rows by 1e-9": (
        lambda n, d: edited(d, f"{FIRST[n]}.weight", lambda w: w + 1e-9), r"incoming weights of .* are not those"
    ),
    "a producer's bias": (lambda n, d: edited(d, f"{FIRST[n]}.bias", lambda b: b + 1), r"incoming weights of"),
    "statistics before what is dropped": (
        lambda n, d: edited(d, f"{FIRST_NORM[n]}.running_mean", lambda m: m + 0.1), r"incoming weights of"
    ),
    "a variance before it": (
        lambda n, d: edited(d, f"{FIRST_NORM[n]}.running_var", lambda m: m * 2), r"incoming weights of"
    ),
    "a gain behind it": (lambda n, d: edited(d, f"{LATER[n][1]}.weight", lambda g: g * 1.01), r"incoming weights of"),
    "a shift behind it": (lambda n, d: edited(d, f"{LATER[n][1]}.bias", lambda g: g + 0.01), r"incoming weights of"),
    "a count": (
        lambda n, d: edited(d, f"{LATER[n][1]}.num_batches_tracked", lambda k: k + 1), r"tracked' is not that"
    ),
    "swapped names": (
        lambda n, d: replace(d, weights={
            **d.weights, f"{FIRST_NORM[n]}.weight": d.weights[f"{FIRST_NORM[n]}.bias"],
            f"{FIRST_NORM[n]}.bias": d.weights[f"{FIRST_NORM[n]}.weight"],
        }), r"incoming weights of"
    ),
    "a negative variance": (
        lambda n, d: edited(d, f"{LATER[n][1]}.running_var", lambda v: -v), r"running variance .* is negative"
    ),
    "an extra tensor": (
        lambda n, d: replace(d, weights={**d.weights, "extra": torch.ones(2)}), "tensor 'extra' is none of the network"
    ),
    "another dtype": (lambda n, d: edited(d, f"{LATER[n][0]}.weight", lambda w: w.float()), r"32, expected .* float"),
    "another shape": (
        lambda n, d: edited(d, f"{LATER[n][0]}.weight", lambda w: w.T.contiguous()),
        r"got \(8, 6\) float64, expected \(6, 8\)",
    ),
    "NaN": (lambda n, d: edited(d, f"{LATER[n][0]}.bias", lambda b: b * math.nan), "bias' is not finite"),
    "infinity": (lambda n, d: edited(d, f"{LATER[n][0]}.weight", lambda b: b + math.inf), "weight' is not finite"),
    "a unit twice": (
        lambda n, d: replace(d, keep={g: torch.cat([u[:1], u[:1]]) for g, u in d.keep.items()}), "no list of"
    ),
    "a unit there is not": (
        lambda n, d: replace(d, keep={g: u + 100 for g, u in d.keep.items()}), r"is none of its \d"
    ),
    "a negative unit": (lambda n, d: replace(d, keep={g: u - 100 for g, u in d.keep.items()}), r"is none of its \d"),
    "units as floats": (lambda n, d: replace(d, keep={g: u.double() for g, u in d.keep.items()}), "no list of"),
    "groups of another": (
        lambda n, d: replace(d, keep={g + "x": u for g, u in d.keep.items()}), "units are kept in .*, expected"
    ),
    "a column that is read": (
        lambda n, d: edited(d, f"{LATER[n][0]}.weight", lambda w: w + 1), "reads units of .* that are not kept"
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_the_theory_does_not_change_is_refused(
    made: tuple[str, lmccheck.ModelPair, StabilityWitness], forgery: str, tmp_path: Path
) -> None:
    """Every tensor is compared: rows, biases, norms, counts, names, shapes, dtypes, units; in residual networks too."""
    name, pair, witness = made
    change, why = FORGERIES[forgery]
    refused(pair, with_level(witness, change(name, witness.found["a"][0])), why, tmp_path)


def test_another_network_is_no_dropped_version(
    made: tuple[str, lmccheck.ModelPair, StabilityWitness], tmp_path: Path
) -> None:
    """b's own halves, handed in as a's, and with a's first rows, are refused: gains and shifts are b's still."""
    name, pair, witness = made
    other = witness.found["b"][0]
    refused(pair, with_level(witness, other), "incoming weights of", tmp_path)
    own = witness.found["a"][0].weights
    grafted = {n: own[n] if n.split(".")[0] in (FIRST[name], FIRST_NORM[name]) else t for n, t in other.weights.items()}
    refused(pair, with_level(witness, replace(other, weights=grafted)), "incoming weights of", tmp_path)


def test_what_comes_before_a_level_stays() -> None:
    """With units dropped from the second layer on, the second layer's own rows are θ's: it reads no dropped unit."""
    pair = mlp_pair([5, 8, 6, 3])
    witness = honest(pair)
    moved = edited(witness.found["b"][1], "2.weight", lambda w: w + 1e-6)
    with pytest.raises(SymmetryError, match=r"level 1 of b .*: incoming weights of 2 in tensor '2\.weight'"):
        lmccheck.verify_dropout(pair, with_level(witness, moved, "b", 1))


def test_no_number_of_a_dropped_unit_is_read() -> None:
    """One outgoing weight of one dropped unit that is not zero is enough."""
    pair = mlp_pair([5, 8, 6, 3])
    witness = honest(pair)
    gone = int(structure_for(pair).others("0", witness.found["a"][0].keep["0"])[0])

    def read(weight: Tensor) -> Tensor:
        weight[2, gone] = 1e-12
        return weight

    with pytest.raises(SymmetryError, match=r"tensor '2\.weight' reads units of 0 that are not kept"):
        lmccheck.verify_dropout(pair, with_level(witness, edited(witness.found["a"][0], "2.weight", read)))


def test_biases_of_dropped_units_stay() -> None:
    """A refit writes the constants of units that are read; those of dropped ones are θ's."""
    pair = mlp_pair([5, 8, 6, 3])
    witness = honest(pair)
    dropped = witness.found["a"][0]
    gone = structure_for(pair).others("2", dropped.keep["2"])[0]
    for unit, passes in ((int(dropped.keep["2"][0]), True), (int(gone), False)):
        moved = edited(dropped, "2.bias", lambda b, unit=unit: b.index_fill(0, torch.tensor([unit]), 3.0))
        if passes:
            assert lmccheck.verify_dropout(pair, with_level(witness, moved)).passed
        else:
            with pytest.raises(SymmetryError, match=r"incoming weights of 2 in tensor '2\.bias'"):
                lmccheck.verify_dropout(pair, with_level(witness, moved))


def test_every_level_of_both_and_no_more(made: tuple[str, lmccheck.ModelPair, StabilityWitness]) -> None:
    """A missing level, a strange one, a third endpoint and a level under another's number are refused."""
    _, pair, witness = made
    one = witness.found["a"][0]
    others = {
        "no network of a": {**witness.found, "a": {}},
        "level 9 of a .* none of the network's": {
            **witness.found,
            "a": {**witness.found["a"], 9: replace(one, level=9)},
        },
        "networks of 'c'": {**witness.found, "c": witness.found["a"]},
        "it says level 1|level 1 is none|units are kept in": {
            **witness.found,
            "b": {**witness.found["b"], 0: replace(witness.found["b"][0], level=1)},
        },
    }
    for why, found in others.items():
        with pytest.raises(SymmetryError, match=why):
            lmccheck.verify_dropout(pair, replace(witness, found=found))


def test_one_rounding_rule(tmp_path: Path) -> None:
    """.58 of 50 units are 29 (floats say 28.999…): search, gate and verifier agree, also for a share per group."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 4, generator=generator), torch.arange(32) % 3
    net = perceptron(4, 50, 3)
    pair = lmccheck.load_pair(
        net.state_dict(), perceptron(4, 50, 3).state_dict(), model=net, data=data, calibration=data
    )
    assert int(0.58 * 50) == 28
    for keep in (0.58, {"0": 0.58}):
        found = lmccheck.dropout_stability(pair, keep=keep, epsilon=50.0, refit=False, profile="dev")
        assert found.details["found"]["a"][0]["kept"] == {"0": 29}
        file = found.witness.save(tmp_path / "w.safetensors")
        for given in ({}, {"keep": keep}):
            again = lmccheck.verify_dropout(pair, file, **given)
            assert again.value == pytest.approx(found.value, abs=1e-12)
            assert again.limit == 50.0
            assert any("more than half" in note for note in again.details["notes"])
        with pytest.raises(SymmetryError, match="29 of 50 units are kept in 0, expected at most 28"):
            lmccheck.verify_dropout(pair, file, keep=0.57)


def test_shares_per_group_are_remembered(tmp_path: Path) -> None:
    """{"0": .25, "2": .5} of 8 and 6 units: 2 and 3; the file says so, and one unit more is refused."""
    pair = mlp_pair([5, 8, 6, 3])
    keep = {"0": 0.25, "2": 0.5}
    found = lmccheck.dropout_stability(pair, keep=keep, epsilon="900%", profile="dev")
    file = found.witness.save(tmp_path / "w.safetensors")
    again = lmccheck.verify_dropout(pair, file)
    assert again.details["kept"]["a"] == {"0": 2, "2": 3}
    assert again.details["keep"] == keep
    assert again.details["limit_given"] == "900%"
    structure = structure_for(pair)
    with pytest.raises(SymmetryError, match="4 of 8 units are kept in 0, expected at most 2"):
        lmccheck.verify_dropout(pair, with_level(found.witness, masked(structure, dict(pair.theta_a), 0)))


def test_the_limit_of_old_witnesses(tmp_path: Path) -> None:
    """Given wins over the file's; where neither says one, .05 and ½ are used, and that is said with the mend."""
    pair = mlp_pair([5, 8, 6, 3])
    witness = honest(pair, epsilon=None)
    old = replace(witness, keep=None).save(tmp_path / "old.safetensors")
    result = lmccheck.verify_dropout(pair, old)
    assert (result.limit, result.details["keep"], result.details["limit_from"]) == (0.05, 0.5, "default")
    assert any("mend: give epsilon" in note for note in result.details["notes"])
    file = replace(witness, epsilon=0.25).save(tmp_path / "new.safetensors")
    assert lmccheck.verify_dropout(pair, file).limit == 0.25
    assert lmccheck.verify_dropout(pair, file, epsilon=7).limit == 7.0


def test_a_value_equal_to_the_limit_passes() -> None:
    """ε ≤ limit, not <: the next number below fails."""
    pair = mlp_pair([5, 8, 6, 3])
    for measured in (
        lambda epsilon: lmccheck.dropout_stability(pair, epsilon=epsilon, profile="dev"),
        lambda epsilon: lmccheck.verify_dropout(pair, honest(pair), epsilon=epsilon),
    ):
        value = measured(100.0).value
        assert value > 0
        assert measured(value).verdict == "pass"
        assert measured(math.nextafter(value, 0.0)).verdict == "fail"


def test_what_a_file_says_is_read_without_trust(tmp_path: Path) -> None:
    """Another format, a share that is none, a limit that is none, other bytes under the old hash: one line each."""
    pair = mlp_pair([5, 8, 6, 3])
    file = honest(pair).save(tmp_path / "w.safetensors")
    held, told = load_file(file), files.read_header(file).metadata
    facts = json.loads(told["lmccheck"])
    for change, why in (
        ({"format": "dropout_stability 2"}, "format: got .*expected 'dropout_stability 1'"),
        ({"keep": 7.0}, "keep = 7.0"),
        ({"keep": {"nowhere": 0.5}}, "group 'nowhere' is unknown"),
        ({"epsilon": "much"}, "limit = 'much'"),
        ({"theta": {}}, "another a"),
    ):
        save_file(held, file, metadata={"lmccheck": json.dumps({**facts, **change})})
        with pytest.raises(CheckpointError, match=why):
            lmccheck.verify_dropout(pair, file)
    name = next(name for name in held if name.endswith("4.weight"))
    save_file({**held, name: held[name] * 2}, file, metadata=told)
    with pytest.raises(CheckpointError, match=r"its content is not what 'lmccheck\.sha256' in its metadata says"):
        lmccheck.verify_dropout(pair, file)


def test_a_share_that_lets_more_stay_is_said(made: tuple[str, lmccheck.ModelPair, StabilityWitness]) -> None:
    """keep = 1 holds of networks that read half, and says nothing of networks that read all: a note says so."""
    _, pair, witness = made
    found = lmccheck.verify_dropout(pair, witness, keep=1.0, epsilon="9000%")
    assert any("keep = 1.0 lets more units stay than these networks read" in note for note in found.details["notes"])
    own = lmccheck.verify_dropout(pair, witness, epsilon="9000%")
    assert not any("lets more units stay" in note for note in own.details["notes"])
