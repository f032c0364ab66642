"""What proves a verdict: written, so that it can be checked again without searching; what it may say of a check."""

from __future__ import annotations

from collections.abc import Mapping
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


def unsaid_by(details: Mapping[str, Any]) -> str | None:
    """Return what a manifest must say itself, since the witness that it names says nothing that could fail.

    A witness's own limit serves where it asks for something; nobody has reviewed it.
    """
    origin, limit = details.get("limit_from"), details.get("limit_given")
    if origin == "default":
        return (
            "epsilon: given neither here nor by the witness (an older file), expected a limit; mend: say epsilon in "
            "this check, or write the witness again"
        )
    if origin == "witness" and details.get("limit_excludes") is False:
        return f"epsilon = {limit} is the witness's own and excludes nothing; mend: say epsilon in this check"
    return None
