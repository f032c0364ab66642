"""Safetensors files that hold one checkpoint together, read whole or tensor by tensor, and only as they were found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store import files
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.contents import Lying, Span, same_bytes
from lmccheck.store.disk import Held, Stamp, hashed
from lmccheck.store.header import header_of_open, reading
from lmccheck.store.surroundings import Surroundings, remarks_beside, require_read

if TYPE_CHECKING:
    from torch import Tensor


class File:
    """A safetensors file whose header was looked at; what is read of it must go on being the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: Held | None = None
        with reading(path) as file:
            self.stamp = Stamp.of(os.fstat(file.fileno()))
            self.header, raw = header_of_open(file, path)
        self.starts, at = {}, len(raw)
        for name, tensor in self.header.tensors.items():  # in the order of their bytes, without gaps
            self.starts[name], at = at, at + tensor.bytes

    def read(self) -> dict[str, Tensor]:
        """Return every tensor, hashed as it is read."""
        stored = files.read(self.path, self.header)
        self._hold(stored.held)
        return stored.tensors

    def get(self, name: str) -> Tensor:
        """Return one tensor, of the bytes that ``digest`` is the hash of; no other is read."""
        self.digest()
        assert self.held is not None
        return files.read_one(self.path, name, self.header.tensors[name], self.starts[name], self.held)

    def digest(self) -> str:
        """Return the file's SHA-256."""
        if self.held is None:
            try:
                self._hold(hashed(self.path))
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        assert self.held is not None
        return self.held.sha256

    def lying(self, name: str) -> Lying:
        """Return where a tensor's bytes lie."""
        start = self.starts[name]
        return Lying((Span(self.path, start, start + self.header.tensors[name].bytes),))

    def require_unchanged(self) -> None:
        """Raise CheckpointError where what was read is no longer what lies there."""
        if self.held is not None:
            self.held.require_unchanged()

    def _hold(self, held: Held) -> None:
        if self.held is not None and held.sha256 != self.held.sha256:
            raise CheckpointError(
                f"{shown_path(self.path)}: changed while it was loaded: sha256 is {held.sha256}, was "
                f"{self.held.sha256}; mend: run again when nothing writes to it"
            )
        self.held = held


@dataclass(frozen=True)
class Shards:
    """Files in which each tensor lies once; ``beside`` are files of another kind that say how they belong together."""

    files: Sequence[File]
    beside: Sequence[Held] = ()
    where: Mapping[str, File] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", {name: file for file in self.files for name in file.header.tensors})

    def checkpoint(self, path: Path, home: Path | None) -> Checkpoint:
        """Return them as the checkpoint that lies at ``path``; ``home`` is the folder of its config and tokenizer.

        Raises CheckpointError where from_pretrained makes something else of that.
        """
        around: Surroundings | None = None
        remarks: tuple[str, ...] = ()
        if home is not None:
            require_read(home, (self.beside or self.files)[0].path)
            around = Surroundings.of(home)
            remarks = () if self.beside else tuple(remarks_beside(home, self.files[0].path, self.where))
        return Checkpoint(
            shown_path(path),
            {name: file.header.tensors[name] for name, file in self.where.items()},
            self.read,
            str(path),
            metadata=self.metadata(),
            require_unchanged=partial(self.require_unchanged, around),
            same=self.same,
            digests=self.digests,
            files=(*(file.path for file in self.files), *(held.path for held in self.beside)),
            home=home,
            get=lambda name: self.where[name].get(name),
            lies={name: file.lying(name) for name, file in self.where.items()},
            remarks=remarks,
            shards={name: file.path.name for name, file in self.where.items()},
        )

    def read(self) -> dict[str, Tensor]:
        """Return every tensor of every file."""
        return {name: tensor for file in self.files for name, tensor in file.read().items()}

    def digests(self) -> dict[Path, str]:
        """Return the hash of every file."""
        return {file.path: file.digest() for file in self.files} | {held.path: held.sha256 for held in self.beside}

    def metadata(self) -> dict[str, str]:
        """Return what the metadata of all files say alike."""
        first, *others = (file.header.metadata for file in self.files)
        return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}

    def require_unchanged(self, around: Surroundings | None = None) -> None:
        """Raise CheckpointError where one of the files, or of what lies around them, is another by now."""
        read: tuple[File | Held | Surroundings, ...] = (*self.files, *self.beside, *([around] if around else []))
        for one in read:
            one.require_unchanged()

    def same(self, one: str, other: str) -> bool:
        """Whether two names hold the same bytes; no if they cannot be read now."""
        try:
            return same_bytes(*(self.where[name].lying(name) for name in (one, other)))
        except (OSError, ValueError):
            return False
