"""Tokenizers compared: id by id, whatever file lists them, and what is done to text before and after."""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from networks.beside import WORDS, folder, words

from lmccheck.beside.folder import Folder
from lmccheck.beside.tokenizers import differences
from lmccheck.errors import CheckpointError

SWAPPED = (*WORDS[:2], WORDS[3], WORDS[2], *WORDS[4:])
BPE = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", "ab a"]}}


def told(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return a line for each difference of two folders with these files."""
    new = Path(mkdtemp(dir=tmp_path))
    ends = [Folder(folder(new / name, files)) for name, files in (("a", one), ("b", other))]
    return [each.line("a", "b") for each in differences(*ends)]


def piece(text: str, score: float, kind: int = 1) -> bytes:
    """Return an entry of a SentencePiece model, written by hand from the format's description."""
    raw = text.encode()
    inner = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(inner)]) + inner


def pieces(*texts: str, score: float = -1.0) -> bytes:
    return b"".join(piece(text, score) for text in texts) + b"\x12\x03\x18\x90\x4e"  # and a field that is none


LISTS = {
    "tokenizer.json": words,
    "vocab.json": lambda tokens: {t: k for k, t in enumerate(tokens)},
    "vocab.txt": "\n".join,
    "tokenizer.model": lambda tokens: pieces(*tokens),
}


@pytest.mark.parametrize("file", LISTS)
def test_the_first_id_that_is_another_token_is_named(tmp_path: Path, file: str) -> None:
    """In every file that lists tokens; the same tokens are no difference, in another order of the file neither."""
    make = LISTS[file]
    assert told(tmp_path, {file: make(WORDS)}, {file: make(WORDS)}) == []
    line = f'{file}: id 2 is "▁the" in a and "ing" in b (1 more ids differ); mend: make them equal, or accept = '
    assert told(tmp_path, {file: make(WORDS)}, {file: make(SWAPPED)}) == [f'{line}["vocabulary"]']
    more = f'{file}: id 8 is absent in a and "new" in b; mend: make them equal, or accept = ["vocabulary"]'
    assert told(tmp_path, {file: make(WORDS)}, {file: make((*WORDS, "new"))}) == [more]


def test_lists_are_read_to_the_letter(tmp_path: Path) -> None:
    """Marks of byte order, ends of lines and fields that say nothing are no tokens; two tokens of one id are two."""
    assert told(tmp_path, {"vocab.txt": "\ufeffa\r\nb\r\n"}, {"vocab.txt": "a\nb"}) == []
    long = piece("a", -1.0) + b"\x12\xa0\x9c\x01" + b"\x0a" * 20_000 + piece("b", -1.0)  # a field of 20,000 bytes
    assert told(tmp_path, {"tokenizer.model": long}, {"tokenizer.model": pieces("a", "b")}) == []
    assert len(told(tmp_path, {"vocab.json": {"a": 0, "b": 0}}, {"vocab.json": {"b": 0}})) == 1


def test_a_list_with_scores_is_read_by_its_places(tmp_path: Path) -> None:
    """As unigram models have it; tokens of other scores cut text differently."""

    def unigram(*entries: Any) -> dict[str, Any]:
        return {"tokenizer.json": {"model": {"type": "Unigram", "vocab": list(entries)}}}

    assert told(tmp_path, unigram(["a", -1.0], ["b", -2.0]), unigram(["b", -2.0], ["a", -1.0]))[0].startswith(
        'tokenizer.json: id 0 is "a" in a and "b" in b'
    )
    (line,) = told(tmp_path, unigram(["a", -1.0], ["b", -2.0]), unigram(["a", -1.0], ["b", -3.0]))
    assert line.startswith("tokenizer.json: the score of id 1 is [-2.0] in a and [-3.0] in b")
    (line,) = told(tmp_path, {"tokenizer.model": pieces("a")}, {"tokenizer.model": pieces("a", score=-2.0)})
    assert "the score of id 0 is" in line


def test_tokens_that_were_added_count(tmp_path: Path) -> None:
    """Wherever a version lists them; their flags are a difference of their own."""

    def added(content: str, **flags: bool) -> dict[str, Any]:
        return {"tokenizer.json": words(added_tokens=[{"id": 8, "content": content, **flags}])}

    plain = {"vocab.json": {t: k for k, t in enumerate(WORDS)}}
    decoder = {"tokenizer_config.json": {"added_tokens_decoder": {"8": {"content": "<pad>"}}}}
    for one in (added("<pad>"), plain | {"added_tokens.json": {"<pad>": 8}}, plain | decoder):
        assert told(tmp_path, one, added("<pad>", lstrip=False)) == []
        assert 'id 8 is "<pad>" in a and "<eos>" in b' in told(tmp_path, one, added("<eos>"))[0]
    (line,) = told(tmp_path, added("<pad>"), added("<pad>", lstrip=True))
    assert line.startswith("tokenizer.json: added_tokens.<pad>.lstrip is absent in a and true in b")


DECODER = {"tokenizer_config.json": {"added_tokens_decoder": {"8": {"content": "<new>", "special": False}}}}
BESIDE = {"added_tokens.json": {"added_tokens.json": {"<new>": 8}}, "tokenizer_config.json": DECODER}


@pytest.mark.parametrize("file", BESIDE)
def test_tokens_added_beside_an_equal_tokenizer_json_count(tmp_path: Path, file: str) -> None:
    """Loading adds them; what tokenizer.json has itself, told once more as transformers 4 does, changes nothing."""
    plain, own = words(), words(added_tokens=[{"id": 8, "content": "<new>", "normalized": True}])
    (line,) = [each for each in told(tmp_path, {"tokenizer.json": plain}, {"tokenizer.json": plain, **BESIDE[file]})
               if "added_tokens.<new>" not in each]  # fmt: skip
    assert line.startswith(f'tokenizer.json and {file}: id 8 is absent in a and "<new>" in b; mend: ')
    for one in (plain, own):
        assert told(tmp_path, {"tokenizer.json": own}, {"tokenizer.json": one, **BESIDE[file]}) == []


def test_tokens_added_beside_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    """Those of the vocabulary keep their ids and are cut out of a text first; a decoder keeps other files unread."""
    fast, ing = {"tokenizer.json": words()}, {"tokenizer_config.json": {"added_tokens_decoder": {}}}
    (line,) = told(tmp_path, fast, {**fast, "added_tokens.json": {"ing": 5}})
    assert line.startswith("tokenizer.json and added_tokens.json: added_tokens.ing is absent in a and ")
    assert told(tmp_path, fast, {**fast, **ing, "added_tokens.json": {"ing": 5}}) == []
    beside = [line for line in told(tmp_path, fast, {**fast, "added_tokens.json": {"<new>": 11}}) if ": id " in line]
    assert [line.split(": ")[1] for line in beside] == [
        'id 8 is absent in a and "<new>" in b; mend'
    ]  # the next, not 11
    own = {"tokenizer.json": words(added_tokens=[{"id": 8, "content": "<new>", "lstrip": True}])}
    assert told(tmp_path, own, {**own, "added_tokens.json": {"<new>": 8}}) == []  # which says nothing of its flags
    roles = {"eos_token": "</s>"}
    stated = {**fast, "tokenizer_config.json": roles}
    (line,) = told(tmp_path, stated, {**stated, "special_tokens_map.json": {"eos_token": "s"}})
    assert line.startswith(
        'tokenizer_config.json or special_tokens_map.json: eos_token is "</s>" in a and "s" in b; mend'
    )
    decoder = {**fast, "tokenizer_config.json": {**roles, "added_tokens_decoder": {}}}
    assert told(tmp_path, stated, {**decoder, "special_tokens_map.json": {"eos_token": "s"}}) == []
    assert told(tmp_path, stated, {**stated, "special_tokens_map.json": roles}) == []


def test_merges_are_compared_in_their_order(tmp_path: Path) -> None:
    """As text or as pairs, in tokenizer.json or merges.txt."""

    def bpe(*merges: Any) -> dict[str, Any]:
        return {"tokenizer.json": {"model": {**BPE["model"], "merges": list(merges)}}}

    vocab = {"vocab.json": BPE["model"]["vocab"], "merges.txt": "#version: 0.2\na b\nab a\n"}
    assert told(tmp_path, bpe("a b", "ab a"), bpe(["a", "b"], ["ab", "a"])) == []
    assert told(tmp_path, bpe("a b", "ab a"), vocab) == []
    (line,) = told(tmp_path, bpe("a b", "ab a"), bpe("a b", "b a"))
    assert line.startswith('merges: number 1 is ["ab", "a"] in a and ["b", "a"] in b')
    (line,) = told(tmp_path, bpe("a b", "ab a"), bpe("a b"))
    assert line.startswith('merges: number 1 is ["ab", "a"] in a and absent in b')


@pytest.mark.parametrize(
    ("part", "one", "other", "said"),
    [
        ("normalizer", {"type": "NFC"}, {"type": "Lowercase"}, 'normalizer.type is "NFC" in a and "Lowercase" in b'),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, {"type": "ByteLevel"},
         "pre_tokenizer.add_prefix_space is true in a and absent in b"),
        ("post_processor", None, {"type": "TemplateProcessing", "single": [1]}, "post_processor is null in a and {"),
        ("decoder", {"type": "Fuse"}, {"type": "ByteLevel"}, 'decoder.type is "Fuse" in a and "ByteLevel" in b'),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": False}, {"type": "ByteLevel"}, "use_regex is absent "),
        ("pre_tokenizer", {"type": "Metaspace", "add_prefix_space": False}, {"type": "Metaspace"},
         'pre_tokenizer.prepend_scheme is "never" in a and "always" in b'),
        ("pre_tokenizer", {"pretokenizers": [{"type": "Digits"}, {"type": "Split", "pattern": "a"}]},
         {"pretokenizers": [{"type": "Digits"}, {"type": "Split", "pattern": "b"}]},
         'pre_tokenizer.pretokenizers[1].pattern is "a" in a and "b" in b'),
    ],
)  # fmt: skip
def test_what_is_done_to_text_is_compared(tmp_path: Path, part: str, one: Any, other: Any, said: str) -> None:
    """By the first part that differs; the part's name accepts it."""
    (line,) = told(tmp_path, {"tokenizer.json": words(**{part: one})}, {"tokenizer.json": words(**{part: other})})
    assert said in line
    assert line.endswith(f'accept = ["{part}"]')


def test_other_versions_of_a_part_are_the_same(tmp_path: Path) -> None:
    """Spaces as older files have it, false that newer ones write, and the last call's truncation."""
    old = words(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True})
    new = words(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})
    new["model"] |= {"byte_fallback": False, "dropout": None}
    bare = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
    assert told(tmp_path, {"tokenizer.json": words(post_processor=bare)}, {"tokenizer.json": words()}) == []
    level = [
        words(pre_tokenizer={"type": "ByteLevel", **held}) for held in ({}, {"use_regex": True, "trim_offsets": True})
    ]
    assert told(tmp_path, *({"tokenizer.json": each} for each in level)) == []
    assert told(tmp_path, {"tokenizer.json": old}, {"tokenizer.json": new | {"truncation": {"max_length": 8}}}) == []


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token", "cls_token", "image_token"])
def test_special_tokens_are_compared_by_their_text(tmp_path: Path, role: str) -> None:
    """As text or with flags, in either of their files."""

    def files(name: str, token: Any) -> dict[str, Any]:
        return {"tokenizer.json": words(), name: {role: token}}

    flagged = files("special_tokens_map.json", {"content": "<s>", "lstrip": False})
    assert told(tmp_path, files("tokenizer_config.json", "<s>"), flagged) == []
    line = f'tokenizer_config.json or special_tokens_map.json: {role} is "</s>" in a and "<s>" in b; '
    line += f'mend: make them equal, or accept = ["{role}"]'
    assert told(tmp_path, files("tokenizer_config.json", "</s>"), flagged) == [line]
    (line,) = told(tmp_path, {"tokenizer.json": words(), "special_tokens_map.json": {}}, flagged)
    assert f'{role} is absent in a and "<s>" in b' in line


def test_a_chat_template_is_compared_wherever_it_lies(tmp_path: Path) -> None:
    """In the settings, as a list of several, or as a file of its own, which comes first; from where it differs on."""

    def stated(template: Any) -> dict[str, Any]:
        return {"tokenizer.json": words(), "tokenizer_config.json": {"chat_template": template}}

    one, other = "{{ bos }}<|user|>x", "{{ bos }}[INST]x"
    own = {
        "tokenizer.json": words(),
        "chat_template.jinja": one + "\n",
        "tokenizer_config.json": {"chat_template": other},
    }
    assert told(tmp_path, stated(one), own) == []
    assert told(tmp_path, stated(one), stated([{"name": "default", "template": one}])) == []
    (line,) = told(tmp_path, stated(one), stated(other))
    assert line.startswith(
        'tokenizer_config.json: chat_template from character 9 on is "<|user|>x" in a and "[INST]x" in b'
    )
    (line,) = told(tmp_path, stated(None), stated(other))
    assert 'chat_template is absent in a and "{{ bos }}' in line


def test_settings_that_change_ids_are_differences_and_others_are_notes(tmp_path: Path) -> None:
    def settings(**held: Any) -> dict[str, Any]:
        return {"tokenizer.json": words(), "tokenizer_config.json": held}

    (line,) = told(tmp_path, settings(add_bos_token=True), settings())
    assert "add_bos_token is true in a and absent in b" in line
    assert told(tmp_path, settings(add_bos_token=True, tokenizer_class="LlamaTokenizer"),
                settings(tokenizer_class="LlamaTokenizerFast", add_bos_token=True, name_or_path="x")) == []  # fmt: skip
    llama = {"tokenizer_class": "LlamaTokenizer"}
    assert told(tmp_path, settings(add_bos_token=True, **llama), settings(**llama)) == []  # as it does by itself
    (line,) = told(tmp_path, settings(padding_side="left"), settings(padding_side="right"))
    assert line == 'tokenizer_config.json: padding_side is "left" in a and "right" in b'


def test_what_only_slow_tokenizers_read_counts_for_them(tmp_path: Path) -> None:
    """Beside tokenizer.json nobody reads it."""
    ends = [{"tokenizer_config.json": {"legacy": legacy}} for legacy in (True, False)]
    assert told(tmp_path, *({"tokenizer.json": words(), **end} for end in ends)) == []
    (line,) = told(tmp_path, *({"vocab.json": {"a": 0}, **end} for end in ends))
    assert line.startswith("tokenizer_config.json: legacy is true in a and false in b")


def test_a_tokenizer_in_one_of_them_only_is_a_difference(tmp_path: Path) -> None:
    (line,) = told(tmp_path, {"tokenizer.json": words()}, {})
    assert line == 'tokenizer: it is there in a and not in b; mend: make them equal, or accept = ["tokenizer"]'


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """Files nobody reads, unless they are one, with what to do."""
    (line,) = told(tmp_path, {"tokenizer.json": words()}, {"tokenizer.tiktoken": "YQ== 0\n"})
    assert line.startswith("tokenizer: its file, which cannot be compared, is tokenizer.json in a and tokenizer.tik")
    assert "write both by AutoTokenizer.from_pretrained(…).save_pretrained(…); mend: " in line
    ranks = {"tokenizer.tiktoken": "YQ== 0\n"}
    assert told(tmp_path, ranks, ranks) == []
    assert len(told(tmp_path, ranks, {"tokenizer.tiktoken": "Yg== 0\n"})) == 1


def test_a_sentencepiece_model_is_compared_by_the_ids_of_its_tokens(tmp_path: Path) -> None:
    """With another list: the same ids are a note, another one is named, a shift is that of a class, and told so."""
    fast = {"tokenizer.json": words()}
    (line,) = told(tmp_path, fast, {"tokenizer.model": pieces(*WORDS)})
    said = f"tokenizer: its file is tokenizer.json in a and tokenizer.model in b: {len(WORDS)} tokens have the same ids"
    assert line.startswith(f"{said}, 0 are in one of them; how text is cut is not compared; to compare all of it, ")
    assert "mend" not in line
    (line,) = told(tmp_path, {"tokenizer.model": pieces(*WORDS, "more")}, fast)
    assert f"{len(WORDS)} tokens have the same ids, 1 are in one of them" in line
    (line,) = told(tmp_path, fast, {"tokenizer.model": pieces(*SWAPPED)})
    assert line == (
        'tokenizer.json and tokenizer.model: the id of "▁the" is 2 in a and 3 in b (1 more ids differ); mend: make '
        'them equal, or accept = ["vocabulary"]'
    )
    (line,) = told(tmp_path, fast, {"tokenizer.model": pieces("new", *WORDS)})
    assert f"in b: the ids of {len(WORDS)} tokens lie 1 apart, as a class may shift them; to compare all" in line
    assert "mend: make them equal, or accept" in line
    (line,) = told(tmp_path, fast, {"tokenizer.model": pieces("x", "y")})
    assert "its list, which share no token, is tokenizer.json in a and tokenizer.model in b; mend: " in line


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": "{"}, "tokenizer.json: not valid JSON: "),
        ({"tokenizer.json": {"model": {}}}, "got a model without a vocabulary, expected one that lists tokens"),
        ({"tokenizer.json": {"model": {"vocab": {"a": 1.5}}}}, "got the id '1.5' of token 'a', expected whole numbers"),
        ({"tokenizer.json": {"model": {"vocab": {"a": -1}}}}, "got the id '-1' of token 'a', expected whole numbers"),
        ({"tokenizer.json": {"model": {"vocab": [["a"], []]}}}, "got a model without a vocabulary"),
        ({"tokenizer.json": words(added_tokens=["x"])}, "an entry of added_tokens without content and id"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0, "a": 1}}}'}, "the key 'a' occurs twice in one object"),
        ({"tokenizer.json": '{"model": {"vocab": {"\\ud800": 0}}}'}, "is no Unicode"),
        ({"vocab.txt": b"\xff\xfe"}, "vocab.txt: got the byte 0xff at 0, expected UTF-8 text"),
        ({"tokenizer.model": b"\x0a\xff"}, "got bytes that are no SentencePiece model"),
        ({"tokenizer.model": b"\x0a\x7f" + b"x"}, "got bytes that are no SentencePiece model"),
        ({"tokenizer.json": '{"a":' * 5000}, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    """Which names the file, what was found and the mend."""
    with pytest.raises(CheckpointError) as caught:
        told(tmp_path, files, {next(iter(files)): LISTS.get(next(iter(files)), words)(WORDS)})
    assert said in str(caught.value)
    assert "mend: save the" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


TINY = words(version="1.0", added_tokens=[], normalizer=None, pre_tokenizer={"type": "Whitespace"})
SAID = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


def test_what_transformers_writes_of_one_tokenizer_is_one_tokenizer(tmp_path: Path) -> None:
    """Loaded and saved again by its own library, a tokenizer differs in nothing."""
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path / "a", {"tokenizer.json": TINY, "tokenizer_config.json": SAID})
    transformers.PreTrainedTokenizerFast.from_pretrained(path).save_pretrained(tmp_path / "b")
    assert [each.line("a", "b") for each in differences(Folder(path), Folder(tmp_path / "b")) if not each.note] == []
