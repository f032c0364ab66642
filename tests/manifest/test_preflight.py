"""What the files that a manifest names show before any network runs: one line for every problem."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.manifest.plan import Plan
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

HEAD = 'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "data.safetensors"\n'
CHECK = "check.linear_connectivity.limit = 1\n"
SET_CHECK = "check.set_connectivity.limit = 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four checkpoints, all different, and data."""
    for k, name in enumerate(("a", "b", "c", "d")):
        save_file({"w": torch.full((2, 3), float(k)), "v": torch.zeros(2)}, str(tmp_path / f"{name}.safetensors"))
    save_file({"inputs": torch.zeros(2, 3), "targets": torch.zeros(2)}, str(tmp_path / "data.safetensors"))
    return tmp_path


def plan(folder: Path, text: str, head: str = HEAD) -> Plan:
    """Read a manifest in the folder."""
    path = folder / "lmc.toml"
    path.write_text(head + text)
    return load_manifest(path)


def pair(a: str = "a", b: str = "b", more: str = "") -> str:
    """Return a pair's tables."""
    return f'[pair.one]\na = "{a}.safetensors"\nb = "{b}.safetensors"\n{more}{CHECK}'


def several(*names: str, more: str = "") -> str:
    """Return a set's tables."""
    models = ", ".join(f'"{name}.safetensors"' for name in names)
    return f"[set.all]\nmodels = [{models}]\n{more}{SET_CHECK}"


def pin(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()


def test_sound_files_have_no_problem(folder: Path) -> None:
    assert problems(plan(folder, pair() + several("a", "b", "c", "d"))) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_two_names_of_one_file_are_one_file(folder: Path, link: object) -> None:
    """In a pair, and wherever in a set."""
    link(folder / "a.safetensors", folder / "twin.safetensors")  # type: ignore[operator]
    assert problems(plan(folder, pair("a", "twin"))) == [
        "pair.one: a and b are the same file, twin.safetensors; expected two checkpoints"
    ]
    assert problems(plan(folder, several("a", "b", "c", "twin"))) == [
        "set.all: models[0] and models[3] are the same file, twin.safetensors; expected two checkpoints"
    ]


@pytest.mark.parametrize("key", ["data", "calibration"])
def test_data_of_either_kind_must_be_there(folder: Path, key: str) -> None:
    """The nearest name is offered; what a callable makes is no file."""
    head = HEAD.replace('data = "data.safetensors"\n', "") if key == "data" else HEAD
    (found,) = problems(plan(folder, pair(more=f'{key} = "dat.safetensors"\n'), head))
    assert found.startswith(f"pair.one.{key}: no file 'dat.safetensors' in ")
    assert found.endswith(" (did you mean 'data.safetensors'?)")
    assert problems(plan(folder, pair(more=f'{key} = "models:make"\n'), head)) == []


@pytest.mark.parametrize("which", [1, 2, 3])
def test_every_model_of_a_set_is_compared_with_the_first(folder: Path, which: int) -> None:
    """Names on either side, shapes and dtypes; more than three are counted."""
    name = "abcd"[which]
    file, models = folder / f"{name}.safetensors", several("a", "b", "c", "d")
    save_file({"w": torch.zeros(2, 3)}, str(file))
    assert problems(plan(folder, models)) == [
        f"set.all: v in models[0] only, expected the same tensors in models[{which}]"
    ]
    save_file({**{n: torch.zeros(1) for n in "klmno"}, "w": torch.zeros(2, 3), "v": torch.zeros(2)}, str(file))
    assert problems(plan(folder, models)) == [
        f"set.all: k, l, m and 2 more in models[{which}] only, expected the same tensors in models[0]"
    ]
    save_file({"w": torch.zeros(3, 2), "v": torch.zeros(2).half()}, str(file))
    assert problems(plan(folder, models)) == [
        f"set.all: w is (2, 3) in models[0] and (3, 2) in models[{which}]; expected the same shapes",
        f"set.all: v is F32 in models[0] and F16 in models[{which}]; expected the same dtypes",
    ]


def test_pins_are_those_of_the_files_they_stand_for(folder: Path) -> None:
    """In upper case, too; of a set in the order of its models."""
    good = [pin(folder, name) for name in "abc"]
    quoted = ", ".join(f'"{one.upper()}"' for one in good)
    assert problems(plan(folder, several("a", "b", "c", more=f"sha256 = [{quoted}]\n"))) == []
    swapped = ", ".join(f'"{one}"' for one in (good[0], good[2], good[2]))
    assert problems(plan(folder, several("a", "b", "c", more=f"sha256 = [{swapped}]\n"))) == [
        f"set.all.sha256[1]: b.safetensors has sha256 {good[1]}, expected {good[2]}; pin the file that was reviewed"
    ]
    assert problems(plan(folder, pair(more=f'sha256 = {{ b = "{good[1].upper()}" }}\n'))) == []
    assert problems(plan(folder, pair(more=f'sha256 = {{ b = "{good[0]}" }}\n'))) == [
        f"pair.one.sha256.b: b.safetensors has sha256 {good[1]}, expected {good[0]}; pin the file that was reviewed"
    ]


def test_each_model_of_a_set_ships_under_a_name_of_its_own(folder: Path) -> None:
    """Two files of one stem are told apart by their folders; a pair ships b."""
    found = plan(folder, pair() + several("a", "x/a", "b"))
    assert found.pairs[0].shipped_name == "one-b-aligned.safetensors"
    assert found.sets[0].shipped_files == tuple(f"{name}-aligned.safetensors" for name in ("a", "x", "b"))
    assert plan(folder, several("a", "b")).sets[0].shipped_files == ("a-aligned.safetensors", "b-aligned.safetensors")


def test_lines_are_those_of_a_table_of_its_kind(folder: Path) -> None:
    """Counted from 1; a pair and a set have tables of their own, quoted or not."""
    text = '[pair."one"]\na = "a.safetensors"\nb = "b.safetensors"\n' + CHECK + several("a", "b")
    found = plan(folder, text)
    lines = (folder / "lmc.toml").read_text().splitlines()
    assert lines[found.pairs[0].line - 1] == '[pair."one"]'
    assert lines[found.sets[0].line - 1] == "[set.all]"


def test_tokens_serve_as_their_own_targets(folder: Path) -> None:
    """The loss next_token needs no targets, for data and calibration alike; no other loss is asked to guess them."""
    save_file({"inputs": torch.zeros(2, 3, dtype=torch.int64)}, str(folder / "ids.safetensors"))
    files = 'data = "ids.safetensors"\ncalibration = "ids.safetensors"\n'
    head = HEAD.replace('data = "data.safetensors"\n', "")
    assert problems(plan(folder, pair(more=files + 'loss = "next_token"\n'), head)) == []
    assert len(problems(plan(folder, pair(more=files), head))) == 2
