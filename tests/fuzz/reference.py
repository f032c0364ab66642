"""A slow reader of safetensors, written from the format's description alone: what the fuzzer believes.

N, 8 bytes, little-endian; N bytes of JSON in UTF-8 that begin with ``{`` and may end in spaces; the rest is data. Each
name once, with exactly dtype, shape and data_offsets; every byte of the data belongs to exactly one tensor.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

SIZES = {  # bytes of one number
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class Wrong(Exception):
    """The file is none of the format."""


def need(condition: object, why: str) -> None:
    if not condition:
        raise Wrong(why)


def whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def number(text: str) -> Any:
    """A size or a place is digits; nothing else is one."""
    return int(text) if text.isdecimal() else None


def read(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes by name; raise Wrong."""
    need(len(content) >= 8, "too short")
    length = int.from_bytes(content[:8], "little")
    need(2 <= length <= 100_000_000 and length <= len(content) - 8, "header too long")
    text, data = content[8 : 8 + length], content[8 + length :]
    need(text.startswith(b"{"), "begins otherwise")
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=tuple, parse_int=number, parse_constant=lambda _: {})
    except (ValueError, RecursionError):
        raise Wrong("no JSON") from None
    need(type(pairs) is tuple, "no object")
    names = [name for name, _ in pairs]
    need(len(names) == len(set(names)), "said twice")
    owners = [0] * len(data)
    found = {}
    for name, entry in pairs:
        need(not any(0xD800 <= ord(letter) < 0xE000 for letter in name), "no Unicode")
        if name == "__metadata__":
            metadata(entry)
            continue
        found[name] = tensor(entry, data, owners)
    need(all(count == 1 for count in owners), "bytes of none, or of two")
    ends = sorted(tuple(dict(entry)["data_offsets"]) for name, entry in pairs if name != "__metadata__")
    need(not ends or ends[0][0] == 0, "begins late")  # what is empty has its place too
    for (_, stop), (begin, _) in pairwise(ends):
        need(stop == begin, "no order")
    return found


def metadata(entry: Any) -> None:
    need(is_object(entry), "metadata is no object")
    need(len({key for key, _ in entry}) == len(entry), "said twice")
    for pair in entry:
        for text in pair:
            need(type(text) is str, "metadata is no text")
            need(not any(0xD800 <= ord(letter) < 0xE000 for letter in text), "no Unicode")


def is_object(value: Any) -> bool:
    """Objects were read as tuples of pairs, arrays as lists."""
    return type(value) is tuple


def tensor(entry: Any, data: bytes, owners: list[int]) -> tuple[str, tuple[int, ...], bytes]:
    need(is_object(entry), "no object")
    need(sorted(key for key, _ in entry) == ["data_offsets", "dtype", "shape"], "other keys")
    said = dict(entry)
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    need(type(dtype) is str and dtype in SIZES, "dtype")
    need(type(shape) is list and all(map(whole, shape)) and len(shape) <= 64, "shape")
    need(type(offsets) is list and len(offsets) == 2 and all(map(whole, offsets)), "offsets")
    count = sides = 1
    for side in shape:
        count, sides = count * side, sides * max(side, 1)
    need(sides < 2**63, "more than can be counted")
    begin, stop = offsets
    need(stop - begin == count * SIZES[dtype] and stop <= len(data), "size")
    for place in range(begin, stop):
        owners[place] += 1
    raw = data[begin:stop]
    need(dtype != "BOOL" or set(raw) <= {0, 1}, "neither true nor false")
    return dtype, tuple(shape), raw
