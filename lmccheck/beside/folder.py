"""A folder as ``save_pretrained`` writes it, its small files read once, strictly, and only where they are asked for."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.disk import Held, read_bytes
from lmccheck.store.documents import decoded

MOST = 2**27  # bytes of one file; more would be read for minutes
MOST_CONFIG = 2**23  # bytes of a configuration; those of the largest models take some hundred kilobytes
KEPT = 2**18  # bytes of a file that is held in memory beyond one comparison
CONFIG = "config.json"


class Folder:
    """What lies beside a model's weights. Reading raises CheckpointError with one line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: dict[str, tuple[bytes, Held] | None] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, str] = {}  # of files that were read and forgotten

    def __str__(self) -> str:
        return shown_path(self.path)

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """config.json, None where there is none."""
        return self.table(CONFIG, MOST_CONFIG)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, or something in its place."""
        return os.path.lexists(self.path / name)

    def raw(self, name: str, most: int = MOST) -> bytes | None:
        """Return the bytes of a file, None where there is none."""
        found = self._read(name, most)
        return None if found is None else found[0]

    def sha256(self, name: str) -> str | None:
        """Return the hash of a file, None where there is none."""
        if name in self._hashes:
            return self._hashes[name]
        found = self._read(name, MOST)
        return None if found is None else found[1].sha256

    def text(self, name: str) -> str | None:
        """Return a file as text, None where there is none."""
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{shown_path(self.path / name)}: got the byte 0x{raw[error.start]:02x} at {error.start}, expected "
                "UTF-8 text; mend: save the model again"
            ) from None

    def table(self, name: str, most: int = MOST) -> dict[str, Any] | None:
        """Return what a JSON file says, None where there is none; the same object every time."""
        if name not in self._tables:
            if (raw := self.raw(name, most)) is None:
                return None
            try:
                self._tables[name] = decoded(raw, self.path / name, "JSON")[1]
            except ValueError as error:
                raise CheckpointError(f"{error}; mend: save the model again") from None
        return self._tables[name]

    def forget(self) -> None:
        """Keep of what was read only that it was: large files are read again where they are asked for."""
        large = [name for name, found in self._raw.items() if found is not None and len(found[0]) > KEPT]
        self._hashes |= {name: held.sha256 for name in large if (found := self._raw.pop(name)) and (held := found[1])}
        for name in large:
            self._tables.pop(name, None)

    def _read(self, name: str, most: int) -> tuple[bytes, Held] | None:
        if name not in self._raw:
            try:
                self._raw[name] = read_bytes(self.path / name, f"{name} as save_pretrained writes it", most)
            except ValueError as error:
                if self.has(name):
                    raise CheckpointError(str(error)) from None
                self._raw[name] = None
        return self._raw[name]
