"""Text without code: rows as tokens, and which of them count, against what is worked out by hand."""

from __future__ import annotations

import pytest
import torch
from networks.tokens import LINES, byte_tokenizer, word_tokenizer, write_rows

from lmccheck.data.batches import rebatched
from lmccheck.data.collate import UNCOUNTED
from lmccheck.data.load import Data, load_data
from lmccheck.errors import SourceError

pytest.importorskip("tokenizers")


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write rows and a tokenizer.json of words, and load them from their own folder."""
    monkeypatch.chdir(tmp_path)
    word_tokenizer().save("words.json")

    def read(rows, **keys) -> Data:
        if isinstance(rows, (str, bytes)):
            (tmp_path / "t.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        else:
            write_rows(tmp_path / "t.jsonl", rows)
        return load_data({"jsonl": "t.jsonl", "tokenizer": "words.json", **keys}, tmp_path)

    return read


def words(text: str) -> list[int]:
    made = word_tokenizer()
    return [made.token_to_id(word) for word in text.split()]


def rows_of(data: Data) -> list[tuple[list[int], list[int]]]:
    """(tokens, targets) of every sample, without what its mask leaves out."""
    (batch,) = data.batches
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    return [(i[m == 1].tolist(), t[m == 1].tolist()) for i, m, t in zip(ids, mask, batch.targets, strict=True)]


def test_every_token_of_a_text_counts(read):
    """Rows of different lengths are padded behind, where nothing counts and the mask is 0."""
    data = read([{"text": line} for line in LINES])
    assert rows_of(data) == [(words(line), words(line)) for line in LINES]
    (batch,) = data.batches
    assert (batch.targets[batch.inputs["attention_mask"] == 0] == UNCOUNTED).all()
    assert (data.kind, data.places[2], data.samples) == ("text", "t.jsonl:3", 4)


def test_of_a_prompt_nothing_counts_and_of_its_completion_everything(read):
    """By default, and with count = "all" the prompt as well."""
    rows = [{"prompt": "the cat ", "completion": "sat on"}, {"prompt": "two and two", "completion": " are four"}]
    cut = [(2, words("the cat sat on")), (3, words("two and two are four"))]
    assert rows_of(read(rows)) == [(ids, [UNCOUNTED] * k + ids[k:]) for k, ids in cut]
    assert rows_of(read(rows, count="all")) == [(ids, ids) for _, ids in cut]


def test_a_token_that_is_half_prompt_counts_and_is_noted(read, tmp_path):
    """With bytes, " sat" after a prompt that ends in a space is one token; it says the completion's first letters."""
    byte_tokenizer().save(str(tmp_path / "bytes.json"))
    data = read([{"prompt": "the cat ", "completion": "sat"}], tokenizer="bytes.json")
    made = byte_tokenizer().encode("the cat sat")
    half = next(k for k, (start, stop) in enumerate(made.offsets) if start == 7 and stop > 8)
    ((ids, targets),) = rows_of(data)
    assert ids == made.ids
    assert targets == [UNCOUNTED] * half + made.ids[half:]
    assert data.notes == (
        "1 of 1 rows have a token that holds the prompt's end and the completion's beginning, and counts, the first in "
        "t.jsonl:1",
    )


@pytest.mark.parametrize("border", range(1, 18))
def test_what_counts_is_what_has_a_character_of_the_completion(read, tmp_path, border):
    """Wherever a text is cut in two, with many-byte characters too: one token at a time, by its offsets."""
    text = "the cät sat on 猫 mat"
    byte_tokenizer().save(str(tmp_path / "bytes.json"))
    made = byte_tokenizer().encode(text)
    expected = [
        i if any(k >= border for k in range(*span)) else UNCOUNTED
        for i, span in zip(made.ids, made.offsets, strict=True)
    ]
    data = read([{"prompt": text[:border], "completion": text[border:]}], tokenizer="bytes.json")
    assert rows_of(data) == [(made.ids, expected)]


def test_rows_are_cut_to_a_length_and_it_is_said(read):
    """How many, which is the first, and how many of them have nothing left that counts."""
    rows = [
        {"prompt": "the cat ", "completion": "sat"},
        {"prompt": "the cat sat on ", "completion": "the mat"},
        {"prompt": "a ", "completion": "dog ran to the cat", "task": 1},
    ]
    data = read(rows, max_length=4)
    assert [len(ids) for ids, _ in rows_of(data)] == [3, 4]
    assert data.places == ("t.jsonl:1", "t.jsonl:3")
    assert data.columns == {"task": (None, 1)}
    assert data.notes == (
        "2 of 3 rows are cut to 4 tokens, the first in t.jsonl:2; 1 of them are left out: nothing that counts is left "
        "in them",
    )
    with pytest.raises(SourceError, match=r"^data t.jsonl: cut to 4 tokens, no row has a token that counts"):
        read(rows[1:2], max_length=4)


def test_packed_documents_count_what_they_count_by_themselves(read):
    """Nothing predicts the first token of a document, nor of a row; the EOS between them does not count."""
    data = read([{"text": line} for line in LINES], pack=True, max_length=7)
    stream, counts = [], []
    for line in LINES:
        ids = words(line)
        stream += [*ids, words("</s>")[0]]
        counts += [False, *[True] * (len(ids) - 1), False]
    expected = [
        (stream[k : k + 7], [i if c else UNCOUNTED for i, c in zip(stream[k : k + 7], counts[k : k + 7], strict=True)])
        for k in range(0, len(stream), 7)
    ]
    assert rows_of(data) == expected
    assert data.columns == {}
    assert data.places[1] == "t.jsonl:2"


def test_of_masked_tokens_the_hidden_ones_count(read, tmp_path):
    """A share of what counts, one at least, each by what it was; the same ones whenever it is read."""
    made = word_tokenizer()
    made.add_special_tokens(["[MASK]"])
    made.save(str(tmp_path / "masks.json"))
    hole = made.token_to_id("[MASK]")
    rows = [{"text": line} for line in (*LINES, " ".join(LINES * 5))]
    data = read(rows, tokenizer="masks.json", mask=0.3)
    for row, (ids, targets) in zip(rows, rows_of(data), strict=True):
        before = words(row["text"])
        assert [i if t == UNCOUNTED else t for i, t in zip(ids, targets, strict=True)] == before
        assert [i == hole for i in ids] == [t != UNCOUNTED for t in targets]
        assert sum(i == hole for i in ids) == round(0.3 * len(ids))
    again = read(rows[::-1], tokenizer="masks.json", mask=0.3)
    assert rows_of(again) == rows_of(data)[::-1]
    asked = read([{"prompt": "the cat ", "completion": "sat"}], tokenizer="masks.json", mask=0.01)
    assert rows_of(asked) == [([*words("the cat"), hole], [UNCOUNTED, UNCOUNTED, *words("sat")])]
    with pytest.raises(SourceError, match=r"tokenizer words.json has no token of a mask, expected one"):
        read(rows, mask=0.3)


def test_columns_are_what_else_a_row_says(read):
    """Texts, numbers and booleans by name; None where a row does not say; lists are none."""
    rows = [{"text": "the cat", "task": "a", "n": 1, "tags": ["x"]}, {"text": "a dog", "task": "b"}]
    assert read(rows).columns == {"task": ("a", "b"), "n": (1, None)}


def test_a_text_may_have_a_class_for_its_target(read):
    """With ``target``; the class is no column then."""
    data = read([{"body": "the cat", "y": 1}, {"body": "a dog ran", "y": 0}], column="body", target="y")
    assert (data.kind, data.batches[0].targets.tolist(), dict(data.columns)) == ("labels", [1, 0], {})


def test_batches_hold_as_many_tokens_as_logits_fit(read):
    """A vocabulary of 300 and rows of 6: no batch has more than 2¹⁵ tokens; places stay with their samples."""
    data = read([{"text": f"{LINES[0]}", "k": k} for k in range(6000)])
    assert max(batch.samples for batch in rebatched(data)) * 6 <= 2**15
    assert sum(batch.samples for batch in rebatched(data)) == 6000
    kept = data.only([torch.arange(6000) % 2 == 0])
    assert (kept.samples, kept.columns["k"][5], kept.places[5]) == (3000, 10, "t.jsonl:11")


GOOD = '{"text": "the cat"}\n'


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ("", {}, "t.jsonl: is empty"),
        ("\n" + GOOD, {}, "t.jsonl:1: an empty line, expected one JSON object a line"),
        (GOOD + "\n" + GOOD, {}, "t.jsonl:2: an empty line"),
        (GOOD + '{"text": "the\n', {}, "t.jsonl:2: not valid JSON: "),
        (GOOD + GOOD.strip() + GOOD, {}, "t.jsonl:2: not valid JSON: Extra data"),
        ("[1]\n", {}, "t.jsonl:1: got an array, expected an object"),
        (b'{"text": "caf\xe9"}\n', {}, "t.jsonl:1: got the byte 0xe9, expected UTF-8"),
        ('{"text": "a", "text": "b"}\n', {}, "t.jsonl:1: not valid JSON: the key 'text' occurs twice"),
        (
            GOOD + '{"prompt": "a", "completion": "b"}\n',
            {},
            "t.jsonl:2: has 'prompt' and 'completion', t.jsonl:1 has 't",
        ),
        ('{"text": "a", "prompt": "b"}\n', {}, "t.jsonl:1: got 'text' and 'prompt' and 'completion', expected {"),
        ('{"prompt": "the"}\n', {}, "t.jsonl:1: has no 'completion'"),
        ('{"body": "the cat"}\n', {}, "t.jsonl:1: got the keys ['body'], expected {"),
        ('{"text": 3}\n', {}, "t.jsonl:1: 'text': got 3, expected a text"),
        (GOOD + '{"text": "the"}\n', {}, "t.jsonl:2: no token counts, of 1; expected two tokens"),
        (GOOD + '{"text": ""}\n', {}, "t.jsonl:2: no token counts, of 0"),
        ('{"prompt": "the", "completion": ""}\n', {}, "t.jsonl:1: no token counts, of 1; expected a completion"),
        (GOOD, {"count": "completion"}, "t.jsonl:1: count = 'completion', and a text has none"),
        ('{"messages": []}\n', {}, "t.jsonl:1: 'messages': got an array, expected an array of messages, at least one"),
        ('{"messages": [{"role": "user"}]}\n', {}, "t.jsonl:1: message 0, 'content': got none, expected an object"),
        ('{"messages": [{"role": "u", "content": "a"}]}\n', {}, "t.jsonl:1: tokenizer words.json has no chat template"),
        (GOOD, {"column": "txet"}, "t.jsonl:1: column 'txet': got none (did you mean 'text'?), expected a text"),
        (GOOD, {"target": "y"}, "t.jsonl:1: 'y': got none, expected a class"),
        (GOOD, {"tokenizer": "words"}, "tokenizer words: no such folder, expected a folder with a tokenizer"),
        (GOOD, {"tokenizer": "t.jsonl"}, "tokenizer t.jsonl: got a file, expected a folder"),
        (GOOD, {"tokenizer": "."}, "tokenizer .: a folder without a tokenizer"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(read, rows, keys, said):
    """File and line, what was found, what is expected."""
    with pytest.raises(SourceError) as caught:
        read(rows, **keys)
    text = str(caught.value)
    assert text.startswith(f"data {said}")
    assert "\n" not in text


def test_lines_may_end_in_any_way_and_a_file_in_blank_ones(read):
    """A byte-order mark, CRLF, no newline at the end, blank lines at the end."""
    for text in ("\ufeff" + GOOD, GOOD.replace("\n", "\r\n") * 2, GOOD.strip(), GOOD + "\n \n"):
        assert read(text.encode()).samples == text.count("text")


def test_the_files_that_were_read_are_held(read, tmp_path):
    """What is measured is about these rows and this tokenizer: another one by now is an error."""
    from lmccheck.errors import CheckpointError

    data = read(GOOD)
    assert [held.path.name for held in data.held] == ["t.jsonl", "words.json"]
    for path in ("t.jsonl", "words.json"):
        before = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(before + b" ")
        changed = 0
        for held in data.held:
            try:
                held.require_unchanged()
            except CheckpointError:
                changed += 1
        assert changed == 1
        (tmp_path / path).write_bytes(before)
