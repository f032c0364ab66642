"""What is said of every finding: useless endpoints, twins, data that was fitted to, limits that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks.small import perceptron, seeded
from torch import Tensor, nn

import lmccheck
from lmccheck.finding import Finding
from lmccheck.properties import run
from lmccheck.properties.registry import PROPERTIES, Property

INPUTS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :3].argmax(1)
TRAIN = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))


def useful(scale: float = 3.0) -> dict[str, Tensor]:
    """A network of 4-6-3 that knows the labels: the largest of the first three inputs."""
    first = torch.cat([torch.eye(4)[:3], -torch.eye(4)[:3]])
    last = torch.cat([torch.eye(3), -torch.eye(3)], 1)
    return {"0.weight": scale * first, "0.bias": torch.zeros(6), "2.weight": last, "2.bias": torch.zeros(3)}


def constant() -> dict[str, Tensor]:
    """The same network, answering the frequencies of the labels, whatever it sees."""
    logs = (torch.bincount(LABELS).double() / len(LABELS)).log().float()
    return {"0.weight": torch.zeros(6, 4), "0.bias": torch.zeros(6), "2.weight": torch.zeros(3, 6), "2.bias": logs}


def build() -> nn.Sequential:
    return perceptron(4, 6, 3)


def pair_of(a: Any, b: Any, targets: Tensor = LABELS, inputs: Tensor = INPUTS, **given: Any) -> lmccheck.ModelPair:
    settings = {"calibration": (TRAIN, TRAIN[:, :3].argmax(1)), "device": "cpu", **given}
    return lmccheck.load_pair(a, b, model=build, data=(inputs, targets), **settings)


LINE = {"align": "none", "points": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear_connectivity": {**LINE, "limit": 100.0},
    "dropout_stability": {"epsilon": 100.0},
    "noise_stability": {"epsilon": 100.0, "masks": 20},
    "ten_segment_path": {"epsilon": 100.0},
    "dropout_path": {"epsilon": 100.0},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_constant_endpoint_leaves_every_property_inconclusive(name: str, side: str) -> None:
    """Exactly the class frequencies: both figures are said; ``any`` accepts it, with a note."""
    ends = (constant(), useful()) if side == "a" else (useful(), constant())
    pair = pair_of(*ends)
    found = run(name, pair, profile="dev", **SETTINGS[name])
    assert found.verdict == "inconclusive"
    text = found.details["failure"][0]
    assert f"{side} answers no better than the class frequencies (1.09 ≈ 1.1 nats, " in text
    other = "b" if side == "a" else "a"
    assert f"while {other} does on the same data: {side} is damaged, untrained, or made for other data or" in text
    assert "endpoints =" not in text  # it would pass then, and half of it is of no use
    assert found.details["endpoints"]["no_better"] == [side]
    accepted = run(name, pair, profile="dev", endpoints="any", **SETTINGS[name])
    assert accepted.verdict == "pass"
    assert any("answers no better" in note for note in accepted.details["notes"])


@pytest.mark.parametrize("name", SETTINGS)
def test_useful_endpoints_keep_their_verdict(name: str) -> None:
    """And the constant answer's figures are in the details."""
    found = run(name, pair_of(useful(), useful(2.0)), profile="dev", **SETTINGS[name])
    assert found.verdict == "pass"
    assert found.details["endpoints"]["no_better"] == []
    assert found.details["endpoints"]["constant"]["loss"] == pytest.approx(1.1, abs=0.02)


def test_accepting_is_proposed_where_no_endpoint_answers() -> None:
    """Then it may be the data, or what is asked; where one does answer, the other is at fault."""
    text = run("linear_connectivity", pair_of(constant(), seeded(build, 1)), **LINE, limit=9.0).details["failure"][0]
    assert "wrong data, preprocessing, tokenizer, or an untrained model" in text
    assert 'endpoints = "any"' in text


@pytest.mark.parametrize("endpoints", ["useful", "any"])
def test_statistics_that_are_not_those_of_the_weights_are_named(endpoints: str) -> None:
    """An endpoint that only its BatchNorm statistics spoil: the loss it has with its own is said, and by whom."""

    def normed() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3))

    def state(mean: float) -> dict[str, Tensor]:
        module = normed()
        names = {"0.weight": "0.weight", "0.bias": "0.bias", "3.weight": "2.weight", "3.bias": "2.bias"}
        module.load_state_dict({**module.state_dict(), **{new: useful()[old] for new, old in names.items()}})
        module.train()
        module[1].momentum = 1.0
        with torch.no_grad():
            module(TRAIN)
        module[1].running_mean += mean
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    given = {"data": (INPUTS, LABELS), "calibration": (TRAIN, TRAIN[:, :3].argmax(1)), "device": "cpu"}
    a, b = state(0.0), state(40.0)
    b["0.weight"] = b["0.weight"] + 1e-3
    pair = lmccheck.load_pair(a, b, model=normed, **given)
    found = run("linear_connectivity", pair, **LINE, repair="none", limit=99.0, endpoints=endpoints)
    said = found.details["failure"] if endpoints == "useful" else found.details["notes"]
    (line,) = [line for line in said if "BatchNorm statistics are not those" in line]
    assert line.startswith("b: its BatchNorm statistics are not those of its weights: re-estimated on 100 calibration")
    mended = normed()
    mended.load_state_dict({**b, "1.running_mean": torch.zeros(6), "1.running_var": torch.ones(6)})
    mended[1].momentum = 1.0
    with torch.no_grad():
        mended.train()(TRAIN)
        loss = nn.functional.cross_entropy(mended.eval()(INPUTS), LABELS)
    assert float(line.rpartition(" ")[2]) == pytest.approx(float(loss), rel=1e-2)


def test_sets_and_widths_are_judged_too() -> None:
    """Every model of a set, and both widths."""
    given = {"data": (INPUTS, LABELS), "calibration": (TRAIN, TRAIN[:, :3].argmax(1)), "device": "cpu"}
    models = lmccheck.load_set([useful(), constant(), useful(2.0)], model=build, **given)
    found = run("set_connectivity", models, limit=100.0, points=3)
    assert found.verdict == "inconclusive"
    assert found.details["endpoints"]["no_better"] == ["model 1"]
    wide = lmccheck.load_widths(
        useful(), seeded(lambda: perceptron(4, 4, 3), 0), model_a=build, model_b=lambda: perceptron(4, 4, 3), **given
    )
    found = run("fused_connectivity", wide, limit=100.0, points=3)
    assert found.verdict == "inconclusive"
    assert found.details["endpoints"]["no_better"] == ["b"]


@pytest.fixture
def bare() -> Iterator[str]:
    """A property of a user's that looks at no loss."""

    def apart(pair: lmccheck.ModelPair, *, limit: float = 1.0) -> Finding:
        return Finding(0.0, limit)

    PROPERTIES.add("apart", Property("apart", "pair", "c", "q", "p", apart), __name__)
    yield "apart"
    del PROPERTIES._items["apart"]


@pytest.mark.parametrize(
    "kind",
    ["shuffled", "shifted", "unscaled", "one class", "untrained"],
)
def test_wrong_data_and_untrained_networks_are_inconclusive(kind: str) -> None:
    """A barrier of nothing between networks that know nothing is no pass."""
    a, b, x, y = useful(), useful(4.0), INPUTS, LABELS
    if kind == "shuffled":
        y = LABELS[torch.randperm(200, generator=torch.Generator().manual_seed(2))]
    elif kind == "shifted":
        y = (LABELS + 1) % 3
    elif kind == "unscaled":
        x = torch.cat([x[:, :1], x[:, 1:] * 0.01 + 5], 1)
        x = torch.stack([x[:, 3], x[:, 3], x[:, 3], x[:, 0]], 1)
    elif kind == "one class":
        y = torch.zeros_like(LABELS)
    else:
        a, b = seeded(build, 1), seeded(build, 2)
    found = run("linear_connectivity", pair_of(a, b, y, x), **LINE, limit=100.0)
    assert found.verdict == "inconclusive"
    assert lmccheck.linear_connectivity(pair_of(a, b, y, x), **LINE, limit=100.0).verdict == "pass"


def test_a_failure_says_nothing_about_merging_either() -> None:
    """What would fail is inconclusive, and says so."""
    pair = pair_of(useful(), seeded(build, 1))
    assert run("linear_connectivity", pair, **LINE, limit=0.0, endpoints="any").verdict == "fail"
    found = run("linear_connectivity", pair, **LINE, limit=0.0)
    assert found.verdict == "inconclusive"
    assert "by which it would fail" in found.details["failure"][1]


def test_unscaled_targets_of_a_regression_are_inconclusive() -> None:
    """The variance of the targets, as the loss has it."""
    y = torch.stack([INPUTS[:, 0], INPUTS[:, 1], INPUTS[:, 2]], 1)
    right = {**useful(1.0)}
    given = {"loss": "mse", "calibration": None}
    assert run("linear_connectivity", pair_of(right, useful(1.1), y, **given), **LINE, limit=9.0).verdict == "pass"
    found = run("linear_connectivity", pair_of(right, useful(1.1), 50 * y + 300, **given), **LINE, limit=9.0)
    assert found.verdict == "inconclusive"
    assert "the mean of the targets" in found.details["failure"][0]


def test_losses_without_a_constant_answer_are_not_judged() -> None:
    """And say so."""

    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs[:, 0] * targets).clamp(min=0)

    found = run("linear_connectivity", pair_of(useful(), constant(), loss=hinge), **LINE, limit=100.0)
    assert found.verdict == "pass"
    assert any(note.startswith("endpoints not judged: no constant answer") for note in found.details["notes"])


def test_few_samples_are_a_note() -> None:
    """Below ten of each class nothing is concluded."""
    pair = pair_of(constant(), useful(), LABELS[:25], INPUTS[:25])
    found = run("linear_connectivity", pair, **LINE, limit=100.0)
    assert found.verdict == "pass"
    assert "endpoints not judged: 25 counted targets of 3 class(es), 30 are needed" in found.details["notes"]


def test_many_tokens_may_still_decide_nothing() -> None:
    """A loss between what the frequencies of 1,920 tokens read and what those of the others give: which says so."""
    x = torch.randn(1920, 4, generator=torch.Generator().manual_seed(2))
    y = torch.multinomial(1 / torch.arange(1.0, 2001), 1920, True, generator=torch.Generator().manual_seed(3))
    logs = -torch.arange(1.0, 2001).log()
    a, b = ({"weight": torch.full((2000, 4), s), "bias": logs} for s in (1e-4, 2e-4))
    pair = lmccheck.load_pair(a, b, model=lambda: nn.Linear(4, 2000), data=(x, y), device="cpu")
    found = run("linear_connectivity", pair, **LINE, limit=1.0, endpoints="useful")
    assert found.verdict == "pass"
    assert any(note.startswith("endpoints not judged: 1920 counted targets of") for note in found.details["notes"])


def test_a_loss_of_ones_own_may_have_the_name_of_another() -> None:
    """A tenth of the cross entropy is no cross entropy: of random networks nothing may be concluded."""

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.1 * nn.functional.cross_entropy(outputs, targets, reduction="none")

    cross_entropy.__qualname__ = "cross_entropy"
    pair = pair_of(useful(), constant(), loss=cross_entropy)
    assert pair.loss.name.endswith(":cross_entropy")
    found = run("linear_connectivity", pair, **LINE, limit=100.0, endpoints="useful")
    assert any(note.startswith("endpoints not judged: no constant answer") for note in found.details["notes"])


def test_twins_are_said_in_pairs_and_sets() -> None:
    """By their weights, in the narrower of two dtypes."""
    half = {name: tensor.bfloat16() for name, tensor in seeded(build, 3).items()}
    found = lmccheck.linear_connectivity(pair_of(seeded(build, 3), half), **LINE, limit=100.0)
    assert any(note.startswith("a and b are identical") for note in found.details["notes"])
    models = lmccheck.load_set([useful(), constant(), useful()], model=build, data=(INPUTS, LABELS), device="cpu")
    notes = lmccheck.set_connectivity(models, limit=100.0, points=3).details["notes"]
    assert any(note.startswith("model 0 and model 2 are identical") for note in notes)


@pytest.mark.parametrize("shared", [0, 1, 7])
def test_samples_that_were_fitted_to_are_counted(shared: int) -> None:
    """One by one, in any order and dtype."""
    calibration = torch.cat([TRAIN, INPUTS[torch.arange(shared) * 11]]).double().flip(0)
    pair = pair_of(useful(), useful(2.0), calibration=(calibration, torch.zeros(len(calibration), dtype=torch.long)))
    notes = [n for n in lmccheck.linear_connectivity(pair, **LINE, limit=1.0).details["notes"] if "calibration" in n]
    said = f"{shared} of 200 evaluation samples are calibration data, too: what is measured was also fitted to"
    assert notes == ([said] if shared else [])


@pytest.mark.parametrize(("last", "said"), [(nn.Softmax(1), True), (nn.LogSoftmax(1), False), (nn.ReLU(), False)])
def test_probabilities_in_place_of_logits_are_said(last: nn.Module, said: bool) -> None:
    """Of softmax, not of its logarithm."""
    model = nn.Sequential(*build(), last)
    pair = lmccheck.load_pair(useful(), useful(2.0), model=model, data=(INPUTS, LABELS), device="cpu")
    notes = lmccheck.linear_connectivity(pair, **LINE, limit=1.0).details["notes"]
    assert any("outputs are probabilities" in note for note in notes) is said


@pytest.mark.parametrize(
    ("limit", "said"),
    [(0.05, None), (1e300, "excludes nothing"), ("5000%", "excludes nothing"), (1e-9, "below what float32 repeats")],
)
def test_limits_that_mean_nothing_are_said(limit: float | str, said: str | None) -> None:
    """At least as large as all that could be lost, or below rounding."""
    notes = lmccheck.linear_connectivity(pair_of(useful(), useful(2.0)), **LINE, limit=limit).details["notes"]
    assert [note for note in notes if note.startswith("limit")] == [note for note in notes if said and said in note]
    assert any(said in note for note in notes) if said else True


def test_a_limit_that_nobody_gave_is_said() -> None:
    """In Python, where there is a default."""
    pair = pair_of(useful(), useful(2.0))
    assert lmccheck.linear_connectivity(pair, **LINE).details["limits_by_default"] == {"limit": 0.05}
    assert lmccheck.linear_connectivity(pair, **LINE, limit=0.05).details["limits_by_default"] == {}


def test_a_property_that_measures_no_loss_has_its_endpoints_measured(bare: str) -> None:
    """Where a verdict depends on them, and only there."""
    pair = pair_of(useful(), constant())
    found = run(bare, pair, limit=1.0)
    assert (found.verdict, found.evaluations) == ("inconclusive", 2)
    assert (run(bare, pair, limit=1.0, endpoints="any").verdict, run(bare, pair, endpoints="any").evaluations) == (
        "pass",
        0,
    )


def test_a_loss_above_that_of_a_constant_is_said_though_errors_are_fewer() -> None:
    """Inputs of another scale: right more often than not, and far too sure of the rest."""
    x = INPUTS + torch.tensor([0.5, 0.0, 0.0, 0.0])
    notes = lmccheck.linear_connectivity(pair_of(useful(), useful(200.0), inputs=x), **LINE, limit=9e9).details["notes"]
    (said,) = [note for note in notes if "above the loss of a constant answer" in note]
    listed = said.partition("errors: ")[2].partition(";")[0]
    assert listed.startswith("b ")
    assert ", " not in listed
    notes = lmccheck.linear_connectivity(pair_of(useful(), useful(2.0)), **LINE, limit=1.0).details["notes"]
    assert not any("fewer errors" in note for note in notes)


def test_accepting_is_not_proposed_where_it_was_asked_for() -> None:
    """The mend names the key where it changes the verdict only."""
    pair = pair_of(constant(), useful())
    found = run("linear_connectivity", pair, endpoints="any", **LINE, limit=9.0)
    (note,) = [note for note in found.details["notes"] if "no better" in note]
    assert "endpoints =" not in note
