"""Aligning networks: every method works on the permutation spec, none knows an architecture; no torch here."""

from __future__ import annotations

from pathlib import Path


def method_names() -> tuple[str, ...]:
    """Return the names of the methods that may be asked for: each has a file of its name in ``methods/``.

    Known without importing them, so that a manifest is read without torch.
    """
    files = (Path(__file__).parent / "methods").glob("[!_]*.py")
    return tuple(sorted(file.stem.replace("_", "-") for file in files))
