"""Folders, indexes and adapters in a manifest: read, looked at by their headers, told apart by what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.errors import ManifestError
from lmccheck.manifest.plan import Plan
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.given import Adapted

HEAD = 'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "models:batches"\n'
CHECK = "check.linear_connectivity.limit = 1\n"


def plan(folder: Path, text: str) -> Plan:
    (folder / "lmc.toml").write_text(HEAD + text)
    return load_manifest(folder / "lmc.toml")


def pair(folder: Path, a: str, b: str, more: str = "") -> list[str]:
    """Return the problems of a pair; ``a`` and ``b`` are written as TOML."""
    return problems(plan(folder, f"[pair.one]\na = {a}\nb = {b}\n{more}{CHECK}"))


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "v": torch.zeros(2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models: m1 in one file, m2 in two shards, m3 the weights of m1 in two shards."""
    for name, value, shards in (("m1", 1.0, False), ("m2", 2.0, True), ("m3", 1.0, True)):
        (tmp_path / name).mkdir()
        if not shards:
            save_file(state(value), tmp_path / name / "model.safetensors")
            continue
        placed = {key: f"model-0000{k}-of-00002.safetensors" for k, key in enumerate(state(0), 1)}
        for key, shard in placed.items():
            save_file({key: state(value)[key]}, tmp_path / name / shard)
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return tmp_path


def test_a_folder_and_an_index_are_checkpoints(folder: Path) -> None:
    """In pairs and sets; reading a manifest opens none of them."""
    assert pair(folder, '"m1"', '"m2"') == []
    assert pair(folder, '"m1/model.safetensors"', '"m2/model.safetensors.index.json"') == []
    several = '[set.all]\nmodels = ["m1", "m2", "m2/model.safetensors.index.json"]\ncheck.set_connectivity.limit = 1\n'
    assert problems(plan(folder, several)) == [
        "set.all: models[1] and models[2] are the same files, m2/model.safetensors.index.json; expected two checkpoints"
    ]
    shipped = plan(folder, several.replace(', "m2"', "")).sets[0].shipped_files
    assert shipped == ("m1-aligned", "m2-aligned")


def test_a_folder_is_the_file_in_it(folder: Path) -> None:
    """The same file by two names is no pair."""
    assert pair(folder, '"m1"', '"m1/model.safetensors"') == [
        "pair.one: a and b are the same file, m1/model.safetensors; expected two checkpoints"
    ]


def test_one_model_cut_differently_is_no_pair(folder: Path) -> None:
    """Found from the bytes of its tensors, whatever files they lie in."""
    (found,) = pair(folder, '"m1"', '"m3"')
    assert found.startswith("pair.one: a and b hold the same weights, m1 and m3; expected two networks")


def test_a_pin_of_a_folder(folder: Path) -> None:
    """Is compared with the hash of all its files."""
    (found,) = pair(folder, '"m1"', '"m2"', f'sha256 = {{ b = "{"0" * 64}" }}\n')
    assert found.startswith("pair.one.sha256.b: m2 has sha256 ")
    pin = found.split("sha256 ")[1][:64]
    assert pair(folder, '"m1"', '"m2"', f'sha256 = {{ b = "{pin}" }}\n') == []


def test_what_is_wrong_with_a_folder_is_told_of_its_key(folder: Path) -> None:
    """A stale single file beside an index, a folder that is not there, with the nearest name that is."""
    save_file(state(3), folder / "m2" / "model.safetensors")
    (found,) = pair(folder, '"m1"', '"m2"')
    assert found.startswith("pair.one.b: ")
    assert "lies beside model.safetensors, a single file" in found
    (found,) = pair(folder, '"m1"', '"m4"')
    assert found.startswith("pair.one.b: no file 'm4' in ")


def test_an_adapter_on_its_base_is_a_table(folder: Path) -> None:
    """Of two paths, the base by any kind of path; nested where an adapter was trained on another."""
    both = '{ base = "m1", adapter = "ad" }'
    found = plan(folder, f"[pair.one]\na = \"m1\"\nb = {both}\n{CHECK}[set.all]\nmodels = ['m1', {both}]\n"
                         "check.set_connectivity.limit = 1\n")  # fmt: skip
    assert found.pairs[0].b == found.sets[0].models[1] == Adapted("m1", "ad")
    nested = plan(folder, f'[pair.one]\na = "m1"\nb = {{ base = {both}, adapter = "ad2" }}\n{CHECK}')
    assert nested.pairs[0].b == Adapted(Adapted("m1", "ad"), "ad2")
    assert folder / "m1" / "model.safetensors" in list(found.inputs)
    (problem,) = problems(nested)
    assert problem.startswith("pair.one.b: no file 'ad2' in ")


@pytest.mark.parametrize(
    ("b", "words"),
    [
        ('{ base = "m1" }', "pair.one.b.adapter: missing, expected the path of an adapter's folder"),
        ('{ adapter = "ad" }', "pair.one.b.base: missing, expected the path of a .safetensors file or of a model's"),
        ('{ base = "m1", adaptor = "ad" }', "pair.one.b.adaptor: unknown key (did you mean 'adapter'?)"),
        ('{ base = 3, adapter = "ad" }', "pair.one.b.base: got 3, expected the path of"),
        ('{ base = "m1", adapter = ["ad"] }', "pair.one.b.adapter: got an array, expected the path of"),
        ("[]", "pair.one.b: got an array, expected the path of"),
        ('""', 'pair.one.b: got "" (a string), expected the path of'),
    ],
)
def test_a_mistake_in_a_table(folder: Path, b: str, words: str) -> None:
    """Is a line that begins with its key."""
    with pytest.raises(ManifestError) as error:
        plan(folder, f'[pair.one]\na = "m1"\nb = {b}\n{CHECK}')
    assert words in str(error.value)
