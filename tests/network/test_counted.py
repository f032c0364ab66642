"""Which targets are counted: samples in which none is leave every mean, and data in which none is are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks.small import perceptron, seeded
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.choose_units import SearchSettings
from lmccheck.dropping.search import find_dropped
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.network.loss import LOSSES, measured


def pair_of(targets: Tensor, calibration: Tensor | None = None, loss: object = "cross_entropy") -> lmccheck.ModelPair:
    """Return a pair of 4-6-5-3 networks on normal inputs."""
    x = torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(0))
    build = lambda: perceptron(4, 6, 5, 3)  # noqa: E731 - one line of a test
    given = None if calibration is None else (x[: len(calibration)] + 1, calibration)
    return lmccheck.load_pair(
        seeded(build, 1), seeded(build, 2), model=build, data=(x, targets), calibration=given, loss=loss, device="cpu"
    )


LABELS = torch.arange(60) % 3
HALF = torch.where(torch.arange(60) % 2 == 0, LABELS, -100)


def test_ignored_positions_leave_a_samples_mean_as_in_torch() -> None:
    """Over (n, classes, T): each sample's mean is torch's own of that sample, errors too."""
    logits = torch.randn(3, 5, 7)
    targets = torch.randint(0, 5, (3, 7))
    targets[0, :4] = targets[1, 6] = -100
    losses, errors = measured(LOSSES["cross_entropy"], logits, targets, "data")
    expected = [F.cross_entropy(logits[k : k + 1].double(), targets[k : k + 1]).item() for k in range(3)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert errors is not None
    right = logits.argmax(1) == targets
    assert errors.tolist() == pytest.approx([1 - int(right[k].sum()) / n for k, n in enumerate((3, 6, 7))])


def test_samples_in_which_nothing_is_counted_do_not_dilute() -> None:
    """Half of the labels taken away: the loss is that of the other half, not half of it; their number is said."""
    half, whole = pair_of(HALF), pair_of(LABELS)
    losses = Evaluator(whole.network, whole.theta_a).endpoint(whole.theta_a, "a", "a").losses
    found = lmccheck.linear_connectivity(half, align="none", points=3, limit=1.0)
    assert found.details["loss_a"] == pytest.approx(float(losses[::2].mean()), rel=1e-6)
    assert found.details["samples"] == 30
    assert "30 of 60 evaluation samples are left out: nothing in them is counted" in found.details["notes"]
    assert half.description["data"]["uncounted"] == 30


def test_batches_of_ones_own_lose_those_samples_too() -> None:
    """And a batch of nothing else is left out."""
    x = torch.randn(6, 4)
    batches = [(x[:3], torch.tensor([0, -100, 1])), (x[3:], torch.tensor([-100, -100, -100]))]
    state = seeded(lambda: perceptron(4, 3), 0)
    pair = lmccheck.load_pair(state, seeded(lambda: perceptron(4, 3), 1), model=perceptron(4, 3), data=batches)
    assert [batch.samples for batch in pair.data.batches] == [2]
    assert pair.data.batches[0].inputs.equal(x[[0, 2]])


@pytest.mark.parametrize("loss", ["cross_entropy", "next_token"])
def test_nothing_counted_is_an_error(loss: str) -> None:
    """Not a loss of 0."""
    targets = torch.full((60,) if loss == "cross_entropy" else (60, 4), -100)
    with pytest.raises(lmccheck.SourceError, match=r"nothing is counted: none of 60 sample\(s\) has a target that"):
        pair_of(targets, loss=loss)


def test_a_sequence_of_one_token_predicts_nothing() -> None:
    """There is no next one."""
    with pytest.raises(lmccheck.SourceError, match="nothing is counted"):
        pair_of(torch.zeros(60, 1, dtype=torch.long), loss="next_token")


@pytest.mark.parametrize(("bad", "held"), [(-1, r"-1\.\.2"), (3, r"0\.\.3")])
def test_other_negative_classes_are_refused(bad: int, held: str) -> None:
    """Only −100 is ignored."""
    targets = torch.cat([HALF[:-1], torch.tensor([bad])])
    with pytest.raises(lmccheck.SourceError, match=f"holds classes {held}, the model has 3 outputs"):
        lmccheck.linear_connectivity(pair_of(targets), align="none", limit=1.0)


def test_tokens_that_the_model_has_no_output_for_are_told() -> None:
    """The wrong tokenizer, in one line."""
    build = lambda: nn.Embedding(7, 7)  # noqa: E731 - one line of a test
    tokens = torch.randint(0, 7, (5, 4))
    targets = tokens.clone()
    targets[2, 3] = 9
    pair = lmccheck.load_pair(
        seeded(build, 0), seeded(build, 1), model=build, data=(tokens, targets), loss="next_token"
    )
    with pytest.raises(
        lmccheck.SourceError, match=r"holds tokens \d\.\.9, the model has 7 outputs; mend: the tokenizer"
    ):
        lmccheck.linear_connectivity(pair, align="none", limit=1.0)


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the first output where the second column of the targets is not 0."""
    return (outputs[:, 0] - targets[:, 0]) ** 2 * targets[:, 1]


def test_a_loss_of_ones_own_says_what_it_counts() -> None:
    """By an attribute; data of zeros alone are then refused, and others' zeros left out."""

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        return masked(outputs, targets)

    counting.counted = lambda targets: targets[:, 1] > 0  # type: ignore[attr-defined]  # as a user writes it
    targets = torch.stack([torch.randn(60), (torch.arange(60) % 3 == 0).float()], 1)
    assert pair_of(targets, loss=counting).data.samples == 20
    with pytest.raises(lmccheck.SourceError, match="nothing is counted"):
        pair_of(torch.zeros(60, 2), loss=counting)
    counting.counted = lambda targets: targets  # type: ignore[attr-defined]  # not one number a sample
    with pytest.raises(lmccheck.SourceError, match=r"its attribute counted returned shape \(60, 2\), expected \(60,\)"):
        pair_of(targets, loss=counting)


def test_a_loss_that_is_the_same_for_any_outputs_is_an_error() -> None:
    """Masks of zeros in a loss of one's own, which says nothing of them."""
    with pytest.raises(lmccheck.SourceError, match="is 0 whatever the model's outputs are"):
        lmccheck.linear_connectivity(pair_of(torch.zeros(60, 2), loss=masked), align="none", limit=1.0)


def test_searches_use_labelled_calibration_only() -> None:
    """Half of the labels taken away gives what the other half alone does."""
    found = []
    for calibration in (HALF, HALF[::2]):
        pair = pair_of(LABELS, calibration)
        if len(calibration) == 30:
            x = pair_of(LABELS, HALF).calibration.batches[0].inputs[::2]  # type: ignore[union-attr]  # it has some
            pair = pair.measured_on(pair.data, lmccheck.data.load.load_data((x, calibration)))
        settings = SearchSettings(keep=0.5, refit=True, seed=0, profile="dev")
        structure = pair.network.structure("test")
        found.append(find_dropped(pair.a, structure, [0], settings).best[0])
    assert found[0].loss == found[1].loss
    assert found[0].how == found[1].how


def test_unlabelled_calibration_serves_what_needs_no_labels() -> None:
    """Statistics and weights; a search that needs losses says so."""
    pair = pair_of(LABELS, torch.full((60,), -100))
    assert lmccheck.linear_connectivity(pair, limit=9.0, points=3).verdict == "pass"
    with pytest.raises(lmccheck.SourceError, match=r"needs losses on calibration data, got .*nothing is counted"):
        lmccheck.dropout_stability(pair, epsilon=9.0)
