"""What a check leaves as a file: what proves its verdict, to be checked again without searching, and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError
from lmccheck.report.loss_curve import loss_curve
from lmccheck.report.record import CheckRecord


def witness_path(folder: Path, name: str, check: str) -> Path:
    """Return where a check's witness is written."""
    return folder / f"{name}-{check}.safetensors"


def curve_path(folder: Path, name: str, check: str) -> Path:
    """Return where a check's curve is written."""
    return folder / f"{name}-{check}.csv"


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


def curve_lines(record: CheckRecord, folder: Path) -> list[str]:
    """Write a check's curve to ``folder/NAME-CHECK.csv``; return what the terminal says of it.

    Raises CheckpointError when the file cannot be written.
    """
    curve = loss_curve(record)
    if curve is None:
        why = "it failed early, at one point" if "early" in record.details else "it measures no line and no path"
        return [f"curve of {record.pair}::{record.check} not written: {why}"]
    target = curve_path(folder, record.pair, record.check)
    try:
        curve.save(target)
    except CheckpointError as error:
        raise CheckpointError(f"--lmc-curves: {error}") from None
    return [f"curve written to {target}"]


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
