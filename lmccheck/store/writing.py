"""Weights laid out as those they were made of: a file where that was one, else a folder that loads as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.shown import some
from lmccheck.store import files
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.documents import read_document
from lmccheck.store.folders import CONFIG, INDEX, MADE_HERE
from lmccheck.store.header import SAFETENSORS, header_of
from lmccheck.store.prefixes import without_prefix
from lmccheck.store.whole import NotOurs, replacing_folder, unwritable

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (SAFETENSORS, ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".py")  # or code
WITH = ("additional_chat_templates",)  # folders that belong to a tokenizer
FORMAT = {"format": "pt"}  # metadata without which transformers refuses a file


class LaidOut(files.Written):
    """Weights that may be put in the place of a checkpoint, ``origin``: what is written is laid out as that is."""

    origin: Checkpoint | None = None

    def made_like(self, origin: Checkpoint | None, inputs: Iterable[Path]) -> Self:
        """Note the checkpoint that its weights are laid out like, and the files read to make it; return it."""
        object.__setattr__(self, "origin", origin)
        return self.made_of(inputs)


def beside(path: Path, what: str) -> Path:
    """Return the file of tensors that belongs beside the file or folder ``path``.

    >>> beside(Path("out/b.safetensors"), "permutation").name, beside(Path("out/v1.5"), "permutation").name
    ('b.permutation.safetensors', 'v1.5.permutation.safetensors')
    """
    return path.with_name(f"{path.name.removesuffix(SAFETENSORS)}.{what}{SAFETENSORS}")


def as_stored(weights: Mapping[str, Tensor], origin: Checkpoint | None) -> Mapping[str, Tensor]:
    """Return weights under the names that a checkpoint's files have, those of prefixes apart, which stay off.

    What loads them expects no other: a tied tensor may be stored under one of its names.
    """
    if origin is None or origin.path is None:
        return weights
    return origin.as_stored(weights) if origin.as_stored is not None else {n: weights[n] for n in origin.tensors}


def write_like(
    origin: Checkpoint | None,
    weights: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    *,
    inputs: Iterable[Path],
    more: Mapping[Path, tuple[Mapping[str, Tensor], Mapping[str, str]]] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights, named as a module names them, to a file or folder as ``origin`` is one; whole or not at all.

    A folder holds the weights in the shards that the origin has, its index, and what lies beside them: config,
    tokenizer, preprocessing; no code, no other weights. ``metadata`` is that of each file of weights; what it says
    under the key ``lmccheck`` lies in a folder's ``lmccheck.json``, too, by which it is known as made here and may be
    written again. ``config`` are settings that replace those of its config.json. ``more`` are files of tensors that are
    written with it, or not at all. ``inputs`` are never overwritten. Returns ``path``. Raises CheckpointError.
    """
    origin = origin if origin is None or origin.as_stored is not None else without_prefix(origin, weights)
    stored, inputs = as_stored(weights, origin), tuple(inputs)
    if origin is None or origin.home is None or path.name.endswith(SAFETENSORS):
        files.save_all({path: (stored, metadata), **(more or {})}, inputs)
        return path
    real = Path(os.path.realpath(path))
    if read := next((file for file in inputs if real in Path(os.path.realpath(file)).parents), None):
        raise CheckpointError(
            f"{shown_path(path)}: {shown_path(read)} was read from it, expected a folder of its own; mend: choose "
            "another name"
        )
    try:
        with files.saving_all(more or {}, inputs), replacing_folder(path, MADE_HERE) as folder:
            _fill(folder, origin, stored, metadata, {**origin.config, **(config or {})})
    except NotOurs as error:
        raise CheckpointError(
            f"{shown_path(path)}: holds {some(error.names)}, which would be lost, expected no such folder, or one that "
            "lmccheck wrote; mend: choose another name, or empty it"
        ) from None
    except OSError as error:
        raise CheckpointError(unwritable(path, error)) from None
    return path


def _fill(
    folder: Path,
    origin: Checkpoint,
    stored: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: Mapping[str, Any],
) -> None:
    assert origin.home is not None
    copy_companions(origin.home, folder, but=(MADE_HERE,), config=config)
    index = next((file.name for file in origin.files if file.name.endswith(INDEX)), None)
    single = next(iter(origin.shards.values()), f"model{SAFETENSORS}")
    placed = {name: origin.shards.get(name, single) for name in stored}
    for file in dict.fromkeys(placed.values()):
        held = {name: tensor for name, tensor in stored.items() if placed[name] == file}
        files.save(held, folder / file, {**FORMAT, **metadata})
    if index is not None:
        size = sum(header_of(tensor).bytes for tensor in stored.values())
        listed = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
        (folder / index).write_text(json.dumps(listed, indent=2) + "\n")
    (folder / MADE_HERE).write_text(metadata.get("lmccheck", "{}") + "\n")


def copy_companions(
    home: Path, target: Path, but: tuple[str, ...] = (), config: Mapping[str, Any] | None = None
) -> None:
    """Copy what belongs to a checkpoint beside its weights: config, tokenizer, templates; no weights, no code.

    ``but``: names that are left alone. ``config``: settings that replace those of the config.json.
    """
    inside = [path for name in WITH if (home / name).is_dir() for path in sorted((home / name).iterdir())]
    for path in (*sorted(home.iterdir()), *inside):
        if path.is_file() and path.name not in but and not path.name.endswith((*WEIGHTS, INDEX)):
            copy = target / path.relative_to(home)
            try:
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
            except OSError as error:
                raise CheckpointError(
                    f"{shown_path(path)}: cannot be copied to {shown_path(target)}: {error.strerror or error}; mend: "
                    "make room, or check permissions"
                ) from None
    if config:
        said = read_document(target / CONFIG)[2]
        (target / CONFIG).write_text(json.dumps({**said, **config}, indent=2) + "\n")
