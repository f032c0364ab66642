"""Where the bytes of tensors lie, and whether those of two are the same: found without torch, until they differ."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from lmccheck.store.disk import opened
from lmccheck.store.header import EXPECTED, TensorHeader

CHUNK = 1 << 20
UNUSED = "num_batches_tracked"  # changes nothing that a network computes


@dataclass(frozen=True)
class Span:
    """The bytes of a file from ``begin`` up to ``end``."""

    path: Path
    begin: int
    end: int


@dataclass(frozen=True)
class Lying:
    """What a tensor is made of: the bytes of one place, or of several that are put together as ``how`` says."""

    spans: tuple[Span, ...]
    how: str = ""


def same_bytes(first: Lying, second: Lying) -> bool:
    """Whether two tensors are made alike of the same bytes.

    Raises OSError, and ValueError for what is no file any more.
    """
    if first.how != second.how or len(first.spans) != len(second.spans):
        return False
    return all(_equal(one, other) for one, other in zip(first.spans, second.spans, strict=True))


def same_tensors(
    first: Mapping[str, TensorHeader], mine: Mapping[str, Lying], second: Mapping[str, TensorHeader],
    theirs: Mapping[str, Lying],
) -> bool:  # fmt: skip
    """Whether two checkpoints hold equal tensors under the same names, of one dtype and shape. Raises as above.

    The files they lie in, the order of tensors, and how many batches a BatchNorm has seen may differ.
    """
    one, other = ({n: h for n, h in headers.items() if not n.endswith(UNUSED)} for headers in (first, second))
    if one != other or not mine.keys() >= one.keys() or not theirs.keys() >= one.keys():
        return False
    return all(same_bytes(mine[name], theirs[name]) for name in one)


def _equal(one: Span, other: Span) -> bool:
    if one == other:
        return True
    if one.end - one.begin != other.end - other.begin:
        return False
    with ExitStack() as stack:
        files = [stack.enter_context(opened(span.path, EXPECTED)) for span in (one, other)]
        for done in range(0, one.end - one.begin, CHUNK):
            pieces = [_piece(file, span, done) for file, span in zip(files, (one, other), strict=True)]
            if pieces[0] != pieces[1]:
                return False
    return True


def _piece(file: BufferedReader[Any], span: Span, done: int) -> bytes:
    file.seek(span.begin + done)
    return file.read(min(CHUNK, span.end - span.begin - done))


def together(hashes: Mapping[Path, str]) -> str:
    """Return the SHA-256 that stands for several files; that of one file is its own.

    It is what ``sha256sum FILE … | LC_ALL=C sort -k 2 | sha256sum`` says in their folder: the hash of one line for each
    file, its hash, two spaces and its name, in the order of names.
    """
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = sorted(((path.name, digest) for path, digest in hashes.items()), key=lambda line: os.fsencode(line[0]))
    return hashlib.sha256(
        b"".join(f"{digest}  ".encode() + os.fsencode(name) + b"\n" for name, digest in lines)
    ).hexdigest()
