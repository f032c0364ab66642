"""Files that are written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lmccheck.errors import CheckpointError
from lmccheck.store.files import save_all
from lmccheck.store.header import header_of
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


def test_the_same_content_is_the_same_file_in_every_run(tmp_path: Path) -> None:
    """Tensors that share memory or lie across it, and several entries of metadata, in the order they are given in."""
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.T, "none": torch.zeros(0, 2), "half": whole.half()}
    waves = torch.complex(whole, whole + 1)
    tensors |= {"conjugate": waves.conj(), "negative": waves.conj().imag}
    said = {f"entry {k}": str(k) for k in range(8)}
    save_all({tmp_path / "a": (tensors, said), tmp_path / "b": ({}, {})})
    again = {name: tensor.clone() for name, tensor in tensors.items()}
    save_all({tmp_path / "c": (again, said)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == said
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    head = (tmp_path / "a").read_bytes()
    assert [head.index(name.encode()) for name in said] == sorted(head.index(name.encode()) for name in said)
    assert load_file(tmp_path / "b") == {}
