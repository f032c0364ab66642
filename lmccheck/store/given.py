"""What a user names as a checkpoint: a path, or an adapter on its base. What it is called, and where it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmccheck.store.folders import INDEX, STEMS
from lmccheck.store.header import SAFETENSORS


@dataclass(frozen=True)
class Adapted:
    """An adapter and what it is added to, each as it was named."""

    base: Named
    adapter: str

    def __str__(self) -> str:
        return f"{self.adapter} on {self.base}"


Named = str | Adapted


def name_of(given: Any, otherwise: str) -> str:
    """Return a short name: that of a file or folder, of a model's folder where its file has a name that all have.

    >>> name_of("runs/seed1.safetensors", ""), name_of("models/v1.5", ""), name_of("models/a/model.safetensors", "")
    ('seed1', 'v1.5', 'a')
    """
    if isinstance(given, Adapted):
        return name_of(given.adapter, otherwise)
    if isinstance(given, dict) and isinstance(given.get("adapter"), (str, os.PathLike)):
        return name_of(given["adapter"], otherwise)
    if not isinstance(given, (str, os.PathLike)):
        return otherwise
    path = Path(given)
    stem = path.name.removesuffix(INDEX).removesuffix(SAFETENSORS)
    return path.parent.name if stem in STEMS and path.parent.name and stem != path.name else stem


def lies_in_folder(given: Any, folder: Path) -> bool:
    """Whether something named, or the base of an adapter, is a whole folder or named by the index in it."""
    *_, path = paths_of(given, folder) or [folder / "of no file"]
    return path.is_dir() or path.name.endswith(INDEX)


def paths_of(given: Any, folder: Path) -> list[Path]:
    """Return the paths that something named consists of: its adapter's first, then its base's."""
    if isinstance(given, Adapted):
        return [folder / given.adapter, *paths_of(given.base, folder)]
    return [folder / given] if isinstance(given, (str, os.PathLike)) else []


def files_of(given: Any, folder: Path) -> Iterator[Path]:
    """Yield the files that may be read of it, those that exist; of a folder, and beside an index, all of them."""
    for path in paths_of(given, folder):
        parent = path if path.is_dir() else path.parent if path.name.endswith(INDEX) else None
        yield from filter(
            os.path.isfile, sorted(parent.iterdir()) if parent is not None and parent.is_dir() else [path]
        )
