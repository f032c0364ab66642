"""Inputs by name: loaded, traced, aligned and measured as positional ones are."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import nn

import lmccheck
from lmccheck.data.load import load_data
from lmccheck.errors import SourceError
from lmccheck.network.arguments import in_order
from lmccheck.network.loss import LOSSES, measured


class Tagger(nn.Module):
    """A language model that takes its inputs as those of transformers do."""

    def __init__(self, vocabulary: int = 11, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None, scale=1.0, *, bias=None):
        hidden = torch.relu(self.hidden(self.embed(input_ids))) * scale
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden)
        return logits if bias is None else logits + bias[:, None, None]


def weights(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tagger().state_dict()


GENERATOR = torch.Generator().manual_seed(3)
TOKENS = torch.randint(11, (8, 6), generator=GENERATOR)
MASK = (torch.arange(6) < torch.randint(3, 7, (8, 1), generator=GENERATOR)).long()


def test_an_encoding_goes_through_everything():
    """What a tokenizer returns gives what the same tensors in a tuple give: load, trace, align, calibrate, measure."""
    encoding = UserDict({"attention_mask": MASK, "input_ids": TOKENS})  # not in the order of the arguments
    given = {"model": Tagger, "loss": "next_token", "device": "cpu"}
    a, b = weights(1), weights(2)
    by_name = lmccheck.load_pair(a, b, data=encoding, calibration=[encoding], **given)
    targets = TOKENS.masked_fill(MASK == 0, -100)
    pair = ((TOKENS, MASK), targets)
    by_place = lmccheck.load_pair(a, b, data=pair, calibration=[pair], **given)
    for align in ("weight-matching", "activation-matching"):
        one, other = (lmccheck.linear_connectivity(p, align=align, points=3) for p in (by_name, by_place))
        assert one.details["losses"] == other.details["losses"]
        assert one.value == other.value
    assert by_name.network.spec.groups


def test_next_token_errors_are_of_the_tokens_that_count():
    """Of a sample with two counted tokens, one wrong: a half, whatever its length."""
    logits = torch.zeros(1, 6, 3)
    logits[0, 0, 1] = logits[0, 1, 2] = 5.0  # predicts 1, then 2, then 0
    targets = torch.tensor([[0, 1, 1, -100, -100, -100]])
    losses, errors = measured(LOSSES["next_token"], logits.double(), targets, "data")
    assert errors.tolist() == [0.5]
    right, wrong = torch.log_softmax(torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64), 0)[[1, 0]]
    assert losses.item() == pytest.approx(-(right + wrong).item() / 2, rel=1e-12)


def test_arguments_that_are_left_out_have_their_defaults():
    """Up to the last one that is given; what can be given by name only stays so."""
    module = Tagger()
    data = load_data({"input_ids": TOKENS, "scale": torch.ones(8, 1, 1), "labels": TOKENS})
    assert in_order(data, module).batches[0].inputs[1:2] == (None,)
    named = load_data({"input_ids": TOKENS, "bias": torch.ones(8), "labels": TOKENS})
    assert list(in_order(named, module).batches[0].inputs) == ["input_ids", "bias"]


def test_a_name_that_the_network_does_not_know():
    """Is told with the nearest, before anything runs."""
    data = load_data({"input_id": TOKENS, "labels": TOKENS})
    with pytest.raises(SourceError, match=r"input 'input_id' is unknown to the model \(did you mean 'input_ids'\?\)"):
        in_order(data, Tagger())


class Anything(Tagger):
    """Takes whatever is given by name, and ignores it, as models of libraries do."""

    def forward(self, input_ids, **others):
        return super().forward(input_ids)


def test_text_beside_the_tokens_is_told_by_its_key():
    """A column of texts is no input of any network, also of one that would take it."""
    data = load_data({"input_ids": TOKENS, "text": ["a"] * 8, "labels": TOKENS})
    for module in (Tagger(), Anything()):
        with pytest.raises(SourceError, match=r"input 'text' is unknown to the model; .*mend: leave it out"):
            in_order(data, module)


@pytest.mark.parametrize(
    ("loss", "logits", "targets", "words"),
    [
        ("cross_entropy", (4, 3), torch.eye(3)[[0, 1, 2, 0]], "is one-hot, .* mend: targets.argmax\\(1\\)$"),
        ("cross_entropy", (4, 3), torch.eye(3).long()[[0, 1, 2, 0]], "is one-hot, .* mend: targets.argmax\\(1\\)$"),
        ("cross_entropy", (4, 3), torch.full((4, 3), 1 / 3), "is probabilities, .* or a loss of your own"),
        ("cross_entropy", (4, 3, 5), torch.eye(3)[torch.zeros(4, 5).long()].movedim(2, 1), "targets.argmax\\(1\\)"),
        ("next_token", (2, 6, 11), torch.eye(11)[TOKENS[:2]], "is one-hot, .* mend: targets.argmax\\(-1\\)"),
        ("cross_entropy", (4, 3), torch.zeros(4, 1).long(), "mend: targets.squeeze\\(1\\)"),
        ("cross_entropy", (4, 3), torch.tensor([0.0, 1.0, 2.0, 0.0]), "'targets' is float32, .* mend: targets.long()"),
    ],
)
def test_targets_that_are_no_class_indices(loss, logits, targets, words):
    """One-hot rows, probabilities, an axis too many, floats: each with its own mend."""
    with pytest.raises(SourceError, match=words):
        measured(LOSSES[loss], torch.zeros(logits), targets, "data")
