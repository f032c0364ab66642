"""Manifests that nobody wrote in good faith: lines of at most 500 printable characters, in little time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmccheck.errors import ManifestError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

HEAD = (
    'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "data.safetensors"\n'
    '[pair.p]\na = "a.safetensors"\nb = "b.safetensors"\n'
)
CHECK = "check.linear_connectivity = {{ {} }}\n"


def refused(path: Path) -> str:
    """Return the message of a manifest that is refused, after looking at its form."""
    begin = time.process_time()
    with pytest.raises(ManifestError) as error:
        load_manifest(path)
    assert time.process_time() - begin < 5
    for line in str(error.value).split("\n"):
        assert line.isprintable()
        assert len(line) <= 500
    return str(error.value)


SETTINGS = {
    "an integer beyond float": ("limit = 1" + "0" * 400, "limit: got a whole number of 1329 bits, expected a number"),
    "a hexadecimal one": ("limit = 0x" + "f" * 10_000, "limit: got a whole number of 40000 bits"),
    "one of too many digits": ("limit = " + "9" * 5000, "not valid TOML"),
    "a percentage beyond float": ('limit = "' + "9" * 400 + '%"', "limit: got"),
    "infinity": ("limit = inf", "limit: got inf"),
    "points beyond 64 bits": (f"limit = 1, points = {2**63}", "points: got 9223372036854775808"),
    "a key of 3000 characters": ("limit = 1, " + "k" * 3000 + " = 1", "unknown key"),
}


@pytest.mark.parametrize(("settings", "why"), SETTINGS.values(), ids=SETTINGS.keys())
def test_numbers_and_keys_of_any_size(tmp_path: Path, settings: str, why: str) -> None:
    """Each is told as what it is."""
    path = tmp_path / "lmc.toml"
    path.write_text(HEAD + CHECK.format(settings))
    assert why in refused(path)


def test_the_largest_float_is_a_limit(tmp_path: Path) -> None:
    """And as an integer it is the same one; the next integer that has no float is refused."""
    path = tmp_path / "lmc.toml"
    largest = (2**53 - 1) * 2**971
    path.write_text(HEAD + CHECK.format(f"limit = {largest}"))
    assert load_manifest(path).pairs[0].checks[0].settings["limit"] == float(largest)
    path.write_text(HEAD + CHECK.format(f"limit = {largest + 1}"))
    refused(path)


TEXTS: dict[str, tuple[bytes, str]] = {
    "a key of 100,000 parts": ((HEAD + "a." * 100_000 + "a = 1").encode(), "line 8: got a key of more than 100 parts"),
    "a header of 100,000 parts": ((HEAD + "[" + "'a' . " * 100_000 + "a]").encode(), "more than 100 parts"),
    "an inline key of 100,000 parts": ((HEAD + "x = {" + '"a".' * 100_000 + "a=1}").encode(), "more than 100 parts"),
    "tables in tables": (b"x=" + b"{a=" * 5000, "nested too deeply"),
    "arrays in arrays": (b"x=" + b"[" * 100_000, "nested too deeply"),
    "a name of 300 characters": (
        (HEAD.replace("pair.p", "pair." + "p" * 300) + CHECK.format("limit = 1")).encode(),
        "got a name of 300 characters, expected at most 120",
    ),
    "a check of 300 characters": (
        f'{HEAD}check.{"c" * 300} = {{ property = "linear_connectivity", limit = 1 }}'.encode(),
        "got a name of 300 characters",
    ),
    "a name that imitates": ((HEAD.replace("pair.p", r'pair."\u001b[2Jp\n::error::x"')).encode(), r'"\u001b[2Jp\n'),
    "an unpaired surrogate": ((HEAD + r'x = "\ud800"').encode(), "not valid TOML"),
    "UTF-16": ("schema = 1".encode("utf-16"), "line 1: got the byte 0xff, expected UTF-8"),
    "invalid UTF-8": (b"schema = 1\n# caf\xe9", "line 2: got the byte 0xe9"),
    "a NUL": (b"schema = 1\0", "not valid TOML"),
    "lines that end in CR alone": (b"schema = 1\rx = 2", "not valid TOML"),
    "17 million bytes": (b"#" * (2**24 + 1), "got 16777217 bytes, expected a TOML file of at most 16777216"),
    "nothing but a byte order mark": (b"\xef\xbb\xbf", "the file is empty"),
}


@pytest.mark.parametrize(("content", "why"), TEXTS.values(), ids=TEXTS.keys())
def test_texts_of_any_kind(tmp_path: Path, content: bytes, why: str) -> None:
    """None takes long, and none ends in a traceback."""
    path = tmp_path / "lmc.toml"
    path.write_bytes(content)
    assert why in refused(path)


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_files_as_other_systems_write_them(tmp_path: Path, begin: bytes, end: bytes) -> None:
    """A byte order mark and ends of lines are no content; lines are counted alike."""
    path = tmp_path / "lmc.toml"
    path.write_bytes(begin + (HEAD + CHECK.format("limit = 1")).encode().replace(b"\n", end))
    assert load_manifest(path).pairs[0].line == 5


def test_lines_are_those_of_toml(tmp_path: Path) -> None:
    """What other systems of writing call the end of a line is none in TOML, whose line numbers editors show."""
    path = tmp_path / "lmc.toml"
    path.write_text("# a\u2028b\u2029c\u0085d\n" + HEAD + CHECK.format("limit = 1"), encoding="utf-8")
    assert load_manifest(path).pairs[0].line == 6


@pytest.mark.parametrize(("kind", "why"), [("fifo", "a FIFO"), ("folder", "a folder"), ("zero", "a character device")])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, why: str) -> None:
    """A manifest is a file."""
    path = tmp_path / "lmc.toml"
    make: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "zero": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    assert f"got {why}" in refused(path)


def test_ten_thousand_pairs(tmp_path: Path) -> None:
    """Neither reading them nor looking at their files grows with the square of their number."""
    path = tmp_path / "lmc.toml"
    pair = '[pair.p{0}]\na = "a{0}.safetensors"\nb = "b.safetensors"\ncheck.linear_connectivity = {{ limit = 0.1 }}\n'
    path.write_text(HEAD.partition("[pair.p]")[0] + "".join(pair.format(k) for k in range(10_000)))
    begin = time.process_time()
    plan = load_manifest(path)
    assert time.process_time() - begin < 3
    assert [plan.pairs[k].line for k in (0, 1, 9999)] == [5, 9, 40_001]
    begin = time.process_time()
    assert len(problems(plan)) == 30_000  # no data, no a and no b
    assert time.process_time() - begin < 15


def test_ten_thousand_mistakes(tmp_path: Path) -> None:
    """The first hundred are told, and how many more there are."""
    path = tmp_path / "lmc.toml"
    path.write_text("schema = 1\n" + "".join(f"[pair.p{k}]\nq = 1\n" for k in range(10_000)))
    lines = refused(path).split("\n")
    assert len(lines) == 101
    assert lines[-1].endswith(": 29900 more problems")
