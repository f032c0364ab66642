"""Conversations: which tokens are an assistant's, by the characters that its messages are, found independently."""

from __future__ import annotations

import contextlib
import json

import pytest
from networks.tokens import CHAT, CHAT_THAT_TELLS, byte_tokenizer, word_tokenizer, write_rows, write_tokenizer

from lmccheck.data.collate import UNCOUNTED
from lmccheck.data.load import load_data
from lmccheck.errors import SourceError

pytest.importorskip("transformers")
pytest.importorskip("jinja2")

TALK = [
    {"role": "system", "content": "two and two"},
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "the cat sat"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "a dog, ran;  to the 猫\n"},
]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Load conversations with a template, by bytes or by words."""
    monkeypatch.chdir(tmp_path)

    def read(*talks, template=CHAT, made=None, **keys):
        write_tokenizer(tmp_path / "tok", made or byte_tokenizer(), chat_template=template)
        write_rows(tmp_path / "t.jsonl", [{"messages": talk} for talk in talks])
        return load_data({"jsonl": "t.jsonl", "tokenizer": "tok", **keys}, tmp_path)

    return read


def rendered(talk, end):
    """The text of a conversation, and for each of its characters whether it is generated; written out by hand."""
    text, marks = "", []
    for message in talk:
        parts = [(f"<|im_start|>{message['role']}\n", False), (message["content"] + "<|im_end|>", True), ("\n", end)]
        for part, generated in parts:
            text += part
            marks += [generated and message["role"] == "assistant"] * len(part)
    return text, marks


def expected(talk, end, made):
    text, marks = rendered(talk, end)
    found = made.encode(text, add_special_tokens=False)
    return [i if any(marks[a:b]) else UNCOUNTED for i, (a, b) in zip(found.ids, found.offsets, strict=True)]


@pytest.mark.parametrize("template", [CHAT, CHAT_THAT_TELLS])
@pytest.mark.parametrize("made", [byte_tokenizer, word_tokenizer])
def test_only_the_assistants_turns_count(read, template, made):
    """With the mark that ends each; told by the template, or, where it does not tell, by how conversations begin."""
    data = read(TALK, TALK[1:3], template=template, made=made())
    for k, talk in enumerate((TALK, TALK[1:3])):
        counted = expected(talk, template == CHAT, made())
        assert data.batches[0].targets[k, : len(counted)].tolist() == counted
        assert set(data.batches[0].targets[k, len(counted) :].tolist()) <= {UNCOUNTED}
    whole = read(TALK, template=template, made=made(), count="all")
    assert (whole.batches[0].targets == whole.batches[0].inputs["input_ids"]).all()


def test_the_side_of_padding_and_of_truncation_changes_nothing(read, tmp_path):
    """Rows are padded behind, cut behind, and have the positions that they have by themselves."""
    plain = read(TALK, TALK[1:3], max_length=40)
    said = json.loads((tmp_path / "tok" / "tokenizer_config.json").read_text())
    said |= {"padding_side": "left", "truncation_side": "left"}
    (tmp_path / "tok" / "tokenizer_config.json").write_text(json.dumps(said))
    left = load_data({"jsonl": "t.jsonl", "tokenizer": "tok", "max_length": 40}, tmp_path)
    for one, other in zip(plain.batches[0].inputs.values(), left.batches[0].inputs.values(), strict=True):
        assert one.equal(other)
    assert plain.batches[0].targets.equal(left.batches[0].targets)


LAST_ONLY = (  # earlier replies are left out, as templates of models that reason do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADLESS = CHAT.partition("{% if add_generation_prompt")[0]
REFUSES = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (LAST_ONLY, TALK[1:], "t.jsonl:1: the chat template does not tell what of message 1 is generated"),
        (HEADLESS, TALK[1:3], "t.jsonl:1: the chat template does not tell where the reply of message 1 begins"),
        (REFUSES, TALK, "t.jsonl:1: its chat template refuses the messages: TemplateError: roles must alternate"),
        (None, TALK, "t.jsonl:1: tokenizer tok has no chat template"),
        (CHAT, TALK[:2], "t.jsonl:1: no token counts, of"),
        ("{% if %}", TALK, "t.jsonl:1: its chat template refuses the messages: TemplateSyntaxError"),
    ],
)
def test_a_template_that_cannot_tell_is_refused(read, template, talk, said):
    """By the row, with what to do; every token can still be counted where the template works at all."""
    with pytest.raises(SourceError) as caught:
        read(talk, template=template)
    assert str(caught.value).startswith(f"data {said}")
    if template in (LAST_ONLY, HEADLESS):
        assert read(talk, template=template, count="all").samples == 1


def test_code_beside_a_tokenizer_is_not_run(read, tmp_path):
    """A folder that names code of its own is refused, or read without it."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "own.py").write_text("open('ran', 'w')\nclass Own: pass\n")
    with contextlib.suppress(SourceError):
        read(TALK, auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own")
    assert not (tmp_path / "ran").exists()


def test_a_special_token_at_the_beginning_does_not_count_and_one_at_the_end_does(tmp_path, monkeypatch):
    """Those that the tokenizer itself adds: nothing predicts the first, and what ends a completion is part of it."""
    from tokenizers import processors

    monkeypatch.chdir(tmp_path)
    made = word_tokenizer()
    ends = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    write_tokenizer(tmp_path / "tok", made)
    write_rows(tmp_path / "t.jsonl", [{"prompt": "the cat ", "completion": "sat on"}])
    data = load_data({"jsonl": "t.jsonl", "tokenizer": "tok"}, tmp_path)
    ids = [made.token_to_id(word) for word in ("<s>", "the", "cat", "sat", "on", "</s>")]
    assert data.batches[0].inputs["input_ids"].tolist() == [ids]
    assert data.batches[0].targets.tolist() == [[UNCOUNTED] * 3 + ids[3:]]
    write_rows(tmp_path / "t.jsonl", [{"text": "the cat"}, {"text": "a dog"}])
    packed = load_data({"jsonl": "t.jsonl", "tokenizer": "tok", "pack": True, "max_length": 8}, tmp_path)
    assert packed.batches[0].inputs["input_ids"][0].tolist() == made.encode("the cat").ids + made.encode("a dog").ids
    assert packed.batches[0].targets[0, [0, 4]].tolist() == [UNCOUNTED, UNCOUNTED]
