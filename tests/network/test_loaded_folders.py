"""Folders that are loaded are compared beside their weights: whatever differs is refused, or accepted by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.beside import WORDS, folder, words
from networks.small import seeded, small_mlp
from safetensors.torch import save_file

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.network.pair import load_widths

DATA = (torch.randn(30, 4, generator=torch.Generator().manual_seed(2)), torch.arange(30) % 3)
OTHERS = {"tokenizer.json": words((*WORDS[:2], WORDS[3], WORDS[2], *WORDS[4:]))}
MEAN = {"linear": {"x": 0.5, "y": 0.5}}
LOADS: dict[str, Callable[..., Any]] = {
    "pair": lambda a, b, **given: lmccheck.load_pair(a, b, model=small_mlp, **given),
    "widths": lambda a, b, **given: load_widths(a, b, model_a=small_mlp, model_b=small_mlp, **given),
    "set": lambda a, b, **given: lmccheck.load_set([a, b], model=small_mlp, **given),
    "merge": lambda a, b, **given: lmccheck.load_merge({"x": a, "y": b}, MEAN, model=small_mlp, **given),
    "base": lambda a, b, **given: lmccheck.load_merge(
        {"x": a, "y": Path(b).parent / "third"}, MEAN, base_model=b, model=small_mlp, **given
    ),
}


def saved(path: Path, seed: int, files: Any = None, **config: Any) -> str:
    folder(path, {"tokenizer.json": words(), **(files or {})}, **config)
    save_file(seeded(small_mlp, seed), path / "model.safetensors")
    return str(path)


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"rope_theta": 5e5}, "config.json: rope_theta is 10000.0 in "),
        ({"files": OTHERS}, 'tokenizer.json: id 2 is "▁the" in '),
    ],
)
def test_what_differs_is_refused_unless_it_is_accepted(tmp_path: Path, kind: str, other: Any, said: str) -> None:
    """By every way to load, with the user's own model too; the line says how to accept it."""
    saved(tmp_path / "third", 2)
    ends = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1, **other)
    with pytest.raises(CheckpointError) as caught:
        LOADS[kind](*ends, data=DATA)
    line = str(caught.value)
    assert said in line
    (accept,) = re.findall(r'accept=\["(\w+)"\]$', line)
    LOADS[kind](*ends, data=DATA, accept=[accept])


def test_what_is_equal_loads(tmp_path: Path) -> None:
    LOADS["pair"](saved(tmp_path / "a", 0), saved(tmp_path / "b", 1, transformers_version="4.1"), data=DATA)


def test_files_that_are_named_by_themselves_load_as_they_did(tmp_path: Path) -> None:
    """With the user's own model, what lies beside a lone file is not asked for."""
    for name, theta in (("a", 1e4), ("b", 5e5)):
        saved(tmp_path / name, int(theta), rope_theta=theta)
    LOADS["pair"](tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors", data=DATA)


def test_several_differences_are_counted_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    ends = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1, OTHERS, rope_theta=5e5)
    with pytest.raises(CheckpointError, match=r'accept=\["rope_theta"\] \(and 1 more\)$'):
        LOADS["pair"](*ends, data=DATA)
    with pytest.raises(CheckpointError, match=r"accept: got 'rope_teta', expected .*\(did you mean 'rope_theta'\?\)$"):
        LOADS["pair"](*ends, data=DATA, accept=["rope_teta", "vocabulary"])
    with pytest.raises(CheckpointError, match=r"accept: got 'vocabulary', expected a list of names; mend: "):
        LOADS["pair"](*ends, data=DATA, accept="vocabulary")


def test_what_is_shipped_says_what_the_merge_does(tmp_path: Path) -> None:
    """The mean itself fails when its config or tokenizer is another than the parents'; a note of dtypes it is not."""
    parents = {name: saved(tmp_path / name, seed) for seed, name in enumerate("xy")}
    mean = {k: (v.double() + seeded(small_mlp, 1)[k].double()).div(2).float() for k, v in seeded(small_mlp, 0).items()}

    def verdict(**config: Any) -> lmccheck.Result:
        out = saved(tmp_path / "out", 0, config.pop("files", None), **config)
        save_file(mean, tmp_path / "out" / "model.safetensors")
        merge = lmccheck.load_merge(parents, MEAN, shipped=out, model=small_mlp, data=DATA, device="cpu")
        return lmccheck.shipped(merge)

    assert verdict().passed
    scaled = verdict(rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.verdict == "fail"
    assert 'config.json: rope_scaling is {"rope_type": "linear", "factor": 2.0} in shipped (' in repr(scaled.details)
    assert verdict(files=OTHERS).verdict == "fail"
