"""What fits a network and what does not: names, shapes, kinds of numbers; losses of single samples by hand."""

from __future__ import annotations

import math
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Written
from networks.small import seeded, small_mlp
from safetensors.torch import save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.network.loss import load_loss, measured
from lmccheck.network.model_set import load_set
from lmccheck.properties.remarks import twin_remarks
from lmccheck.store.files import sha256_of

GIVEN: dict[str, Any] = {"model": small_mlp, "data": (torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64))}


def states(**changes: Tensor | None) -> list[dict[str, Tensor]]:
    """Return two state dicts, the second with tensors replaced; None removes one."""
    first, second = (seeded(small_mlp, k) for k in (0, 1))
    second = {name: changes.get(name, tensor) for name, tensor in {**second, **changes}.items()}
    return [first, {name: tensor for name, tensor in second.items() if tensor is not None}]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_tensor_of_one_checkpoint_only_is_refused_in_either(swapped: bool) -> None:
    """Whichever of the two has it, it is missing from the other."""
    given = states(**{"2.bias": None})
    with pytest.raises(CheckpointError, match=r"tensor '2\.bias' is missing, state dict"):
        lmccheck.load_pair(*(given[::-1] if swapped else given), **GIVEN)


def test_a_tensor_of_as_many_numbers_in_another_shape_is_refused() -> None:
    """A transposed weight is another weight, also where the checkpoints agree about it."""
    given = [{**state, "2.weight": state["2.weight"].T.contiguous()} for state in states()]
    with pytest.raises(CheckpointError, match=r"has shape \(6, 5\), model small_mlp expects \(5, 6\)|expects \(5, 6\)"):
        lmccheck.load_pair(*given, **GIVEN)


def test_integers_are_no_weights() -> None:
    """In one checkpoint or in both: a whole number where the other has a float is another kind of number."""
    whole = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"'2\.bias' is int64, in state dict a it is float32"):
        lmccheck.load_pair(*states(**{"2.bias": whole}), **GIVEN)
    with pytest.raises(CheckpointError, match=r"'2\.bias' is int64, model"):
        lmccheck.load_pair(*({**state, "2.bias": whole} for state in states()), **GIVEN)


def test_names_no_network_has_are_refused() -> None:
    """Also where both checkpoints have them."""
    with pytest.raises(CheckpointError, match=r"tensor 'more' is unknown to model"):
        lmccheck.load_pair(*({**state, "more": torch.zeros(1)} for state in states()), **GIVEN)


def tied() -> nn.Module:
    """Two layers with one weight."""
    parts = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}
    parts["second"].weight = parts["first"].weight
    return Written(lambda s, x: s.second(s.first(x).relu()), **parts)


@pytest.mark.parametrize("kept", ["first.weight", "second.weight"])
def test_a_tied_tensor_comes_by_any_of_its_names(kept: str) -> None:
    """The name that is there stands for the other."""
    both = [seeded(tied, k) for k in (0, 1)]
    one = [{n: t for n, t in s.items() if not n.endswith("weight") or n == kept} for s in both]
    pair = lmccheck.load_pair(*one, **{**GIVEN, "model": tied})
    for name in ("first.weight", "second.weight"):
        assert torch.equal(pair.theta_b[name], both[1]["first.weight"])


def test_names_of_one_tensor_hold_the_same_numbers() -> None:
    """Where both are there and differ, neither is the network's."""
    both = [seeded(tied, k) for k in (0, 1)]
    lmccheck.load_pair(*both, **{**GIVEN, "model": tied})
    both[1]["second.weight"] = both[1]["second.weight"] + 1e-3
    with pytest.raises(
        CheckpointError, match=r"'first\.weight' and 'second\.weight' differ, in model Written they are one"
    ):
        lmccheck.load_pair(*both, **{**GIVEN, "model": tied})


def test_models_of_a_set_are_compared_with_the_first_one_each() -> None:
    """The second as well as the last."""
    good, bad = states()[0], {k: v for k, v in states()[1].items() if k != "0.bias"}
    for k in (1, 2):
        models = [good] * 3
        models[k] = bad
        with pytest.raises(
            CheckpointError, match=rf"model {k}: tensor '0\.bias' is missing, state dict model 0 has it"
        ):
            load_set(models, **GIVEN)
    with pytest.raises(CheckpointError, match=r"got 1 model\(s\), expected at least two"):
        load_set([good], **GIVEN)


def test_a_set_of_files_has_its_pins_names_and_pairs(tmp_path) -> None:
    """Pins are in the order of the models; models i and j are a and b of their pair; equal stems are told apart."""
    paths = [tmp_path / name / "model.safetensors" for name in ("one", "two")] + [tmp_path / "three.safetensors"]
    for k, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        save_file(seeded(small_mlp, k), str(path))
    pins = [sha256_of(path) for path in paths]
    models = load_set(paths, sha256=pins, **GIVEN)
    assert models.names == ("one", "two", "three")
    pair = models.pair(2, 0)
    assert torch.equal(pair.theta_a["0.weight"], seeded(small_mlp, 2)["0.weight"])
    assert torch.equal(pair.theta_b["0.weight"], seeded(small_mlp, 0)["0.weight"])
    with pytest.raises(CheckpointError, match=r"three\.safetensors: sha256 is"):
        load_set(paths, sha256=[*pins[:2], pins[0]], **GIVEN)


def test_other_data_is_that_of_both_endpoints() -> None:
    """A pair measured on other data has it at a and at b."""
    pair = lmccheck.load_pair(*states(), **GIVEN)
    other = lmccheck.load_pair(*states(), **GIVEN).data
    moved = pair.measured_on(other, other)
    assert moved.a.network.data is moved.b.network.data is other
    assert moved.a.network is moved.b.network


def test_cross_entropy_of_several_places_is_their_mean_by_class() -> None:
    """Logits (n, classes, places): classes along dimension 1, in float64 also of bfloat16 logits; errors likewise."""
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(1))
    values, wrong = measured(load_loss("cross_entropy"), logits, targets, "data")
    log = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    for k in range(3):
        own = [float(log[k, int(targets[k, place]), place]) for place in range(5)]
        assert float(values[k]) == pytest.approx(-sum(own) / 5, abs=1e-14)
        assert wrong is not None
        missed = [int(log[k, :, place].argmax()) != int(targets[k, place]) for place in range(5)]
        assert float(wrong[k]) == pytest.approx(sum(missed) / 5)


def test_classes_are_those_the_model_has() -> None:
    """0 to one less than its outputs."""
    logits = torch.zeros(2, 3)
    for low, high, fits in ((0, 2, True), (0, 3, False), (-1, 2, False)):
        targets = torch.tensor([low, high])
        if fits:
            measured(load_loss("cross_entropy"), logits, targets, "data")
            continue
        with pytest.raises(SourceError, match=rf"holds classes {low}..{high}, the model has 3 outputs"):
            measured(load_loss("cross_entropy"), logits, targets, "data")


def test_units_of_losses_are_those_of_their_formulas() -> None:
    """Natural logarithms are nats; of a loss of the user's own neither unit nor convexity is known."""
    units = {"cross_entropy": "nats", "next_token": "nats", "mse": "squared error"}
    assert {name: load_loss(name).unit for name in units} == units
    own = load_loss(lambda outputs, targets: outputs.sum(1))
    assert (own.unit, own.convex, own.errors) == ("loss", False, None)


def test_losses_of_the_users_own_are_added_up_in_float64() -> None:
    """Sums of float32 losses would lose what float64 keeps."""
    values, _ = measured(load_loss(lambda outputs, targets: outputs[:, 0]), torch.ones(3, 1), torch.zeros(3), "data")
    assert values.dtype == torch.float64


def test_tokens_that_do_not_count_are_left_out_of_errors_and_losses() -> None:
    """Of four predictions two count, one of them wrong: half, not a quarter."""
    targets = torch.tensor([[0, 1, -100, 2, -100]])
    logits = torch.zeros(1, 5, 3, dtype=torch.float64)
    logits[0, 0, 1] = logits[0, 2, 0] = 5.0  # token 1 is foreseen, token 3 is not
    values, wrong = measured(load_loss("next_token"), logits, targets, "data")
    assert wrong is not None
    assert wrong.tolist() == [0.5]
    rest = math.log(math.exp(5.0) + 2)
    assert values.tolist() == [pytest.approx(((rest - 5.0) + rest) / 2, abs=1e-12)]


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "mend"),
    [
        ("cross_entropy", (6, 3), torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 1.0]), 'loss = "mse" for a regression'),
        ("cross_entropy", (6, 3), torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 1.0]), "targets.long()"),
        ("cross_entropy", (6, 5, 3), torch.zeros(6, 5, dtype=torch.int64), 'loss = "next_token" for a language model'),
        ("mse", (6, 1), torch.zeros(6), "targets.unsqueeze(-1)"),
        ("mse", (6,), torch.zeros(6, 1), "targets.squeeze(-1)"),
        ("mse", (6, 2), torch.zeros(6, 3), "reshape the targets"),
    ],
)
def test_the_mend_fits_what_was_forgotten(loss, outputs, targets, mend) -> None:
    """Numbers are no classes when cut to integers, and tokens no images: the loss is what was left out."""
    with pytest.raises(SourceError, match=f"; mend: {re.escape(mend)}"):
        measured(load_loss(loss), torch.zeros(outputs), targets, "data x")


def test_places_that_do_not_count_are_no_errors() -> None:
    """Of four places two count, one of them wrong; the loss is that of the same two."""
    targets = torch.tensor([[2, -100, 0, -100]])
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    logits[0, 2, :] = 5.0  # class 2 is the answer everywhere
    values, wrong = measured(load_loss("cross_entropy"), logits, targets, "data")
    assert wrong is not None
    assert wrong.tolist() == [0.5]
    rest = math.log(math.exp(5.0) + 2)
    assert values.tolist() == [pytest.approx(((rest - 5.0) + rest) / 2, abs=1e-12)]


def test_large_models_of_a_set_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held by nobody else they are gone, however many there are; read again they are the same, or the set says so."""
    monkeypatch.setattr("lmccheck.network.resident.KEPT", 0)
    paths = [tmp_path / f"{k}.safetensors" for k in range(5)]
    for k, path in enumerate(paths):
        save_file(seeded(small_mlp, k), str(path))
    models = load_set([*paths, seeded(small_mlp, 9)], **GIVEN)
    gone = weakref.ref(models.endpoints[3])
    assert gone() is None
    held = models.endpoints[3]
    assert models.endpoints[3] is held
    assert models.endpoints[5] is models.endpoints[5], "what is in no file is held"
    assert torch.equal(models.thetas[3]["0.weight"], seeded(small_mlp, 3)["0.weight"])
    result = lmccheck.set_connectivity(models, align="none", over="mean")
    monkeypatch.undo()
    kept = lmccheck.set_connectivity(load_set([*paths, seeded(small_mlp, 9)], **GIVEN), align="none", over="mean")
    assert result.value == kept.value
    assert result.details["leave_one_out"] == kept.details["leave_one_out"]
    del held
    save_file(seeded(small_mlp, 8), str(paths[3]))
    with pytest.raises(CheckpointError, match=r"3\.safetensors: (changed while|describes other)"):
        _ = models.endpoints[3]


def test_twins_in_a_set_are_named_in_one_reading(tmp_path: Path) -> None:
    """Each with the first that it equals; of two dtypes too, in the narrower."""
    state, other = seeded(small_mlp, 0), seeded(small_mlp, 1)
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert twin_remarks(load_set([state, other, dict(state)], **GIVEN).named_endpoints) == [
        "model 0 and model 2 are identical"
    ]
    assert twin_remarks(load_set([state, other, half], **GIVEN).named_endpoints) == [
        "model 0 and model 2 are identical"
    ]
