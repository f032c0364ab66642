"""Three hundred damaged witnesses and paths, from a seed: each is a line of CheckpointError, or proves what it did."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks.paths import mlp_pair
from networks.witnesses import honest, ten
from safetensors.torch import load, save_file
from torch import Tensor

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.result import Result
from lmccheck.store.stated import DIGEST, digest

JUNK = [
    None, True, -1, 2**70, 1e308, float("nan"), float("inf"), "", "\x1b[31m\n", "\ud800", [], [[]], {}, {"a": {}},
    [None], "0/4.weight", "b", 10**400,
]  # fmt: skip
Draw = random.Random


def parts(raw: bytes) -> tuple[dict[str, object], bytes]:
    """Return the header and the data of a safetensors file."""
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def whole(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def cut(raw: bytes, draw: Draw) -> bytes:
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    return raw[: draw.choice([0, 1, 7, 8, 9, size - 1, size, size + 1, len(raw) - 1, draw.randrange(len(raw))])]


def grown(raw: bytes, draw: Draw) -> bytes:
    return draw.choice([raw + bytes(draw.randrange(1, 99)), raw + raw, b"\0" + raw])


def flipped(raw: bytes, draw: Draw) -> bytes:
    """One bit, somewhere: in the length, in the header, or in the data."""
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    at = draw.choice([draw.randrange(8), draw.randrange(8, size), draw.randrange(size, len(raw))])
    return raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :]


def overwritten(raw: bytes, draw: Draw) -> bytes:
    start = draw.randrange(len(raw) - 1)
    length = draw.randrange(1, min(200, len(raw) - start) + 1)
    return raw[:start] + draw.choice([bytes(length), draw.randbytes(length)]) + raw[start + length :]


def header_edited(raw: bytes, draw: Draw) -> bytes:
    """An entry of the header said otherwise: dtype, shape, offsets, or the metadata as a whole."""
    header, data = parts(raw)
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = dict(header[name])
    what = draw.choice(["dtype", "shape", "data_offsets", "entry", "metadata", "value", "text", "lost", "renamed"])
    if what in entry:
        other = {"dtype": ["F32", "I64", "X", 5], "shape": [[1], [-1], [10**30], "x", [2.5], [float("inf")]]}
        entry[what] = draw.choice(other.get(what, [[0, 10**20], [5, 1], [], None, [-8, 8], ["a", "b"]]))
        header[name] = entry
    elif what == "entry":
        header[name] = draw.choice(JUNK)
    elif what == "metadata":
        header["__metadata__"] = draw.choice(JUNK)
    elif what == "value":
        header["__metadata__"] = {key: draw.choice([5, None, [], {}]) for key in header["__metadata__"]}
    elif what == "text":
        return whole(draw.choice([b"{", b"[]", b"5", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 5000, b"{}"]), data)
    elif what == "lost":
        del header[name]
    else:
        header[draw.choice(["", "x", "a.0.keep.zz", name + "\n", "__metadata__ "])] = header.pop(name)
    return whole(header, data)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Return the way to everything inside JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


def facts_edited(raw: bytes, draw: Draw) -> bytes:
    """Something in the JSON of the metadata replaced, lost or renamed; hashed anew, as somebody would who means it."""
    header, data = parts(raw)
    told = dict(header["__metadata__"])
    key = next(key for key in told if key != DIGEST)
    facts = json.loads(told[key])
    place = draw.choice(places(facts)[1:])
    holder = facts
    for step in place[:-1]:
        holder = holder[step]
    what = draw.choice(["junk", "junk", "lost", "renamed", "swapped", "text"])
    if what == "junk":
        holder[place[-1]] = draw.choice(JUNK)
    elif what == "lost":
        del holder[place[-1]]
    elif what == "renamed" and isinstance(holder, dict):
        holder[draw.choice(["x", "0.bias", "a", ""])] = holder.pop(place[-1])
    elif what == "swapped":
        other = draw.choice(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
        holder[place[-1]], holder[other] = holder[other], holder[place[-1]]
    text = json.dumps(facts)
    if what == "text":
        text = draw.choice(
            [text[:-3], "[" * 100_000, text + "x", "null", "{}", text.replace("{", '{"x": 1, "x": 2, ', 1)]
        )
    told[key] = text
    told[DIGEST] = digest(load(raw), text)
    return whole({**header, "__metadata__": told}, data)


def tensors_edited(raw: bytes, draw: Draw, folder: Path) -> bytes:
    """A tensor made NaN, infinite, huge, of another dtype or shape, lost, renamed, swapped or added; hashed anew."""
    header, _ = parts(raw)
    told = dict(header["__metadata__"])
    key = next(key for key in told if key != DIGEST)
    held = load(raw)
    name, other = draw.choice(list(held)), draw.choice(list(held))
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "nan": lambda t: t.double() * float("nan"), "inf": lambda t: t.double() + float("inf"),
        "float32": lambda t: t.float(), "int64": lambda t: t.long(), "bool": lambda t: t.bool(),
        "turned": lambda t: t.reshape(-1, 1) if t.ndim < 2 else t.T.contiguous(), "flat": lambda t: t.flatten()[:1],
        "empty": lambda t: t.flatten()[:0], "shifted": lambda t: t + 1, "huge": lambda t: t.double() * 1e300,
    }  # fmt: skip
    what = draw.choice([*changes, "lost", "renamed", "swapped", "added"])
    if what in changes:
        held[name] = changes[what](held[name])
    elif what == "lost":
        del held[name]
    elif what == "renamed":
        held[draw.choice(["", "x", name + "x", "c.0.keep.0"])] = held.pop(name)
    elif what == "swapped":
        held[name], held[other] = held[other], held[name]
    else:
        held["extra"] = torch.ones(2)
    told[DIGEST] = digest(held, told[key])
    file = folder / "edited.safetensors"
    save_file({n: t.clone() for n, t in held.items()}, file, metadata=told)
    return file.read_bytes()


BYTES = (cut, grown, flipped, overwritten, header_edited)


@pytest.fixture(scope="module")
def witnesses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, float, Callable[[Path], Result]]]:
    """Per kind the bytes of an honest file, its value, and what verifies such a file."""
    folder = tmp_path_factory.mktemp("honest")
    pair = mlp_pair([3, 4, 3, 2])
    files = {
        "path": ten(pair)[2].save(folder / "p.safetensors"),
        "dropout": honest(pair).save(folder / "d.safetensors"),
    }
    read: dict[str, Callable[[Path], Result]] = {
        "path": lambda file: lmccheck.verify_path(pair, file, epsilon=100.0, profile="dev"),
        "dropout": lambda file: lmccheck.verify_dropout(pair, file, epsilon=100.0, keep=0.5),
    }
    return {kind: (file.read_bytes(), read[kind](file).value, read[kind]) for kind, file in files.items()}


def mutated(how: str, raw: bytes, draw: Draw, folder: Path) -> bytes:
    """Return one damaged file."""
    if how == "tensors":
        return tensors_edited(raw, draw, folder)
    return facts_edited(raw, draw) if how == "facts" else draw.choice(BYTES)(raw, draw)


@pytest.mark.parametrize("kind", ["path", "dropout"])
@pytest.mark.parametrize("how", ["bytes", "facts", "tensors"])
def test_damaged_witnesses(
    kind: str, how: str, witnesses: dict[str, tuple[bytes, float, Callable[[Path], Result]]], tmp_path: Path
) -> None:
    """Cut, grown, flipped, overwritten, re-told, re-filled: fifty each; one printable line, and nothing else raised.

    What changes nothing that counts (a word; the hash's own name) is read, and has the honest value to the last bit;
    numbers that were exchanged for others of a true dropped network, and hashed anew, are measured as what they are.
    """
    raw, value, read = witnesses[kind]
    draw = random.Random(f"{kind} {how}")
    read_again = 0
    for number in range(50):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(mutated(how, raw, draw, tmp_path))
        try:
            found = read(file)
        except CheckpointError as error:
            said = str(error)
            assert said.isprintable(), f"{number}: {said!r}"
            assert len(said) <= 500, said
            assert any(word in said for word in (file.name, "verify_dropout: ", "path: ", "path of pair")), said
        else:
            read_again += 1
            assert found.value == value or (how == "tensors" and math.isfinite(found.value)), number
    assert read_again <= 12
