"""Writing what proves a verdict, so that it can be checked again without searching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError


def witness_path(folder: Path, name: str, check: str) -> Path:
    """Return where a check's witness is written."""
    return folder / f"{name}-{check}.safetensors"


def witness_lines(witness: Any, folder: Path, name: str, check: str) -> list[str]:
    """Write a check's witness to ``folder/NAME-CHECK.safetensors``; return what the terminal says of it.

    A witness that can be written has a method ``save(path)``. Raises CheckpointError when the file cannot be written.
    """
    save = getattr(witness, "save", None)
    if save is None:
        return [f"witness of {name}::{check} not written: it has none"]
    target = witness_path(folder, name, check)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(target)
    except OSError as error:
        raise CheckpointError(f"--lmc-witness-dir: cannot write {target}: {error.strerror or error}") from None
    return [f"witness written to {target}"]
