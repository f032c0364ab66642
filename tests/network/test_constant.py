"""The best constant answer: its figures by hand, and what it takes to beat it."""

from __future__ import annotations

from math import log

import pytest
import torch

from lmccheck.data.load import load_data
from lmccheck.network.constant import ConstantAnswer, constant_answer
from lmccheck.network.loss import load_loss


def answer(loss: str, *targets: torch.Tensor) -> ConstantAnswer:
    """Return the constant answer to batches of targets."""
    data = load_data([(torch.zeros(len(batch), 1), batch) for batch in targets])
    found = constant_answer(data, load_loss(loss))
    assert found is not None
    return found


def test_classes_have_the_entropy_of_their_frequencies_with_its_bias() -> None:
    """Three quarters and a quarter of 40: 0.5623 nats, and (2 − 1)/80 more; the majority errs in a quarter."""
    found = answer("cross_entropy", torch.tensor([0] * 30), torch.tensor([4] * 10))
    entropy = 0.75 * log(4 / 3) + 0.25 * log(4)
    assert found.lowest == pytest.approx(entropy, abs=1e-12)
    assert found.loss == pytest.approx(entropy + 1 / 80, abs=1e-12)
    assert (found.error, found.counted, found.classes) == (0.25, 40, 2)


def test_positions_weigh_as_the_loss_weighs_them() -> None:
    """Every sample alike, and in it every counted position: two classes at ½·1 + ½·½ and ½·½, not at 2/3 and 1/3."""
    targets = torch.tensor([[0, -100], [0, 1]])
    found = answer("cross_entropy", targets)
    assert found.lowest == pytest.approx(0.75 * log(4 / 3) + 0.25 * log(4), abs=1e-12)
    assert found.counted == 3
    squares = 0.25 + 0.0625 + 0.0625  # Σw² of weights ½, ¼, ¼: as many as 1/Σw² of equal weight
    assert found.loss - found.lowest == pytest.approx(squares / 2)
    assert found.samples == 2


def test_the_first_token_is_never_predicted() -> None:
    """Tokens from the second on: three of class 2 and one of class 1."""
    found = answer("next_token", torch.tensor([[7, 2, 2], [7, 2, 1]]))
    assert found.lowest == pytest.approx(0.75 * log(4 / 3) + 0.25 * log(4), abs=1e-12)


def test_numbers_have_the_mean_variance_of_their_coordinates() -> None:
    """About the mean of each: 4 and 0, their mean 2, and n/(n − 1) for the mean that is fitted; far from zero too."""
    targets = torch.tensor([[1.0, 5.0], [5.0, 5.0]]) + 1e6
    found = answer("mse", targets, targets)
    assert found.lowest == pytest.approx(2.0, rel=1e-6)
    assert found.loss == pytest.approx(2.0 * 4 / 3, rel=1e-6)


def test_a_loss_of_ones_own_has_none() -> None:
    """Nothing is assumed of it."""
    data = load_data((torch.zeros(4, 1), torch.zeros(4)))
    assert constant_answer(data, load_loss(lambda outputs, targets: outputs[:, 0])) is None


@pytest.mark.parametrize(
    ("loss", "error", "beaten"),
    [
        (0.5, 0.4, True),
        (8.0, 0.1, True),  # overconfident, and right far more often than the majority
        (0.3, 0.5, True),  # no fewer mistakes, but better probabilities
        (log(2), 0.5, False),  # the constant answer itself
        (log(2) + 1e-3, 0.5, False),
        (5.0, 0.77, False),
        (log(2) - 1e-3, 0.49, False),  # what luck gives on 200 samples
    ],
)
def test_what_beats_it(loss: float, error: float, beaten: bool) -> None:
    """Lower loss or fewer mistakes, by more than luck gives."""
    assert answer("cross_entropy", torch.arange(200) % 2).beaten(loss, error) is beaten


def test_rare_classes_are_beaten_by_better_probabilities() -> None:
    """One in a hundred: a network that always answers the majority, at half the loss, is of use."""
    found = answer("cross_entropy", (torch.arange(1000) % 100 == 0).long())
    assert found.lowest == pytest.approx(0.0560, abs=1e-4)
    assert found.beaten(0.03, 0.01) is True
    assert found.beaten(0.0561, 0.01) is False


def test_one_class_cannot_be_beaten() -> None:
    """However few there are: a constant answer is always right."""
    found = answer("cross_entropy", torch.full((5,), 3))
    assert found.perfect
    assert found.beaten(0.0, 0.0) is False
    assert answer("mse", torch.full((5,), 3.25)).perfect


def test_few_targets_of_many_classes_decide_nothing() -> None:
    """Below ten of each: whether a network does better is not known, unless it does."""
    found = answer("cross_entropy", torch.arange(29) % 3)
    assert (found.needed, found.few) == (30, True)
    assert found.beaten(9.0, 0.9) is None
    assert found.beaten(0.1, 0.0) is True
    assert not answer("cross_entropy", torch.arange(30) % 3).few


def test_many_tokens_of_a_large_vocabulary_answer_for_one_another() -> None:
    """Below ten of each, but a thousand in all: every token by the frequencies of the others, which is an upper bound.

    4,000 tokens drawn uniformly from 2,000 have ln 2,000 = 7.6 nats, of which their own frequencies read 7.33.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 2000, (40, 101), generator=generator)
    found = answer("next_token", tokens)
    assert found.few
    assert found.lowest < 7.4
    assert found.held_out is not None
    assert log(2000) <= found.held_out < 8.2
    assert found.beaten(9.29, 0.999) is False
    assert found.beaten(7.6, 0.999) is None
    assert found.beaten(0.49, 0.1) is True


def test_positions_of_a_sample_may_all_be_alike() -> None:
    """40 images of one class each are 40 targets, however many pixels they have: .79 of what luck gives is no use."""
    alike = (torch.arange(40) % 4 == 0).long()[:, None, None].expand(40, 32, 32)
    one = answer("cross_entropy", alike[:, 0, 0])
    many = answer("cross_entropy", alike)
    assert (many.lowest, many.luck) == pytest.approx((one.lowest, one.luck), abs=1e-9)
    assert many.beaten(many.lowest - 0.79 * many.luck, 0.2) is False


@pytest.mark.parametrize("at_once", [1 << 22, 6])
def test_every_position_has_a_constant_answer_of_its_own(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Class 0 above, 1 below, and 1 of 3 at random in a column: what is there without looking is not learnt."""
    monkeypatch.setattr("lmccheck.network.constant.AT_ONCE", at_once)
    targets = torch.zeros(60, 4, 2, dtype=torch.long)
    targets[:, 2:] = 1
    targets[:, 1, 1] = torch.arange(60) % 3
    targets[:, 3, 0] = -100
    found = answer("cross_entropy", targets[:25], targets[25:])
    assert found.name == "class frequencies of each position"
    assert found.lowest == pytest.approx(log(3) / 7)  # one of seven counted positions
    assert found.error == pytest.approx(2 / 3 / 7)
    assert found.loss == pytest.approx(log(3) / 7 + 2 / (2 * 60 * 7))  # two free shares of 420 targets
    assert found.beaten(0.2, 0.1) is False


def test_positions_of_few_samples_have_no_frequencies_of_their_own() -> None:
    """Ten of each class at every position, or the frequencies of all positions serve; so where shapes differ."""
    fixed = torch.tensor([0, 1]).expand(19, 2)
    assert answer("cross_entropy", fixed).lowest == pytest.approx(log(2))
    assert answer("cross_entropy", fixed, fixed[:1]).perfect
    assert answer("cross_entropy", fixed, torch.tensor([[0, 1, 0, 1]])).lowest == pytest.approx(log(2))
