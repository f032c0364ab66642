"""500 damaged checkpoints: accepted by lmccheck exactly where a reader written from the format's text accepts them."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import reference
import safetensors
import torch
from hostile import NAMES, NUMBERS, bytes_changed, outcome, values
from networks.small import seeded, small_mlp
from safetensors.torch import save

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store import files
from lmccheck.store.header import read_header

COUNT, ROUNDS = 500, 10
UNSEEN = ("NaN and", "dtype BOOL with a byte")  # what no header shows
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F8_E5M2", "F4", "f32", "F33"]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return a checkpoint after one or two damages, of its bytes or of what its header says."""
    for _ in range(rng.choice([1, 1, 2])):
        try:
            content = rng.choice(DAMAGES)(rng, content)
        except BROKEN:  # the first damage left no header to change
            content = bytes_changed(rng, content)
    return content


def entry_changed(rng: random.Random, content: bytes) -> bytes:
    """Change what is said of one tensor."""
    header, data = split(content)
    name = rng.choice(list(header))
    if not isinstance(header[name], dict):
        return content
    key = rng.choice([*header[name], "more"])
    old = header[name].get(key)
    if isinstance(old, list) and old and rng.random() < 0.6:
        old[rng.randrange(len(old))] = rng.choice(NUMBERS)
    elif key == "dtype" and rng.random() < 0.8:
        header[name][key] = rng.choice(DTYPES)
    elif rng.random() < 0.2:
        header[name].pop(key, None)
    else:
        header[name][key] = values(rng)
    return joined(header, data)


def names_changed(rng: random.Random, content: bytes) -> bytes:
    """Rename a tensor, drop one, add one, or say other metadata."""
    header, data = split(content)
    name = rng.choice(list(header))
    kind = rng.randrange(5)
    if kind == 0:
        header[rng.choice(NAMES)] = header.pop(name)
    elif kind == 1:
        header.pop(name)
    elif kind == 2:
        header[rng.choice(NAMES)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    elif kind == 3:
        header["__metadata__"] = values(rng)
    else:
        header["__metadata__"] = {rng.choice(NAMES): rng.choice(NAMES)}
    return joined(header, data)


def moved(rng: random.Random, content: bytes) -> bytes:
    """Give tensors other places: overlapping, with holes, in another order, with other sizes."""
    header, data = split(content)
    tensors = [entry for entry in header.values() if isinstance(entry, dict) and "data_offsets" in entry]
    if not tensors:
        return content
    kind = rng.randrange(4)
    if kind == 0:
        by = rng.choice([-8, -4, 4, 8, 2**40])
        rng.choice(tensors)["data_offsets"] = [place + by for place in (0, 16)]
    elif kind == 1:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + bytes(rng.randrange(1, 9)) + data[place:]
    elif kind == 2:
        data = data[: rng.randrange(len(data) + 1)]
    else:
        one, other = rng.choice(tensors), rng.choice(tensors)
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    return joined(header, data)


def text_changed(rng: random.Random, content: bytes) -> bytes:
    """Change the header's text, not what it says."""
    header, data = split(content)
    text = json.dumps(header).encode()
    text = rng.choice(
        [
            text + b" " * rng.randrange(1, 9), b"\xef\xbb\xbf" + text, b" " + text, text.decode().encode("utf-16"),
            text + b"\0", text.replace(b"F32", b"F32\xff", 1), text[:-1] + b"," + text[1:], b"[" * 3000,
            text.replace(b": ", b":"),
            b'{"a":' * 990 + text + b"}" * 990, text.replace(b"[", b"[1e999,", 1), text.replace(b"[", b"[-0,", 1),
        ]
    )  # fmt: skip
    return struct.pack("<Q", len(text)) + text + data


def numbers_changed(rng: random.Random, content: bytes) -> bytes:
    """Change a stored number to one that is none."""
    header, data = split(content)
    place = 4 * rng.randrange(max(1, len(data) // 4))
    return joined(
        header, data[:place] + rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\2\2\2\2"]) + data[place + 4 :]
    )


def length_changed(rng: random.Random, content: bytes) -> bytes:
    """Lie about the header's length."""
    length = struct.unpack("<Q", content[:8])[0]
    lie = rng.choice([0, 1, 2, length - 1, length + 1, length + 8, 10**8, 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", lie % 2**64) + content[8:]


def as_it_is(rng: random.Random, content: bytes) -> bytes:
    return content


DAMAGES = [
    entry_changed, entry_changed, entry_changed, names_changed, moved, text_changed, numbers_changed, length_changed,
    as_it_is, bytes_changed,
]  # fmt: skip


def base(rng: random.Random) -> bytes:
    """Return a sound checkpoint: of the network, or of tensors of every dtype."""
    if rng.random() < 0.6:
        return save(seeded(small_mlp, rng.randrange(3)), {"format": "pt"})
    tensors = {
        "d": torch.randn(2, 3, dtype=torch.float64), "h": torch.randn(5).half(), "g": torch.randn(3).bfloat16(),
        "i": torch.arange(4), "m": torch.tensor([True, False, True]), "u": torch.arange(3, dtype=torch.uint8),
        "z": torch.zeros(0, 3), "s": torch.tensor(1.5),
    }  # fmt: skip
    return save(dict(rng.sample(sorted(tensors.items()), rng.randrange(1, 8))))


def by_reference(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return what the reference reads, or None and why it does not."""
    try:
        return reference.read(content), ""
    except reference.Wrong as wrong:
        return None, str(wrong)


def agrees(content: bytes, read: files.Stored | None, said: str | None, what: str) -> None:
    """Compare with the reference, byte by byte, and with the library that made the format."""
    expected, wrong = by_reference(content)
    if expected is None:
        assert read is None, f"{what}: accepted, but {wrong}"
        return
    assert read is not None, f"{what}: refused, but well formed: {said}"
    assert read.tensors.keys() == expected.keys()
    for name, (dtype, shape, raw) in expected.items():
        tensor = read.tensors[name]
        assert (tuple(tensor.shape), read.header.tensors[name].dtype) == (shape, dtype), what
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == raw, what
    safetensors.deserialize(content)  # nothing is accepted that the library refuses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose a is damaged and whose b is sound."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "b.safetensors").write_bytes(save(seeded(small_mlp, 7)))
    (folder / "data.safetensors").write_bytes(
        save({"inputs": torch.randn(8, 4), "targets": torch.zeros(8, dtype=torch.int64)})
    )
    (folder / "lmc.toml").write_text(
        'schema = 1\n[pair.p]\na = "a.safetensors"\nb = "b.safetensors"\nmodel = "m:m"\ndata = "data.safetensors"\n'
        "check.linear_connectivity.limit = 1\n"
    )
    return folder


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_checkpoints(folder: Path, seed: int) -> None:
    """No traceback, no wait, nothing that a terminal would obey; what loading refuses the manifest item refuses."""
    rng = random.Random(seed)
    plan, path = load_manifest(folder / "lmc.toml"), folder / "a.safetensors"
    data = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
    module = small_mlp()
    for number in range(COUNT // ROUNDS):
        what = f"seed {seed}, checkpoint {number}"
        content = damaged(rng, base(rng))
        path.write_bytes(content)
        header, _ = outcome(what, lambda: read_header(path), CheckpointError)
        read, said = outcome(what, lambda: files.read(path), CheckpointError)
        assert (header is not None) == (read is not None) or "dtype BOOL" in str(said), what
        agrees(content, read, said, what)
        pair, said = outcome(
            what, lambda: lmccheck.load_pair(path, folder / "b.safetensors", model=module, data=data), CheckpointError
        )
        found, _ = outcome(what, lambda: problems(plan), CheckpointError)
        assert all(line.isprintable() and len(line) <= 500 for line in found), what
        if pair is None and not any(word in str(said) for word in UNSEEN):
            assert found, f"{what}: green before, refused after: {said}"


def test_the_damages_are_of_both_kinds() -> None:
    """Of 500, at least a tenth are sound and half are not, by the reference alone."""
    sound = 0
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        sound += sum(by_reference(damaged(rng, base(rng)))[0] is not None for _ in range(COUNT // ROUNDS))
    assert COUNT // 10 <= sound <= COUNT // 2
