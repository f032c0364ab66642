"""One safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store import files
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.disk import Held, hashed
from lmccheck.store.header import read_header, same_bytes

if TYPE_CHECKING:
    from torch import Tensor


class _File:
    """A file whose header was looked at; what is read of it must go on being the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.held: Held | None = None

    def read(self) -> dict[str, Tensor]:
        stored = files.read(self.path, self.header)
        self._hold(stored.held)
        return stored.tensors

    def digest(self) -> str:
        if self.held is None:
            try:
                self.held = hashed(self.path)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        return self.held.sha256

    def require_unchanged(self) -> None:
        if self.held is not None:
            self.held.require_unchanged()

    def same(self, one: str, other: str) -> bool:
        return same_bytes(self.path, self.header, one, other)

    def _hold(self, held: Held) -> None:
        if self.held is not None and held.sha256 != self.held.sha256:
            raise CheckpointError(
                f"{shown_path(self.path)}: changed while it was loaded: sha256 is {held.sha256}, was "
                f"{self.held.sha256}; mend: run again when nothing writes to it"
            )
        self.held = held


def open_file(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return a safetensors file as a checkpoint; its header is checked, nothing else is read."""
    path = folder / given
    file = _File(path)
    return Checkpoint(
        shown_path(path),
        file.header.tensors,
        file.read,
        str(path),
        file.digest,
        file.header.metadata,
        file.require_unchanged,
        file.same,
    )


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


SOURCES.add("safetensors", Source("a .safetensors path", _is_path, open_file, fallback=True), __name__)
