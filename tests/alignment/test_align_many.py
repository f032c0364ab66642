"""What align_many writes and refuses: members, pins, precision, models that cannot be aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks.sets import SMALL, equal_bits
from networks.small import seeded, small_batchnorm, small_mlp
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.network.model_set import load_set
from lmccheck.store.files import read_header, sha256_of


def test_a_member_is_written_as_an_aligned_pair_is(tmp_path: Path) -> None:
    """Its own numbers, permuted, with its file's metadata, and the permutation beside it."""
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for k, file in enumerate(files):
        save_file(seeded(small_mlp, k), file, {"made": str(k)})
    many = lmccheck.align_many(files, **SMALL, reference=1)
    for k in range(3):
        path = lmccheck.save_aligned(many.member(k), tmp_path / f"{k}-aligned.safetensors")
        assert equal_bits(load_file(path), many.weights[k])
        assert read_header(path).metadata == {"made": str(k)}
        assert equal_bits(load_file(tmp_path / f"{k}-aligned.permutation.safetensors"), dict(many.permutations[k]))
    assert many.member(1).is_identity


def test_a_pin_of_any_model_is_checked(tmp_path: Path) -> None:
    """In the order of the models."""
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for k, file in enumerate(files):
        save_file(seeded(small_mlp, k), file)
    pins = [sha256_of(file) for file in files]
    assert load_set(files, sha256=pins, **SMALL).names == ("0", "1", "2")
    for wrong in range(3):
        with pytest.raises(lmccheck.CheckpointError, match=rf"{wrong}\.safetensors: sha256 is {pins[wrong]}, the pin"):
            load_set(files, sha256=[*pins[:wrong], "0" * 64, *pins[wrong + 1 :]], **SMALL)


def test_half_precision_keeps_its_numbers() -> None:
    """Aligned weights are the stored ones, moved; the models may differ in dtype."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    states[1] = {name: tensor.half() for name, tensor in states[1].items()}
    states[2] = {name: tensor.double() for name, tensor in states[2].items()}
    many = lmccheck.align_many(states, **SMALL)
    for original, weights in zip(states, many.weights, strict=True):
        for name, tensor in weights.items():
            assert tensor.dtype == original[name].dtype
            assert torch.equal(tensor.flatten().sort().values, original[name].flatten().sort().values)
    assert all(map(torch.isfinite, torch.tensor(lmccheck.barrier_matrix(many)).flatten()))


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, r"models: got 0 model\(s\), expected at least two; mend"),
        ([0], {}, r"models: got 1 model\(s\), expected at least two"),
        ("a.safetensors", {}, "models: got str, expected a list"),
        ([0, 1], {"method": "merge"}, r"method = 'merge'.*expected one of \['merge-many', 'reference'\]"),
        ([0, 1], {"align": "weight-macthing"}, r"align = 'weight-macthing' \(did you mean 'weight-matching'\?\)"),
        ([0, 1], {"reference": 2}, "reference = 2; expected an integer from 0 to 1"),
        ([0, 1], {"seed": 0.5}, r"seed = 0\.5; expected an integer"),
        ([0, 1, None], {}, r"model 2: got NoneType, expected .*a \.safetensors path"),
        ([0, 1, {}], {}, r"state dict model 2: tensor '0\.weight' is missing"),
        ([0, 1, "bn"], {}, r"state dict model 2: tensor '0\.weight' has shape \(4, 1, 3"),
    ],
)
def test_what_cannot_be_aligned_is_said_in_one_line(models: Any, options: dict[str, Any], message: str) -> None:
    """Numbers stand for networks of that seed."""
    other = {name: tensor for name, tensor in seeded(small_batchnorm, 0).items() if name == "0.weight"}
    if isinstance(models, list):
        models = [
            seeded(small_mlp, m) if isinstance(m, int) else {**seeded(small_mlp, 0), **other} if m == "bn" else m
            for m in models
        ]
    with pytest.raises(lmccheck.LmcError, match=message) as caught:
        lmccheck.align_many(models, **SMALL, **options)
    assert "\n" not in str(caught.value)
