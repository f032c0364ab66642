"""Headers, hashes, batches and memory at their edges: one byte, one sample, one element too many or too few."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.data.batches import first_samples, in_parts, numbers, rebatched
from lmccheck.data.imports import load_object
from lmccheck.data.load import Batch, Data, load_data
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.store import checkpoint, files
from lmccheck.store.checkpoint import Checkpoint, Source, look_at, open_checkpoint
from lmccheck.store.documents import read_document
from lmccheck.store.tensors import equal, identity, overlap
from lmccheck.store.whole import replacing, write_whole


def written(path: Path, shape: list[int], stop: int, size: int) -> Path:
    """Write a file whose only tensor says to have a shape and the bytes 0 to ``stop``, followed by ``size`` bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


@pytest.mark.parametrize("off", [-4, 4])
def test_a_tensor_has_the_bytes_of_its_shape(tmp_path: Path, off: int) -> None:
    """Neither fewer nor more, also where the file is as long as it says."""
    assert files.read_header(written(tmp_path / "good.safetensors", [2, 3], 24, 24)).tensors["w"].shape == (2, 3)
    with pytest.raises(CheckpointError, match=f"tensor 'w' of {24 + off} bytes for shape"):
        files.read_header(written(tmp_path / "bad.safetensors", [2, 3], 24 + off, 24 + off))


def test_a_zipped_pickle_is_one_under_any_name(tmp_path: Path) -> None:
    """As torch.save writes it; called .safetensors it is still none."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="got a pickle"):
        files.read_header(tmp_path / "x.safetensors")


def test_a_file_is_hashed_to_its_last_byte(tmp_path: Path) -> None:
    """Two long files that differ in the last byte have hashes of their own: those of hashlib."""
    content = bytes(range(256)) * 4096
    for name, last in (("a", b"\x00"), ("b", b"\x01")):
        (tmp_path / name).write_bytes(content + last)
        assert files.sha256_of(tmp_path / name) == hashlib.sha256(content + last).hexdigest()


def test_only_floating_numbers_are_parameters(tmp_path: Path) -> None:
    """Counters are none; a shape's numbers are the product of its sides."""
    state = {"w": torch.zeros(4, 5), "s": torch.zeros(()), "n": torch.zeros(7, dtype=torch.int64)}
    assert open_checkpoint(state, tmp_path, "a").facts()["parameters"] == 21


def test_batches_are_as_few_as_the_limits_allow() -> None:
    """At most 4096 samples, two million numbers or what is asked for; all samples, in order, in near-equal parts."""
    narrow = load_data((torch.arange(10_001.0)[:, None], torch.arange(10_001)))
    assert [batch.samples for batch in rebatched(narrow)] == [3334, 3333, 3334]
    assert len(rebatched(narrow, 5001)) == 3
    assert len(rebatched(narrow, 100)) == 101
    wide = load_data((torch.zeros(9, 2**19), torch.arange(9)))
    assert [batch.samples for batch in rebatched(wide)] == [3, 3, 3]
    exact = load_data((torch.zeros(4096, 1), torch.arange(4096)))
    assert len(rebatched(exact)) == 1
    parts = in_parts(Batch(torch.arange(11), torch.arange(11)), 4, 10)
    assert torch.cat([part.targets for part in parts]).tolist() == list(range(10))
    assert {part.samples for part in parts} == {2, 3}


def test_a_samples_numbers_are_those_of_all_its_inputs() -> None:
    """Of every tensor the first sample's; tensors without samples do not count."""
    assert numbers(Batch((torch.zeros(5, 2, 3), torch.zeros(5), torch.tensor(1.0)), torch.zeros(5))) == 7


def test_batches_of_the_users_own_are_not_cut() -> None:
    """However few samples are asked for; samples in one tensor are."""
    own = Data((Batch(torch.zeros(3, 1), torch.zeros(3)), Batch(torch.zeros(4, 1), torch.zeros(4))), "own", False)
    assert first_samples(own, 2) is own
    whole = load_data((torch.arange(7.0)[:, None], torch.arange(7)))
    assert first_samples(whole, 5).batches[0].targets.tolist() == [0, 1, 2, 3, 4]
    assert first_samples(whole, 7) is whole


@pytest.mark.parametrize(("inputs", "targets"), [(5, 4), (4, 5)])
def test_inputs_and_targets_are_as_many(inputs: int, targets: int) -> None:
    """Too many of either are refused alike."""
    with pytest.raises(SourceError, match=f"got {inputs} inputs and {targets} targets"):
        load_data((torch.zeros(inputs, 2), torch.zeros(targets)))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["inputs", "targets"])
def test_data_holds_finite_numbers(number: float, place: str) -> None:
    """Targets too: a loss of them would be none."""
    data = {"inputs": torch.zeros(3, 2), "targets": torch.zeros(3)}
    data[place][2] = number
    with pytest.raises(SourceError, match=f"tensor '{place}' holds NaN or Inf"):
        load_data((data["inputs"], data["targets"]))


def test_batches_without_a_sample_are_no_data() -> None:
    """However many they are; beside others they are left out."""
    empty, one = (torch.zeros(0, 2), torch.zeros(0)), (torch.zeros(1, 2), torch.zeros(1))
    for none in ([], [empty], [empty, empty]):
        with pytest.raises(SourceError, match="got 0 samples"):
            load_data(none)
    assert load_data([empty, one, empty]).samples == 1


def view(memory: Tensor, start: int, *size: int, stride: tuple[int, ...] | None = None) -> Tensor:
    """Return a view of some memory."""
    return memory.as_strided(size, stride or torch.empty(size).stride(), start)


def test_tensors_overlap_where_their_ranges_meet() -> None:
    """The last element of one may be the first of another, not the one before it."""
    memory = torch.arange(12.0)
    first = view(memory, 0, 2, 2)
    assert overlap(first, view(memory, 3, 2))
    assert not overlap(first, view(memory, 4, 2))
    assert not overlap(view(memory, 4, 2), first)
    spread = view(memory, 0, 3, stride=(4,))  # 0, 4, 8
    assert overlap(spread, view(memory, 8, 2))
    assert not overlap(spread, view(memory, 9, 2))
    assert not overlap(first, torch.zeros(4))
    assert overlap(first, first)


def test_one_tensor_is_the_same_elements_in_the_same_order() -> None:
    """Another shape, order, dtype or place of the same memory is another tensor."""
    memory = torch.arange(12.0)
    square = view(memory, 0, 2, 2)
    assert identity(square) == identity(view(memory, 0, 2, 2))
    others = [square.T, view(memory, 0, 4), view(memory, 1, 2, 2), square.view(torch.int32), square.clone()]
    assert all(identity(square) != identity(other) for other in others)


def test_nan_equals_nan_in_the_same_place() -> None:
    """And nothing else."""
    assert equal(torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]))
    assert not equal(torch.tensor([1.0, math.nan]), torch.tensor([math.nan, 1.0]))
    assert not equal(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    assert not equal(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 0.0]))
    assert not equal(torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, torch.finfo(torch.float32).max]))
    assert not equal(torch.zeros(2), torch.zeros(1))


def test_a_name_inside_a_name_is_found(tmp_path: Path) -> None:
    """``"nets:Small.build"`` is an attribute of an attribute; each part that is missing is named."""
    (tmp_path / "inner_nets.py").write_text("class Small:\n    @staticmethod\n    def build():\n        return 7\n")
    assert load_object("inner_nets:Small.build", tmp_path, "model")() == 7
    with pytest.raises(SourceError, match=r"inner_nets has no 'bild' \(did you mean 'build'\?\)"):
        load_object("inner_nets:Small.bild", tmp_path, "model")


def read(tmp_path: Path, name: str, content: bytes) -> dict[str, Any]:
    (tmp_path / name).write_bytes(content)
    return read_document(tmp_path / name)[2]


def test_documents_say_the_line_of_a_byte_and_the_key_that_is_said_twice(tmp_path: Path) -> None:
    """Lines are counted from 1; a byte order mark is no content."""
    assert read(tmp_path, "x.toml", b"\xef\xbb\xbfa = 1\n") == {"a": 1}
    with pytest.raises(ValueError, match="line 1: got the byte 0xff"):
        read(tmp_path, "x.toml", b"a = \xff")
    with pytest.raises(ValueError, match="line 3: got the byte 0xfe"):
        read(tmp_path, "x.toml", b"a = 1\n\nb = \xfe\n")
    with pytest.raises(ValueError, match="the key 'b' occurs twice"):
        read(tmp_path, "x.json", b'{"a": 1, "b": 2, "b": 2}')


def test_a_file_that_may_not_be_written_to_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the folder would let another take its place."""
    path = tmp_path / "kept"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "access", lambda file, mode: mode != os.W_OK)  # as for a user who is not root
    with pytest.raises(PermissionError), replacing(path) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_names_of_one_tensor_are_each_written(tmp_path: Path) -> None:
    """Tied names, and a view of another, are read back alike; the file shares nothing."""
    tensor = torch.arange(6.0).reshape(2, 3)
    files.save({"one": tensor, "two": tensor, "row": tensor[1], "turned": tensor.T}, tmp_path / "x.safetensors")
    found = files.load(tmp_path / "x.safetensors")
    assert torch.equal(found["one"], tensor)
    assert torch.equal(found["two"], tensor)
    assert torch.equal(found["row"], tensor[1])
    assert torch.equal(found["turned"], tensor.T)


def test_a_source_that_takes_every_path_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever was declared first."""

    def source(name: str, accepts: Callable[[Any], bool], fallback: bool = False) -> Source:
        return Source(name, accepts, lambda given, folder, side: Checkpoint(name, {}, dict), fallback)

    any_path, own = source("any", lambda given: True, fallback=True), source("own", lambda given: given == "x.own")
    for several in ([any_path, own], [own, any_path]):
        monkeypatch.setattr(checkpoint, "SOURCES", several)
        assert [look_at(given, tmp_path, "a").label for given in ("x.own", "x.other")] == ["own", "any"]


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (lambda: torch.eye(3).to_sparse(), "layout sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "layout sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch says that these are in beta
def test_tensors_that_no_file_holds_are_refused_in_one_line(make: Callable[[], torch.Tensor], form: str) -> None:
    """A sparse or nested tensor of a state dict: its name, its form, what to do."""
    module = nn.Linear(3, 2)
    module.register_buffer("adjacent", make())
    data = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    said = f"state dict model: tensor 'adjacent': got {form}, expected dense numbers"
    with pytest.raises(CheckpointError, match=said):
        lmccheck.load_model(module.state_dict(), model=module, data=data)
