"""Text meets a module: its vocabulary, its positions, and whether padding is text to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from networks.tokens import LINES, word_tokenizer, write_rows
from torch import nn

from lmccheck import SourceError, linear_connectivity, load_pair
from lmccheck.data.load import load_data
from lmccheck.network.arguments import in_order

pytest.importorskip("tokenizers")
WORDS = 24


class Causal(nn.Module):
    """A recurrent language model: what it says of a token depends on those before it."""

    def __init__(self, words: int = WORDS, backwards: bool = False, **config: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 8)
        self.inner = nn.GRU(8, 8, batch_first=True, bidirectional=backwards)
        self.head = nn.Linear(16 if backwards else 8, words)
        self.config = SimpleNamespace(**config)

    def forward(self, tokens):
        return self.head(self.inner(self.words(tokens))[0])


class Masked(Causal):
    """Likewise, given what a tokenizer returns."""

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.inner(self.words(input_ids) * attention_mask.unsqueeze(-1))[0])


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Four rows of text."""
    monkeypatch.chdir(tmp_path)
    word_tokenizer().save("words.json")
    write_rows(tmp_path / "t.jsonl", [{"text": line} for line in LINES])
    return load_data({"jsonl": "t.jsonl", "tokenizer": "words.json"}, tmp_path)


def test_tokens_go_to_a_forward_by_whatever_name_it_has(data):
    """With the mask where it takes one; without it where padding behind a row changes nothing of the row."""
    assert [t.shape for t in in_order(data, Masked()).batches[0].inputs] == [(4, 7), (4, 7)]
    assert [t.shape for t in in_order(data, Causal()).batches[0].inputs] == [(4, 7)]


def test_padding_that_would_be_text_is_refused(data, tmp_path):
    """A network that reads backwards sees it; rows of one length have none."""
    with pytest.raises(SourceError, match=r"rows are of different lengths, and the model's forward takes no attention"):
        in_order(data, Causal(backwards=True))
    write_rows(tmp_path / "t.jsonl", [{"text": "the cat"}, {"text": "a dog"}])
    same = load_data({"jsonl": "t.jsonl", "tokenizer": "words.json"}, tmp_path)
    assert [t.shape for t in in_order(same, Causal(backwards=True)).batches[0].inputs] == [(2, 2)]


def test_a_token_that_the_model_does_not_know_is_told_with_its_line(data):
    """ "four" is the highest of them, in line 3."""
    four = word_tokenizer().token_to_id("four")
    said = rf"^data t.jsonl:3: token {four}, the model knows {four} \(0 to {four - 1}\); mend: the tokenizer"
    with pytest.raises(SourceError, match=said):
        in_order(data, Causal(four))


def test_a_row_longer_than_the_positions_is_told_with_its_line(data):
    """As the configuration says them."""
    said = r"^data t.jsonl:1: 6 tokens, the model takes 5 \(n_positions\), and 2 more such rows; mend: max"
    with pytest.raises(SourceError, match=said):
        in_order(data, Causal(n_positions=5))
    in_order(data, Causal(n_positions=7))


def test_a_pair_is_measured_on_a_file_of_text(data, tmp_path):
    """The endpoints' losses are those of each row by itself, by a loop in float64 over its tokens."""
    torch.manual_seed(0)
    ends = [Causal(), Causal()]
    pair = load_pair(
        *(end.state_dict() for end in ends),
        model=Causal,
        data={"jsonl": "t.jsonl", "tokenizer": "words.json"},
        loss="next_token",
        device="cpu",
        base=tmp_path,
    )
    result = linear_connectivity(pair, align="none", points=3)
    made = word_tokenizer()
    for end, name in zip(ends, "ab", strict=True):
        rows = []
        for line in LINES:
            ids = made.encode(line).ids
            logits = end.double()(torch.tensor([ids]))[0].detach()
            rows.append(-sum(float(logits[t].log_softmax(0)[ids[t + 1]]) for t in range(len(ids) - 1)) / (len(ids) - 1))
        assert result.details[f"loss_{name}"] == pytest.approx(sum(rows) / len(rows), rel=1e-6)
    assert {path.name for path in pair.inputs} == {"t.jsonl", "words.json"}
    write_rows(tmp_path / "t.jsonl", [{"text": "the dog"}])
    with pytest.raises(Exception, match=r"t.jsonl: changed after it was loaded"):
        pair.require_unchanged()


class OwnForMaskedLM(Masked):
    """What is called as a masked language model is."""


def test_a_masked_model_that_is_shown_what_it_is_asked_for_is_told(data, tmp_path):
    """A note with the mend; none where tokens are hidden, nor for another kind of model."""
    assert in_order(data, OwnForMaskedLM()).notes == (
        "OwnForMaskedLM is given every token that it is asked for; mend: mask = 0.15 in the data",
    )
    assert in_order(data, Masked()).notes == ()
    made = word_tokenizer()
    made.add_special_tokens(["[MASK]"])
    made.save(str(tmp_path / "masks.json"))
    hidden = load_data({"jsonl": "t.jsonl", "tokenizer": "masks.json", "mask": 0.3}, tmp_path)
    assert in_order(hidden, OwnForMaskedLM(WORDS + 1)).notes == ()
