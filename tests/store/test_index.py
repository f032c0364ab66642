"""Shards and their index are one checkpoint where every tensor lies once, where the index says; else one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import look_at, open_checkpoint

FIRST, SECOND, INDEX = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
)
STATE = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.tensor([7, 8]), "h": torch.ones(2).half(), "t": torch.ones(2)}
PLACED = {"w": FIRST, "v": FIRST, "h": SECOND, "t": SECOND}
SIZE = 24 + 16 + 4 + 8


def write(folder: Path, placed: Any = PLACED, **more: Any) -> Path:
    """Write an index; what it says of metadata is right unless said otherwise."""
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": SIZE}, "weight_map": placed, **more}))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of two shards with their index and a config."""
    folder = tmp_path / "m"
    folder.mkdir()
    for shard in (FIRST, SECOND):
        save_file({n: STATE[n] for n in STATE if PLACED[n] == shard}, folder / shard, {"format": "pt", "of": shard})
    (folder / "config.json").write_text("{}")
    return write(folder)


def refused(given: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        look_at(given, Path.cwd(), "a")
    text = str(error.value)
    assert "\n" not in text
    assert "; mend: " in text
    return text


@pytest.mark.parametrize("given", [".", INDEX])
def test_shards_are_one_checkpoint(saved: Path, given: str) -> None:
    """By the folder or by the index: all tensors, read together or each by itself; metadata is what all shards say."""
    found = look_at(given, saved, "a")
    assert {name: found.get(name).tolist() for name in found.tensors} == {n: t.tolist() for n, t in STATE.items()}
    assert {name: tensor.dtype for name, tensor in found.read().items()} == {n: t.dtype for n, t in STATE.items()}
    assert found.metadata == {"format": "pt"}
    assert found.home == saved
    assert {file.name for file in found.files} == {FIRST, SECOND, INDEX}


def test_the_hash_of_several_files(saved: Path) -> None:
    """Is that of what sha256sum says of them, in the order of names; a pin holds for all of them."""
    lines = [f"{hashlib.sha256((saved / n).read_bytes()).hexdigest()}  {n}\n" for n in (FIRST, SECOND, INDEX)]
    pin = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert look_at(saved, saved, "a").sha256 == pin
    assert open_checkpoint(saved, saved, "a", pin).read().keys() == STATE.keys()
    write(saved, metadata={"note": "reviewed by nobody"})
    with pytest.raises(CheckpointError, match=r"the pin says"):
        open_checkpoint(saved, saved, "a", pin).read()


@pytest.mark.parametrize("name", [FIRST, SECOND, INDEX])
def test_no_file_may_change(saved: Path, name: str) -> None:
    """After reading, each of them is looked at again, the index too."""
    found = look_at(saved, saved, "a")
    found.read()
    found.require_unchanged()
    (saved / name).write_bytes((saved / name).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=rf"{name}: changed after it was loaded"):
        found.require_unchanged()


def test_sharding_is_no_difference(saved: Path) -> None:
    """Two folders hold the same weights however they are cut into files, and a lone file does."""
    whole = saved.parent / "whole"
    whole.mkdir()
    save_file(STATE, whole / "model.safetensors")
    first, second, lone = (look_at(given, saved.parent, "a") for given in ("m", "whole", "whole/model.safetensors"))
    assert first.same_contents(second)
    assert first.same_contents(lone)
    save_file({**STATE, "t": torch.tensor([1.0, 1.5])}, whole / "model.safetensors")
    assert not first.same_contents(look_at("whole", saved.parent, "a"))


def test_twins_are_found_across_shards(saved: Path) -> None:
    """A tied weight may lie in another shard than its twin."""
    twin = {"w": FIRST, "v": FIRST, "w2": SECOND}
    save_file({"w2": STATE["w"]}, saved / SECOND)
    found = look_at(write(saved, twin, metadata=None), saved, "a")
    assert found.has_twin("w2", ["w"])
    save_file({"w2": STATE["w"] + 1}, saved / SECOND)
    assert not look_at(saved, saved, "a").has_twin("w2", ["w"])


def shard_gone(folder: Path) -> None:
    (folder / SECOND).unlink()


def shard_cut(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


def tensor_twice(folder: Path) -> None:
    save_file({"h": STATE["h"], "t": STATE["t"], "w": STATE["w"]}, folder / SECOND)


def tensor_unnamed(folder: Path) -> None:
    write(folder, {name: shard for name, shard in PLACED.items() if name != "t"})


def tensor_elsewhere(folder: Path) -> None:
    write(folder, {**PLACED, "t": FIRST})


def tensor_nowhere(folder: Path) -> None:
    write(folder, {**PLACED, "x": FIRST})


def shard_unnamed(folder: Path) -> None:
    save_file({"z": STATE["w"]}, folder / "model-00003-of-00003.safetensors")


def single_beside(folder: Path) -> None:
    save_file(STATE, folder / "model.safetensors")


def copy_beside(folder: Path) -> None:
    save_file({"w": STATE["w"] * 2}, folder / "finetuned.safetensors")


def size_wrong(folder: Path) -> None:
    write(folder, metadata={"total_size": SIZE + 1})


def fifo(folder: Path) -> None:
    shard_gone(folder)
    os.mkfifo(folder / SECOND)


def linked_twice(folder: Path) -> None:
    shard_gone(folder)
    (folder / SECOND).symlink_to(FIRST)


def linked_nowhere(folder: Path) -> None:
    shard_gone(folder)
    (folder / SECOND).symlink_to("gone")


def said_twice(folder: Path) -> None:
    (folder / INDEX).write_text(f'{{"weight_map": {{"w": "{FIRST}", "w": "{SECOND}"}}}}')


def nested(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ' * 20_000)


def no_json(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"\xff\xfe not json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shard_gone, f"names the shard '{SECOND}', which is not there, expected all 2 shards"),
        (shard_cut, "truncated or corrupt"),
        (tensor_twice, f"tensor 'w' lies in {FIRST} and in {SECOND}"),
        (tensor_unnamed, f"tensor 't' of {SECOND} is not in it"),
        (tensor_elsewhere, f"says that tensor 't' lies in {FIRST}, and it lies in {SECOND}"),
        (tensor_nowhere, f"says that tensor 'x' lies in {FIRST}, and {FIRST} has no such tensor"),
        (shard_unnamed, "does not name model-00003-of-00003.safetensors, which lies beside"),
        (single_beside, "lies beside model.safetensors, a single file that other programs load in its place"),
        (copy_beside, f"tensor 'w' lies in {FIRST} and in finetuned.safetensors, which it does not name"),
        (size_wrong, f"has total_size {SIZE + 1}, expected {SIZE}"),
        (fifo, "got a FIFO"),
        (linked_twice, f"tensor 'v' lies in {FIRST} and in {SECOND}"),
        (linked_nowhere, "a link to 'gone', which is not there"),
        (said_twice, "the key 'w' occurs twice in one object"),
        (nested, "nested too deeply"),
        (no_json, "expected UTF-8"),
    ],
)
@pytest.mark.parametrize("given", ["", INDEX])
def test_what_is_no_whole_model(saved: Path, damage: Callable[[Path], None], words: str, given: str) -> None:
    """Is one line that names the shard or the tensor, whether the folder is given or the index."""
    damage(saved)
    assert words in refused(saved / given)


@pytest.mark.parametrize(
    "name",
    ["../m/" + FIRST, "/etc/passwd", "https://x.org/model.safetensors", "..", "", "sub\\" + FIRST, "a\0.safetensors",
     "./" + FIRST, "C:model.safetensors"],
)  # fmt: skip
def test_a_shard_lies_beside_its_index(saved: Path, name: str) -> None:
    """A path, an address and what is no name are refused before anything is opened."""
    assert "expected the name of a file beside the index" in refused(write(saved, {**PLACED, "t": name}))


@pytest.mark.parametrize(
    ("placed", "words"),
    [
        (None, "has no weight_map"), ([], "has the weight_map an array"), ({}, "has the weight_map a table"),
        ({"w": 3}, "says that tensor 'w' lies in 3"), ({"w": "config.json"}, "expected a .safetensors file"),
        ({"w": "pytorch_model-00001-of-00001.bin"}, "got an index of pickles"),
        ({"w\n\x1b[2J": "x.safetensors"}, "names the shard 'x.safetensors', which is not there"),
    ],
)  # fmt: skip
def test_what_is_no_index(saved: Path, placed: Any, words: str) -> None:
    """Says which table or name it lacks."""
    assert words in refused(write(saved, placed))


def test_names_of_shards_that_lead_away_by_links_are_files(saved: Path) -> None:
    """As a cache of downloads has them: the links' targets are what is read."""
    blobs = saved.parent / "blobs"
    blobs.mkdir()
    for shard in (FIRST, SECOND):
        shutil.move(saved / shard, blobs / shard[6:11])
        (saved / shard).symlink_to(f"../blobs/{shard[6:11]}")
    assert look_at(saved, saved, "a").read().keys() == STATE.keys()


def test_a_large_index_takes_little_time(saved: Path) -> None:
    """100,000 tensors that are not there are one line within seconds."""
    write(saved, {**PLACED, **{f"x.{k}": FIRST for k in range(100_000)}})
    started = time.perf_counter()
    assert "says that tensor 'x.0' lies in" in refused(saved)
    assert time.perf_counter() - started < 5
