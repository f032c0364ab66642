"""``[data.NAME]``: data without code of a user's, by name wherever data are asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmccheck.data.described import DataSpec
from lmccheck.errors import ManifestError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

SOUND = """\
schema = 1
[data.math]
jsonl = "math.jsonl"
tokenizer = "tok"
max_length = 8
[data.photos]
images = "val/"
transform = "models:transform"
[defaults]
model = "models:lm"
loss = "next_token"
data = "math"
[pair.one]
a = "a.safetensors"
b = "b.safetensors"
calibration = "math"
check.linear_connectivity.limit = 1
[set.all]
models = ["a.safetensors", "b.safetensors"]
data = { jsonl = "other.jsonl", tokenizer = "tok", pack = true, max_length = 16 }
check.set_connectivity.limit = 1
"""
MATH = DataSpec("jsonl", "math.jsonl", "math", tokenizer="tok", max_length=8)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a manifest and load it from its own folder."""
    monkeypatch.chdir(tmp_path)

    def load(text):
        (tmp_path / "lmc.toml").write_text(text)
        return load_manifest(tmp_path / "lmc.toml")

    return load


def test_data_are_read_by_their_name_and_inline(load):
    """In defaults, pairs and sets, as data and as calibration."""
    plan = load(SOUND)
    (one,), (every,) = plan.pairs, plan.sets
    assert one.data == one.calibration == MATH == plan.data["math"]
    assert plan.data["photos"] == DataSpec("images", "val/", "photos", transform="models:transform")
    assert every.data == DataSpec("jsonl", "other.jsonl", tokenizer="tok", pack=True, max_length=16)
    assert every.calibration is None


DATA = '[data.math]\njsonl = "math.jsonl"\ntokenizer = "tok"\nmax_length = 8\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SOUND.replace('data = "math"', 'data = "maths"'),
            'defaults.data: got "maths" (a string), expected a path ending ".safetensors", "module:callable" or the '
            "name of a [data.NAME] (did you mean 'math'?)",
        ),
        (
            SOUND.replace(DATA, DATA.replace("jsonl =", "jsnl =")),
            "data.math.jsnl: unknown key (did you mean 'jsonl'?), expected one of jsonl, images, parquet, safetensors, "
            "call, tokenizer, count, max_length, pack, mask, transform, column, target",
        ),
        (
            SOUND.replace(DATA, '[data.math]\ntokenizer = "tok"\n'),
            "data.math: got none, expected one of jsonl, images, parquet, safetensors, call, which says where the data "
            "lie",
        ),
        (
            SOUND.replace(DATA, DATA + 'parquet = "p"\n'),
            "data.math: got jsonl and parquet, expected one of jsonl, images, parquet, safetensors, call, which says "
            "where the data lie",
        ),
        (
            SOUND.replace(DATA, '[data.math]\njsonl = "math.jsonl"\n'),
            "data.math.tokenizer: missing, expected the path of a folder with a tokenizer, or of a tokenizer.json: "
            "text becomes tokens by it",
        ),
        (
            SOUND.replace('images = "val/"', 'images = "val/"\npack = true\nmax_length = 3'),
            "data.photos.max_length: not read with images, expected one of transform\n"
            "lmc.toml: data.photos.pack: not read with images, expected one of transform",
        ),
        (
            SOUND.replace(DATA, DATA.replace("8", "1") + "pack = 1\n"),
            "data.math.max_length: got 1, expected a whole number of tokens from 2\n"
            "lmc.toml: data.math.pack: got 1, expected true or false",
        ),
        (
            SOUND.replace(DATA, DATA.replace("max_length = 8", "pack = true")),
            "data.math.max_length: missing, expected a whole number of tokens from 2",
        ),
        (
            SOUND.replace("[data.math]", '[data."math.safetensors"]').replace('"math"', '"math.safetensors"'),
            "data.math.safetensors: the name 'math.safetensors' reads like a file, expected another",
        ),
        (
            SOUND.replace("pack = true,", 'count = "some",'),
            'set.all.data.count: got "some" (a string), expected "all" or "completion"',
        ),
        (
            SOUND.replace(DATA, DATA + 'count = "all"\ntarget = "y"\n'),
            "data.math.count: got 'all', expected none: what is predicted is 'y'",
        ),
    ],
)
def test_a_mistake_is_one_line(load, text, message):
    """Key, got, expected; what is wrong in data is said once, however many pairs name them."""
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert str(caught.value) == f"lmc.toml: {message}"


def test_the_manifest_item_reads_the_first_lines(load, tmp_path):
    """Files that are not there, with the nearest name; rows that do not parse; a folder without a tokenizer."""
    plan = load(SOUND)

    def said():
        return [line for line in problems(plan) if "data" in line.partition(":")[0]]

    (tmp_path / "maths.jsonl").write_text("{}\n")
    assert said()[0].startswith("data.math: no file 'math.jsonl' in ")
    assert said()[0].endswith("(did you mean 'maths.jsonl'?)")
    rows = [json.dumps({"text": "the cat"}), '{"text": "a']
    (tmp_path / "math.jsonl").write_text("\n".join(rows))
    assert said()[0].startswith("data.math: no file 'tok' in ")
    (tmp_path / "tok").mkdir()
    assert said()[0].startswith("data.math: tokenizer tok: a folder without a tokenizer")
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    assert said()[0].startswith("data.math: math.jsonl:2: not valid JSON")
    (tmp_path / "math.jsonl").write_text(rows[0])
    assert [line.partition(" in ")[0] for line in said()] == [
        "data.photos: no file 'val'",
        "set.all.data: no file 'other.jsonl'",
    ]
    assert {path.name for path in plan.inputs} == {"math.jsonl", "tokenizer.json"}


def test_neither_reading_nor_looking_imports_torch(load, tmp_path):
    """Nor transformers: collection and the manifest's item stay instant."""
    load(SOUND)
    (tmp_path / "math.jsonl").write_text('{"text": "the cat"}\n')
    code = (
        "import sys; from pathlib import Path; from lmccheck.manifest.read import load_manifest\n"
        "from lmccheck.manifest.preflight import problems\n"
        "problems(load_manifest(Path('lmc.toml')))\n"
        "print({'torch', 'transformers', 'tokenizers', 'PIL', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
