"""Shards and the index that says which tensor lies in which: each present and whole, nothing twice, nothing stale."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.shown import some
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.documents import read_document, shown
from lmccheck.store.folders import INDEX, names_in, shards_of
from lmccheck.store.header import PICKLES, SAFETENSORS, read_header, refused_pickle
from lmccheck.store.shards import File, Shards

WHOLE = "save or download the model again, as a whole"


def open_index(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return the shards that an index names as one checkpoint; nothing but headers is read."""
    path = folder / given
    return shards_of_index(path).checkpoint(path, path.parent)


def shards_of_index(path: Path) -> Shards:
    """Return the shards of an index, checked against it and against what lies beside.

    Raises CheckpointError, naming the shard or the tensor.
    """
    try:
        held, _, said = read_document(path)
    except ValueError as error:
        raise CheckpointError(f"{error}; mend: {WHOLE}") from None
    placed = _weight_map(path, said.get("weight_map"))
    names = sorted(set(placed.values()))
    for name in names:
        _require_beside(path, name)
    there = names_in(path.parent)
    if missing := [name for name in names if name not in there]:
        _refuse(path, f"names the shard {missing[0]!r}, which is not there", f"all {len(names)} shards", WHOLE)
    files = [File(path.parent / name) for name in names]
    _require_placed(path, placed, files)
    for problem in _stale(path, placed, sorted(there - set(names))):
        _refuse(path, problem, "only what it names", "remove what is stale from the folder")
    _require_size(path, said.get("metadata"), files)
    return Shards(files, [held])


def _weight_map(path: Path, placed: Any) -> Mapping[str, str]:
    if not isinstance(placed, dict) or not placed:
        got = "no weight_map" if placed is None else f"the weight_map {shown(placed)}"
        _refuse(path, f"has {got}", "a table from tensors to shards", WHOLE)
    wrong = next((name for name, shard in placed.items() if not isinstance(shard, str)), None)
    if wrong is not None:
        _refuse(path, f"says that tensor {wrong!r} lies in {shown(placed[wrong])}", "the name of a shard", WHOLE)
    return placed


def _require_beside(path: Path, name: str) -> None:
    """Raise CheckpointError unless a shard's name is that of a safetensors file beside the index."""
    if name in (".", "..") or not name or any(mark in name for mark in "/\\:\0"):
        _refuse(path, f"names the shard {name!r}", "the name of a file beside the index", WHOLE)
    if Path(name).suffix.lower() in PICKLES:
        raise CheckpointError(refused_pickle(path, f"an index of pickles, {name}", repr(name)))
    if not name.endswith(SAFETENSORS):
        _refuse(path, f"names the shard {name!r}", f"a {SAFETENSORS} file", WHOLE)


def _require_placed(path: Path, placed: Mapping[str, str], files: Sequence[File]) -> None:
    """Raise CheckpointError unless each tensor lies in one shard, in that which the index says."""
    where: dict[str, str] = {}
    for file in files:
        for tensor in file.header.tensors:
            shard = file.path.name
            if tensor in where:
                _refuse(path, f"tensor {tensor!r} lies in {where[tensor]} and in {shard}", "one of them", WHOLE)
            where[tensor] = shard
    if unnamed := [tensor for tensor in where if tensor not in placed]:
        _refuse(
            path,
            f"tensor {unnamed[0]!r} of {where[unnamed[0]]} is not in it ({len(unnamed)} such)",
            "every tensor of its shards",
            WHOLE,
        )
    for tensor, shard in placed.items():
        if where.get(tensor) != shard:
            found = f"it lies in {where[tensor]}" if tensor in where else f"{shard} has no such tensor"
            _refuse(path, f"says that tensor {tensor!r} lies in {shard}, and {found}", "an index that is true", WHOLE)


def _stale(path: Path, placed: Mapping[str, str], others: Sequence[str]) -> Iterator[str]:
    """Yield what lies beside the index and would be taken for a part of the model, or in its place."""
    single = path.name.removesuffix(INDEX)
    if single in others:
        yield f"lies beside {single}, a single file that other programs load in its place"
    if unnamed := shards_of(single.removesuffix(SAFETENSORS), others):
        yield f"does not name {some(unnamed)}, which lies beside"
    for name in others:
        if name.endswith(SAFETENSORS):
            try:
                tensors = read_header(path.parent / name).tensors
            except CheckpointError:  # of whatever it is a part, it is none of this model
                continue
            if twice := next((tensor for tensor in tensors if tensor in placed), None):
                yield f"tensor {twice!r} lies in {placed[twice]} and in {name}, which it does not name"


def _require_size(path: Path, metadata: Any, files: Sequence[File]) -> None:
    if not isinstance(metadata, (dict, NoneType)):
        _refuse(path, f"has the metadata {shown(metadata)}", "a table", WHOLE)
    total = (metadata or {}).get("total_size")
    size = sum(header.bytes for file in files for header in file.header.tensors.values())
    if total is not None and (isinstance(total, bool) or not isinstance(total, (int, float)) or total != size):
        _refuse(path, f"has total_size {shown(total)}", f"{size}, the bytes of its shards' tensors", WHOLE)


def _refuse(path: Path, got: str, expected: str, mend: str) -> NoReturn:
    raise CheckpointError(f"{shown_path(path)}: {got}, expected {expected}; mend: {mend}")


def _is_index(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike)) and os.fspath(given).endswith(INDEX)


SOURCES.add("index", Source(f"a {INDEX} path", _is_index, open_index), __name__)
