"""Everything beside some checkpoints, compared: what is accepted, what is noted, and what does not fit by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from networks.beside import LLAMA, WORDS, folder, words

from lmccheck.beside.compare import Compared, Side, compare
from lmccheck.beside.folder import KEPT
from lmccheck.store.header import TensorHeader

EMBEDDING = {"model.embed_tokens.weight": TensorHeader("F32", (8, 4)), "w": TensorHeader("F32", (4, 4))}
MEND = 'mend: make them equal, or accept = ["'
FAST = {"tokenizer.json": words()}
OTHER = {"tokenizer.json": words((*WORDS[:2], WORDS[3], WORDS[2], *WORDS[4:]))}


def sides(tmp_path: Path, *ends: tuple[dict[str, Any], dict[str, Any]], **tensors: TensorHeader) -> list[Side]:
    """Return sides a, b, … with these (files, keys of config.json)."""
    return [
        Side(name, folder(tmp_path / name, files, **keys), EMBEDDING | tensors)
        for name, (files, keys) in zip("abc", ends, strict=False)
    ]


def test_equal_folders_say_nothing(tmp_path: Path) -> None:
    assert compare(sides(tmp_path, (FAST, {}), (FAST, {}))) == Compared()


def test_all_are_compared_with_the_first(tmp_path: Path) -> None:
    """Each line names both folders; one that is told of two files is told once."""
    found = compare(sides(tmp_path, (FAST, {}), (FAST, {"rope_theta": 5e5}), (OTHER, {})))
    a, b, c = (f"{name} ({tmp_path / name})" for name in "abc")
    assert found.problems == [
        f'config.json: rope_theta is 10000.0 in {a} and 500000.0 in {b}; {MEND}rope_theta"]',
        f'tokenizer.json: id 2 is "▁the" in {a} and "ing" in {c} (1 more ids differ); {MEND}vocabulary"]',
    ]


@pytest.mark.parametrize(
    ("keys", "accepted"),
    [
        ({"rope_theta": 5e5}, ("rope_theta", "rope_parameters", "rope")),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ("rope_scaling", "rope_parameters", "rope")),
        ({"rms_norm_eps": 1e-5}, ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "eps")),
        ({"text_config": {"vocab_size": 9}}, ("text_config", "text_config.vocab_size", "vocab_size")),
        ({"of_a_later_version": {"deep": 1}}, ("of_a_later_version",)),
        ({"torch_dtype": "float64", "dtype": None}, ("dtype", "torch_dtype")),
    ],
)
def test_a_difference_is_accepted_by_any_of_its_names(
    tmp_path: Path, keys: dict[str, Any], accepted: tuple[str, ...]
) -> None:
    """Its key in any spelling, with or without what it lies in; nothing else accepts it."""
    both = sides(
        tmp_path, (FAST, {"text_config": {"vocab_size": 8}}), (FAST, {"text_config": {"vocab_size": 8}} | keys)
    )
    told = [line for line in compare(both).problems if "rows" not in line]
    assert len(told) == 1
    for name in accepted:
        found = compare(both, (name,))
        assert [line for line in found.problems if "rows" not in line] == []
        assert (found.unmet, found.unknown) == ({}, {})
    assert told[0] in compare(both, ("hidden_act",)).problems


@pytest.mark.parametrize("name", ["tokenizer", "vocabulary"])
def test_tokenizers_are_accepted_as_a_whole_or_by_part(tmp_path: Path, name: str) -> None:
    both = sides(tmp_path, (FAST, {}), (OTHER, {}))
    (line,) = compare(both).problems
    assert compare(both, (name,)) == Compared(accepted=[line.partition("; mend: ")[0]])


def test_an_accepted_name_that_meets_nothing_is_told(tmp_path: Path) -> None:
    """One that might is noted; one that is none has the nearest that is, of the keys that the files have too."""
    found = compare(sides(tmp_path, (FAST, {"one_more": 1}), (FAST, {"one_more": 1})), ("rope_theta", "one_mor"))
    assert (found.problems, found.notes) == ([], [])
    assert found.unmet == {"rope_theta": "accept: 'rope_theta' meets no difference; mend: leave it out"}
    assert list(found.unknown) == ["one_mor"]
    assert found.unknown["one_mor"].endswith("(did you mean 'one_more'?)")


def test_a_checkpoint_without_a_folder_is_noted_beside_one_with(tmp_path: Path) -> None:
    """Nothing can be compared; where none has one, nothing is said."""
    a, b = sides(tmp_path, (FAST, {}), (FAST, {}))
    lone = Side("b", None, b.tensors)
    note = "b: no config.json beside the weights, so that none is compared"
    assert compare([a, lone]) == Compared(notes=[note])
    assert compare([lone, lone]) == Compared()
    (b.home or tmp_path).joinpath("config.json").unlink()
    assert compare([a, b]) == Compared(notes=[note])


def test_a_token_without_a_row_is_a_problem_of_one_folder(tmp_path: Path) -> None:
    """Rows that no token has are padding."""
    grown = {"tokenizer.json": words(added_tokens=[{"id": 9, "content": "<pad>"}])}
    (line,) = compare(sides(tmp_path, (grown, {}))).problems
    assert line.startswith(f'a ({tmp_path / "a"}): tokenizer.json: token "<pad>" has id 9, and ')
    assert "model.embed_tokens.weight has 8 rows, 2 too few; mend: " in line
    wide = {"model.embed_tokens.weight": TensorHeader("F32", (10, 4))}
    assert compare(sides(tmp_path, (grown, {}), **wide)) == Compared()
    (line,) = compare(sides(tmp_path, (FAST, {"vocab_size": 9}))).problems
    assert "config.json: vocab_size is 9, and model.embed_tokens.weight has 8 rows" in line
    (line,) = compare(sides(tmp_path, (FAST, {"text_config": {"vocab_size": 9}}))).problems
    assert "config.json: vocab_size is 9, and model.embed_tokens.weight has 8 rows" in line
    assert compare(sides(tmp_path, (FAST, {}), **{"shared.weight": TensorHeader("F32", (4, 4))})) == Compared()


GENERATION = {"eos_token_id": 0, "pad_token_id": [0], "temperature": 1.0, "transformers_version": "5.0.0"}


@pytest.mark.parametrize(
    ("held", "problem", "note"),
    [
        ({**GENERATION, "eos_token_id": 5}, "eos_token_id is 0 in {a} and 5 in {b}", None),
        ({**GENERATION, "eos_token_id": [0, 5]}, "eos_token_id is 0 in {a} and [0, 5] in {b}", None),
        ({**GENERATION, "eos_token_id": None}, "eos_token_id is 0 in {a} and null in {b}", None),
        ({**GENERATION, "decoder_start_token_id": 3}, "decoder_start_token_id is absent in {a} and 3 in {b}", None),
        ({**GENERATION, "forced_bos_token_id": 3}, "forced_bos_token_id is absent in {a} and 3 in {b}", None),
        ({**GENERATION, "temperature": 0.7}, None, "temperature is 1.0 in {a} and 0.7 in {b}"),
        ({**GENERATION, "pad_token_id": 0, "transformers_version": "4.0.0", "_from_model_config": True}, None, None),
        (None, None, "it is there in {a} and not there in {b}"),
    ],
)
def test_what_text_is_made_with_is_compared(
    tmp_path: Path, held: dict[str, Any] | None, problem: str | None, note: str | None
) -> None:
    """Ids of tokens are differences, which their key or the file's name accepts; how tokens are drawn is said."""
    file = "generation_config.json"
    both = sides(tmp_path, ({**FAST, file: GENERATION}, {}), ({**FAST, file: held}, {}))
    ends = {name: f"{name} ({tmp_path / name})" for name in "ab"}
    key = (problem or "x").split()[0]
    found = compare(both)
    assert found.problems == ([f'{file}: {problem.format(**ends)}; {MEND}{key}"]'] if problem else [])
    assert found.notes == ([f"{file}: {note.format(**ends)}"] if note else [])
    if problem:
        accepted = Compared(accepted=[f"{file}: {problem.format(**ends)}"])
        assert compare(both, (key,)) == compare(both, ("generation_config",)) == accepted


@pytest.mark.parametrize(
    ("file", "held"),
    [
        ("added_tokens.json", {"<new>": 8}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"8": {"content": "<new>"}}}),
    ],
)
def test_a_token_added_beside_tokenizer_json_needs_a_row(tmp_path: Path, file: str, held: dict[str, Any]) -> None:
    """In each folder that has it, and an equal tokenizer.json without it first does not hide it."""
    a, b = sides(tmp_path, (FAST, {}), ({**FAST, file: held}, {}))
    (line,) = (line for line in compare([a, b]).problems if "too few" in line)
    assert line.startswith(f'b ({tmp_path / "b"}): {file}: token "<new>" has id 8, and ')
    assert "has 8 rows, 1 too few" in line


@pytest.mark.parametrize(
    ("stated", "stored", "fits"),
    [
        ("float32", "BF16", True), ("float32", "F16", True), ("float16", "F16", True), ("bfloat16", "BF16", True),
        ("float64", "F32", True), ("bfloat16", "F32", False), ("float16", "BF16", False), ("float32", "F64", False),
        (None, "F32", True), ("float8_e4m3fn", "F32", True),
    ],
)  # fmt: skip
def test_a_stated_dtype_that_rounds_is_a_problem(tmp_path: Path, stated: str | None, stored: str, fits: bool) -> None:
    """What is loaded would not be what was stored; the dtype that most numbers have decides."""
    tensors = {"w": TensorHeader(stored, (64, 64)), **{f"norm{k}": TensorHeader("F32", (4,)) for k in range(2)}}
    side = Side("a", folder(tmp_path / "a", FAST, dtype=stated), tensors)
    assert len(compare([side]).problems) == (0 if fits else 1)
    assert compare([side], ("dtype",)).problems == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a table"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{" + '"a":{' * 900 + "}" * 901, "nested too deeply"),
        ('{"a": "\\udc00"}', "is no Unicode"),
        (b"\xff", "expected UTF-8"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("fifo", "got a FIFO (named pipe), expected config.json as save_pretrained writes it"),
        ("folder", "got a folder, expected config.json as save_pretrained writes it"),
        ("large", "bytes, expected config.json as save_pretrained writes it of at most 8388608"),
        ("link", "a link to 'gone', which is not there"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, raw: str | bytes, said: str) -> None:
    """Whatever lies in its place: nothing is waited for, nothing huge is read."""
    a, b = sides(tmp_path, (FAST, {}), (FAST, {}))
    path = tmp_path / "b" / "config.json"
    path.unlink()
    if raw == "fifo":
        os.mkfifo(path)
    elif raw == "folder":
        path.mkdir()
    elif raw == "large":
        with open(path, "wb") as file:
            file.truncate(2**30)
    elif raw == "link":
        path.symlink_to("gone")
    else:
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    found = compare([a, b], ("rope_theta",))
    assert said in found.problems[0]
    assert all("\n" not in line and len(line) <= 500 for line in found.problems)


def test_a_hostile_name_stays_on_its_line(tmp_path: Path) -> None:
    """Long, with escapes and line breaks: one line of at most 500 characters, which ends with the mend."""
    found = compare(sides(tmp_path, (FAST, {"a\n\x1b[2J" * 200: "x\n" * 4000}), (FAST, {})))
    (line,) = found.problems
    assert len(line) <= 500
    assert line.isprintable()
    assert "mend: make them equal" in line
    many = {f"key{n}": n for n in range(100)}
    assert len(compare(sides(tmp_path, (FAST, many), (FAST, {}))).problems) == 13


def test_what_is_done_to_images_is_compared(tmp_path: Path) -> None:
    """By keys of preprocessor_config.json, or of the file that newer versions keep it in; sizes in either form."""

    def images(file: str = "preprocessor_config.json", **keys: Any) -> dict[str, Any]:
        held = {"image_mean": [0.5, 0.5, 0.5], "do_resize": True, **keys}
        return {file: {"image_processor": held} if file.startswith("processor") else held}

    one = images(size=224, image_processor_type="ViTImageProcessor", do_rescale=True, rescale_factor=1 / 255)
    other = images("processor_config.json", size={"height": 224, "width": 224})
    assert compare(sides(tmp_path / "1", (one, {}), (other, {}))) == Compared()
    (line,) = compare(sides(tmp_path / "2", (one, {}), (images(size=224, image_mean=[0.5, 0.4, 0.5]), {}))).problems
    assert line.startswith("preprocessor_config.json: image_mean[1] is 0.5 in a (")
    (line,) = compare(sides(tmp_path / "2", (one, {}), (images(size=224, of_a_later_version=1), {}))).problems
    assert "of_a_later_version is absent in a (" in line
    (line,) = compare(sides(tmp_path / "3", (one, {}), ({}, {}))).problems
    assert line.startswith("preprocessor_config.json: it is there in a (")
    assert line.endswith('accept = ["preprocessor"]')


def test_the_table_that_transformers_reads_first_is_compared(tmp_path: Path) -> None:
    """That within processor_config.json, of images and of sound, whatever an older file beside it says."""
    older = {"preprocessor_config.json": {"size": 224, "sampling_rate": 8000}}
    newer = {"image_processor": {"size": 112}, "feature_extractor": {"sampling_rate": 16000}}
    one, other = {**older, "processor_config.json": newer}, {"preprocessor_config.json": {"size": 112}}
    (line,) = compare(sides(tmp_path / "1", (one, {}), (other, {}))).problems
    assert line.startswith("preprocessor_config.json: sampling_rate is 16000 in a (")
    found = compare(sides(tmp_path / "2", (one, {}), (older, {}))).problems
    assert [line.split()[1] for line in found] == ["sampling_rate", "size"]


def test_large_files_are_compared_though_they_are_forgotten(tmp_path: Path) -> None:
    """Between two comparisons only their hashes are held."""
    many = tuple(f"token {k}" for k in range(20_000))
    assert len(json.dumps(words(many))) > KEPT
    large = {"tokenizer.json": words(many)}, {"tokenizer.json": words((*many[:-2], many[-1], many[-2]))}
    found = compare(sides(tmp_path, *((files, {}) for files in (large[0], large[0], large[1]))))
    told = [line for line in found.problems if "rows" not in line]
    assert [line[: line.index(" is ")] for line in told] == ["tokenizer.json: id 19998"]
    assert f"in c ({tmp_path / 'c'})" in told[0]


def test_the_tokenizer_of_an_adapter_is_its_own(tmp_path: Path) -> None:
    """Where its folder has one; else that of its base."""
    a, b = sides(tmp_path, (FAST, {}), (FAST, {}))
    own = folder(tmp_path / "adapter", {"config.json": None, **OTHER})
    (line,) = compare([a, Side("b", b.home, b.tensors, own)]).problems
    assert line.startswith(f'tokenizer.json: id 2 is "▁the" in a ({tmp_path / "a"}) and "ing" in b ({own})')
    assert compare([a, Side("b", b.home, b.tensors, folder(tmp_path / "bare", {"config.json": None}))]) == Compared()


ODD: tuple[Any, ...] = (
    None, True, -1, 1.5, float("nan"), 10**30, "", "x", [], [[]], ["a", 2], [None], {}, {"a": {"b": [{}]}},
    {"content": [1]}, {"0": None}, {"full_attention": {"rope_theta": [1]}}, {"__float__": [1]}, {"type": ["x"]},
)  # fmt: skip
WHOLE: dict[str, dict[str, Any]] = {
    "config.json": {
        **LLAMA, "rope_scaling": {"type": "yarn", "factor": 2.0}, "sliding_window_pattern": 2, "id2label": {"0": "x"},
        "text_config": {"model_type": "gemma3_text", "layer_types": None}, "eos_token_id": [1],
        "architectures": ["LlamaForSequenceClassification"],
    },
    "tokenizer.json": words(
        added_tokens=[{"id": 8, "content": "<x>"}], normalizer={"normalizers": [{"type": "NFC"}]},
        pre_tokenizer={"type": "Metaspace"}, post_processor={"type": "TemplateProcessing", "single": []},
    ),
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>"}, "additional_special_tokens": ["x", {"content": "y"}],
        "chat_template": [{"name": "default", "template": "x"}], "added_tokens_decoder": {"0": {"content": "<s>"}},
    },
    "preprocessor_config.json": {"image_mean": [0.5], "size": {"height": 2}},
}  # fmt: skip


def test_whatever_stands_where_something_else_is_expected_is_a_line_at_most(tmp_path: Path) -> None:
    """Each value of each file, in turn another: nothing is raised, and what is told is told in lines."""
    rows = {"model.embed_tokens.weight": TensorHeader("F32", (9, 4))}
    both = sides(tmp_path, (WHOLE, {}), (WHOLE, {}), **rows)
    assert compare(both).problems == compare(both[:1]).problems == []
    for number, (file, table) in enumerate(WHOLE.items()):
        for place in range(sum(1 for _ in places(table))):
            for odd in ODD[(number + place) % 10 :: 10]:
                (both[1].home or tmp_path).joinpath(file).write_text(json.dumps(changed(table, place, odd)))
                found = compare(both)
                assert all("\n" not in line and len(line) <= 500 for line in found.problems)
        (both[1].home or tmp_path).joinpath(file).write_text(json.dumps(table))


def places(held: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container and key within."""
    for key in list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ():
        yield held, key
        yield from places(held[key])


def changed(table: dict[str, Any], place: int, odd: Any) -> dict[str, Any]:
    """Return a copy of a table with another value in one of its places."""
    copy = json.loads(json.dumps(table))
    held, key = list(places(copy))[place]
    held[key] = odd
    return dict(copy)
