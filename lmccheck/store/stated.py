"""Safetensors with facts: tensors, and one JSON text in the metadata that says what they are; read without trust."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store import files
from lmccheck.store.documents import Strict, parsed_json, read_table

if TYPE_CHECKING:
    from torch import Tensor

Facts = TypeVar("Facts", bound=Strict)
DIGEST = "lmccheck.sha256"  # beside the facts: what they and the tensors are hashed to
LONGEST = 300  # characters of what is wrong


def save_stated(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    key: str,
    facts: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Write tensors, and facts under ``key`` of the metadata, as ``files.save`` does. Raises CheckpointError."""
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{shown_path(path)}: cannot be written: its facts are no JSON ({error}); mend: leave out what is no text, "
            "number, list or table"
        ) from None
    return files.save(tensors, Path(path), {key: text, DIGEST: digest(tensors, text)}, inputs=inputs)


def read_stated(path: Path, key: str, model: type[Facts], what: str, mend: str) -> tuple[Facts, dict[str, Tensor]]:
    """Return the facts under ``key`` of the metadata, and every tensor; ``what`` such a file holds, for messages.

    Raises CheckpointError where there are none, where they are no ``model``, and where they or the tensors are not what
    was written.
    """
    stored = files.read(path)
    stated, held = stored.header.metadata, stored.tensors
    text = stated.get(key)
    if text is None:
        raise CheckpointError(f"{shown_path(path)}: {mend}")
    problems: list[str] = []
    try:
        facts = read_table(model, parsed_json(text), "", problems)
    except (ValueError, RecursionError) as error:
        damaged(path, what, "nested too deeply" if isinstance(error, RecursionError) else str(error))
    if facts is None:
        damaged(path, what, problems[0])
    if stated.get(DIGEST, digest(held, text)) != digest(held, text):
        damaged(path, what, f"its content is not what {DIGEST!r} in its metadata says")
    return facts, held


def damaged(path: str | os.PathLike[str], what: str, why: str) -> NoReturn:
    """Raise CheckpointError: what is stored in a file is damaged."""
    said = why.encode("unicode_escape").decode() if not why.isprintable() else why
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
    raise CheckpointError(f"{shown_path(path)}: {what} is damaged ({said}); mend: write it again")


def require_all_used(path: str | os.PathLike[str], what: str, held: Iterable[str], used: Iterable[str]) -> None:
    """Raise CheckpointError unless a file holds the tensors that are spoken of, and no others."""
    held, used = set(held), set(used)
    if missing := sorted(used - held):
        damaged(path, what, f"tensor {missing[0]!r} is missing")
    if extra := sorted(held - used):
        damaged(path, what, f"tensor {extra[0]!r} belongs to nothing in it")


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a hash of a text and of tensors: their names, dtypes, shapes and bytes."""
    import torch

    found = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
