"""Files that are written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmccheck.errors import CheckpointError
from lmccheck.store.files import header_of
from lmccheck.store.streamed import save_streamed

TENSORS = {
    "weight": torch.randn(3, 4),
    "größe": torch.tensor(2.5),
    "half": torch.randn(5).bfloat16(),
    "ids": torch.arange(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}
HEADERS = {name: header_of(tensor) for name, tensor in TENSORS.items()}


def test_a_streamed_file_is_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    """Byte for byte, each tensor asked for once."""
    asked: list[str] = []

    def get(name: str) -> torch.Tensor:
        asked.append(name)
        return TENSORS[name]

    save_streamed(tmp_path / "a.safetensors", HEADERS, get, {"format": "pt"})
    save_file(TENSORS, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(asked) == sorted(TENSORS)
    assert load_file(tmp_path / "a.safetensors").keys() == TENSORS.keys()


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """Neither a new file nor a part of one; an old one stays."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def get(name: str) -> torch.Tensor:
        if name == "ids":
            raise KeyError(name)
        return TENSORS[name]

    with pytest.raises(KeyError):
        save_streamed(path, HEADERS, get)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_tensor_is_what_was_said_of_it(tmp_path: Path) -> None:
    """Another shape would shift all that follow."""
    with pytest.raises(CheckpointError, match=r"tensor 'weight': got \(4, 3\) float32, expected \(3, 4\) float32"):
        save_streamed(tmp_path / "a", {"weight": HEADERS["weight"]}, lambda name: TENSORS[name].T)


def test_what_was_read_is_not_written_over(tmp_path: Path) -> None:
    """Inputs stay."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="was read as"):
        save_streamed(path, HEADERS, TENSORS.__getitem__, inputs=[path])
