"""Whether two safetensors files hold the same tensors, found without torch and read until the first difference."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
UNUSED = "num_batches_tracked"  # changes nothing that a network computes

Layout = Mapping[str, tuple[str, list[int], int, int]]  # dtype, shape, where the bytes begin and end


def same_contents(first: Path, second: Path) -> bool:
    """Return whether two files, whose headers were read before, hold equal tensors under the same names.

    Metadata, the order of tensors, and how many batches a BatchNorm has seen may differ.
    """
    with first.open("rb") as one, second.open("rb") as other:
        mine, theirs = _layout(one), _layout(other)
        if {name: entry[:2] for name, entry in mine.items()} != {name: entry[:2] for name, entry in theirs.items()}:
            return False
        in_order = sorted(mine, key=lambda name: mine[name][2])
        return all(_equal(one, mine[name][2:], other, theirs[name][2:]) for name in in_order)


def _layout(file: BinaryIO) -> Layout:
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    start = 8 + length
    return {
        name: (entry["dtype"], entry["shape"], *(start + place for place in entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__" and not name.endswith(UNUSED)
    }


def _equal(one: BinaryIO, mine: tuple[int, int], other: BinaryIO, theirs: tuple[int, int]) -> bool:
    if mine[1] - mine[0] != theirs[1] - theirs[0]:
        return False
    one.seek(mine[0])
    other.seek(theirs[0])
    left = mine[1] - mine[0]
    while left > 0:
        size = min(CHUNK, left)
        if one.read(size) != other.read(size):
            return False
        left -= size
    return True
