"""Headers are read strictly: what the format does not allow is one line, wherever a file is looked at or read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lmccheck import CheckpointError
from lmccheck.store import files
from lmccheck.store.header import Header, TensorHeader, read_header, require_samples


def framed(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def header(data: int = 16, **tensors: Any) -> bytes:
    """Return a file whose header is given as Python has it, with some bytes of data."""
    return framed(json.dumps(tensors).encode(), bytes(data))


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


NESTED = b'{"w":' * 1000 + b"1" + b"}" * 1000
WHOLE = '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
TWICE = '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
REFUSED: dict[str, tuple[bytes, str]] = {
    "nested": (framed(NESTED), "nested too deeply|other keys"),
    "arrays nested": (framed(b'{"w":' + b"[" * 100_000, b""), "nested too deeply|no JSON"),
    "length of 2^63": (struct.pack("<Q", 2**63) + b"{}", "claims 9223372036854775808"),
    "length beyond the file": (struct.pack("<Q", 100) + b"{}", "claims 100"),
    "empty": (b"", "0 bytes"),
    "a byte order mark": (framed(b"\xef\xbb\xbf" + WHOLE.encode(), bytes(16)), "begins with"),
    "UTF-16": (framed(WHOLE.encode("utf-16"), bytes(16)), "begins with"),
    "not UTF-8": (framed(b'{"\xff":1}'), "not UTF-8"),
    "a surrogate": (header(**{"head\ud800bias": entry()}), r"no Unicode, 'head\\ud800bias'"),
    "a surrogate in the metadata": (header(0, __metadata__={"a": "\udfff"}), "no Unicode"),
    "a list": (framed(b'["w"]'), "begins with"),
    "said twice": (framed(TWICE.encode(), bytes(16)), "says 'w' twice"),
    "metadata of numbers": (header(w=entry(), __metadata__={"step": 3}), "__metadata__ is no table of texts"),
    "metadata that is null": (header(w=entry(), __metadata__=None), "__metadata__ is no table"),
    "NaN": (framed(WHOLE.replace("[4]", "NaN").encode(), bytes(16)), "NaN"),
    "a size beyond float": (framed(WHOLE.replace("[4]", "[1e999]").encode(), bytes(16)), r"shape \[Infinity\]"),
    "a size of 5000 digits": (framed(WHOLE.replace("[4]", f"[{'9' * 5000}]").encode(), bytes(16)), "digits"),
    "a size of 400 digits": (header(w=entry(shape=[10**400])), "no list of sizes"),
    "sizes whose product is beyond 64 bits": (header(0, w=entry(shape=[0, 2**62, 2**62], offsets=[0, 0])), "too large"),
    "a hundred thousand dimensions": (header(4, w=entry(shape=[1] * 100_000, offsets=[0, 4])), "too large"),
    "a size that is true": (header(4, w=entry(shape=[True], offsets=[0, 4])), "no list of sizes"),
    "a size that is 4.0": (header(w=entry(shape=[4.0])), "no list of sizes"),
    "a negative size": (header(w=entry(shape=[-2, -2])), "no list of sizes"),
    "a shape that is a number": (header(w=entry(shape=4)), "no list of sizes"),
    "an unknown dtype": (header(w=entry("F31")), "dtype \"F31\""),
    "a dtype that is no text": (header(w=entry(["F32"])), "of dtype"),
    "no dtype": (header(w={"shape": [4], "data_offsets": [0, 16]}), "other keys"),
    "another key": (header(w=entry(compression="zstd")), "other keys"),
    "an entry that is no table": (header(w=[1]), "other keys"),
    "negative offsets": (header(w=entry(offsets=[-16, 0])), "no two places"),
    "offsets that are floats": (header(w=entry(offsets=[0.0, 16.0])), "no two places"),
    "three offsets": (header(w=entry(offsets=[0, 8, 16])), "no two places"),
    "offsets that end before they begin": (header(w=entry(offsets=[16, 0])), "of -16 bytes"),
    "offsets of 4000 digits": (framed(WHOLE.replace("16]", "1" * 4000 + "]").encode()), "bytes for shape"),
    "more bytes than the shape": (header(20, w=entry(offsets=[0, 20])), "of 20 bytes for shape"),
    "offsets beyond the file": (header(8, w=entry()), "where the header describes"),
    "trailing bytes": (header(17, w=entry()), "where the header describes"),
    "a hole at the start": (header(20, w=entry(offsets=[4, 20])), "4 bytes of no tensor at the start"),
    "a hole": (header(36, a=entry(), b=entry(offsets=[20, 36])), "4 bytes of no tensor after tensor 'a'"),
    "tensors that overlap": (header(24, a=entry(), b=entry(offsets=[8, 24])), "overlap after tensor 'a'"),
    "two tensors of the same bytes": (header(16, a=entry(), b=entry()), "overlap after tensor 'a'"),
    "an empty tensor within another": (header(16, a=entry(), b=entry(shape=[0], offsets=[8, 8])), "overlap"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_format_does_not_allow_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """One printable line of at most 500 characters, the same whether the file is looked at or read."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    said = []
    for reader in (read_header, files.read):
        with pytest.raises(CheckpointError, match=why) as error:
            reader(path)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert said[0].isprintable()
    assert len(said[0]) <= 500
    assert said[0].endswith("mend: save or download it again")


ALLOWED: dict[str, tuple[bytes, dict[str, tuple[int, ...]]]] = {
    "nothing": (framed(b"{}"), {}),
    "padded with spaces": (framed(WHOLE.encode() + b"   ", bytes(16)), {"w": (4,)}),
    "empty tensors between others": (
        header(16, a=entry(), b=entry(shape=[0, 3], offsets=[16, 16]), c=entry(shape=[0], offsets=[0, 0])),
        {"a": (4,), "b": (0, 3), "c": (0,)},
    ),
    "a scalar": (header(4, s=entry(shape=[], offsets=[0, 4])), {"s": ()}),
    "names like the format's own": (
        header(16, **{"__metadata__ ": entry(shape=[2], offsets=[8, 16]), "dtype": entry(shape=[2], offsets=[0, 8])}),
        {"dtype": (2,), "__metadata__ ": (2,)},
    ),
    "names that differ by normalisation alone": (
        header(16, **{"é": entry(shape=[2], offsets=[0, 8]), "e\u0301": entry(shape=[2], offsets=[8, 16])}),
        {"é": (2,), "e\u0301": (2,)},
    ),
}


@pytest.mark.parametrize(("content", "shapes"), ALLOWED.values(), ids=ALLOWED.keys())
def test_what_the_format_allows_is_read(tmp_path: Path, content: bytes, shapes: dict[str, tuple[int, ...]]) -> None:
    """Strict is not narrow."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert {name: header.shape for name, header in read_header(path).tensors.items()} == shapes
    assert {name: tuple(tensor.shape) for name, tensor in files.read(path).tensors.items()} == shapes


def test_tensors_that_do_not_begin_at_a_multiple_of_their_size(tmp_path: Path) -> None:
    """The format allows it; each tensor has memory of its own, where it does."""
    path = tmp_path / "x.safetensors"
    numbers = struct.pack("<3d", 1.5, -2.0, 3.25)
    text = json.dumps({"m": entry("U8", [3], [0, 3]), "w": entry("F64", [3], [3, 27])}).encode()
    path.write_bytes(framed(text, b"\1\2\3" + numbers))
    assert files.read(path).tensors["w"].tolist() == [1.5, -2.0, 3.25]


def test_a_boolean_is_0_or_1(tmp_path: Path) -> None:
    """Any other byte is true in one operation and false in the next."""
    path = tmp_path / "x.safetensors"
    text = json.dumps({"mask": entry("BOOL", [3], [0, 3])}).encode()
    path.write_bytes(framed(text, b"\1\0\1"))
    assert files.read(path).tensors["mask"].tolist() == [True, False, True]
    path.write_bytes(framed(text, b"\1\0\2"))
    with pytest.raises(CheckpointError, match="'mask' of dtype BOOL"):
        files.read(path)


def test_more_than_there_is_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file is as large as it says: the line has the size that was asked."""
    path = tmp_path / "x.safetensors"
    text = json.dumps({"w": entry("F32", [2**45], [0, 2**47])}).encode()
    path.write_bytes(framed(text))
    try:
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + 2**47)
    except OSError:
        size = {"shape": [4], "data_offsets": [0, 16]}
        path.write_bytes(header(w={"dtype": "F32", **size}))

        def empty(*_: Any, **__: Any) -> None:
            raise RuntimeError("can't allocate memory")

        monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(CheckpointError, match=r"'w' takes \d+ bytes, which this machine does not have"):
        files.read(path)


def test_a_million_tensors_are_looked_at_in_seconds(tmp_path: Path) -> None:
    """Nothing grows with the square of their number (100,000 here)."""
    import time

    path = tmp_path / "x.safetensors"
    count = 100_000
    text = json.dumps({f"t{k}": entry("U8", [1], [k, k + 1]) for k in range(count)}).encode()
    path.write_bytes(framed(text, bytes(count)))
    begin = time.process_time()
    assert len(read_header(path).tensors) == count
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("name", ["層.重み", "головa", "δ→ε", "🦙.weight"])
def test_names_of_any_script_stay_readable(tmp_path: Path, name: str) -> None:
    """What can be printed is."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(header(17, **{name: entry("F31")}))
    with pytest.raises(CheckpointError, match=name):
        read_header(path)


@pytest.mark.parametrize("targets", [4, 6])
def test_data_have_as_many_targets_as_inputs(targets: int) -> None:
    """Neither fewer nor more; told from the header alone."""
    tensors = {"inputs": TensorHeader("F32", (5, 2)), "targets": TensorHeader("I64", (targets,))}
    with pytest.raises(CheckpointError, match=f"got 5 inputs and {targets} targets, expected as many targets as"):
        require_samples(Header(tensors, {}), "data")
