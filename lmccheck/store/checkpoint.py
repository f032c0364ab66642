"""Where weights lie: a file, or whatever else a source knows how to open."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.registry import Registry
from lmccheck.shown import one_line, some
from lmccheck.store.contents import Lying, same_tensors, together
from lmccheck.store.files import Renaming
from lmccheck.store.header import TensorHeader
from lmccheck.store.whole import same_file

if TYPE_CHECKING:
    from torch import Tensor


Read = TypeVar("Read")
PIN = re.compile("[0-9a-fA-F]{64}")


def _of_all(name: str) -> Tensor:
    """Stand for ``get`` where no tensor can be read without the others."""
    raise NotImplementedError(name)


@one_line(lambda checkpoint: f"{checkpoint.label}, {len(checkpoint.tensors)} tensors: {some(checkpoint.tensors)}")
@dataclass(frozen=True)
class Checkpoint:
    """Named tensors that lie somewhere, described without reading them.

    ``label`` is what messages call it; ``path`` is None, and so is ``digest``, for weights that are in no file.
    ``read`` returns all tensors, on the CPU, in their stored dtypes, in memory that no file changes; names that share a
    tensor go on sharing it. ``digest`` is the hash of what was read. ``require_unchanged`` raises CheckpointError when
    that is no longer what lies there. ``same`` says whether two names hold the same bytes, without reading all others.
    ``files`` are all that are read for it. ``home`` is the folder whose config and tokenizer belong to it, None where
    none does. ``get`` returns one tensor as ``read`` would, without reading the others. ``lies`` says of tensors in
    files which bytes they are made of. ``digests``, the hash of each of its files, may be given in place of
    ``digest``, and is then made one. ``about`` is what a report says beside, ``remarks`` what
    is to be said of it with every verdict. ``as_stored``, where the files have other names than these tensors, returns
    weights under those of the files. ``apart`` are tensors that were changed without those that are tied to them;
    ``config`` are settings that replace those of its home's config.json where weights are laid out like it.
    ``shards`` names the file of its home that holds each tensor, as the files call it.
    """

    label: str
    tensors: Mapping[str, TensorHeader] = field(repr=False)
    read: Callable[[], dict[str, Tensor]] = field(repr=False)
    path: str | None = None
    digest: Callable[[], str] | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    require_unchanged: Callable[[], None] = field(default=lambda: None, repr=False)
    same: Callable[[str, str], bool] = field(default=lambda one, other: False, repr=False)
    files: tuple[Path, ...] = ()
    home: Path | None = None
    get: Callable[[str], Tensor] = field(default=_of_all, repr=False)
    lies: Mapping[str, Lying] = field(default_factory=dict, repr=False)
    digests: Callable[[], Mapping[Path, str]] | None = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()
    onto: Callable[[Callable[[Checkpoint], Checkpoint]], Checkpoint] | None = field(default=None, repr=False)
    as_stored: Renaming | None = field(default=None, repr=False)
    apart: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    shards: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.get is _of_all:
            object.__setattr__(self, "get", lambda name: self.read()[name])
        if self.path is not None and not self.files:
            object.__setattr__(self, "files", (Path(self.path),))
        if self.digest is None and (digests := self.digests) is not None:
            object.__setattr__(self, "digest", lambda: together(digests()))

    @cached_property
    def sha256(self) -> str | None:
        """The hex SHA-256 of the files, read at the first look; None for weights that are in no file.

        Of several files it is that of one line each, see ``together``.
        """
        return self.digest() if self.digest is not None else None

    def has_twin(self, name: str, among: Iterable[str]) -> bool:
        """Whether one of the other names holds the same numbers, as tied weights do that were stored twice."""
        alike = (other for other in among if other != name and self.tensors[other] == self.tensors[name])
        return any(self.same(name, other) for other in alike)

    def same_files(self, other: Checkpoint) -> bool:
        """Whether both are read from the same files, whatever these are called."""
        return len(self.files) == len(other.files) > 0 and all(map(same_file, self.files, other.files))

    def same_contents(self, other: Checkpoint) -> bool:
        """Whether both lie in files and hold the same tensors, found without torch; raises OSError and ValueError."""
        return bool(self.lies) and same_tensors(self.tensors, self.lies, other.tensors, other.lies)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able. ``parameters`` counts floating numbers."""
        floats = [header for header in self.tensors.values() if header.is_floating_point]
        several = self.digests() if self.digests is not None and len(self.files) > 1 else {}
        return {
            "path": self.path,
            "sha256": self.sha256,
            "parameters": sum(header.numbers for header in floats),
            "dtype": "+".join(sorted({header.torch_dtype for header in floats})),
            **({"files": {shown_path(file): digest for file, digest in several.items()}} if several else {}),
            **self.about,
            **({"remarks": list(self.remarks)} if self.remarks else {}),
        }


@dataclass(frozen=True)
class Source:
    """A kind of checkpoint: what it opens, in words, whether it can open a thing, and how.

    One that is a ``fallback`` is asked after all others: it takes every path. ``there`` is asked of a path as well,
    with its folder: whether what lies there is of this kind.

    ``open(given, folder, side)`` returns the Checkpoint, paths being relative to ``folder``; ``side`` (``a``, ``b``,
    ``model 2``) names it where it has no name of its own. Raises CheckpointError.
    """

    opens: str
    accepts: Callable[[Any], bool]
    open: Callable[[Any, Path, str], Checkpoint]
    fallback: bool = False
    there: Callable[[Path], bool] = lambda path: True


SOURCES: Registry[Source] = Registry("checkpoint source", "lmccheck.store.sources")


def look_at(given: Any, folder: Path, side: str) -> Checkpoint:
    """Return what ``given`` stands for, opened by the first source that accepts it; nothing but headers is read.

    Raises CheckpointError.
    """
    sources = sorted(SOURCES, key=lambda source: source.fallback)
    path = folder / given if isinstance(given, (str, os.PathLike)) else None
    source = next((s for s in sources if s.accepts(given) and (path is None or s.there(path))), None)
    if source is None:
        expected = " or ".join(source.opens for source in SOURCES)
        raise CheckpointError(f"{side}: got {type(given).__name__}, expected {expected}; mend: name one")
    return source.open(given, folder, side)


def open_checkpoint(given: Any, folder: Path, side: str, pin: str | None = None) -> Checkpoint:
    """Return ``look_at(…)``; ``pin`` is the SHA-256 that the bytes must have of which its tensors are read."""
    found = look_at(given, folder, side)
    if pin is None:
        return found
    if found.digest is None:
        raise CheckpointError(f"{found.label}: got a pin, expected one for files only; mend: leave its sha256 out")
    if not isinstance(pin, str) or not PIN.fullmatch(pin):
        raise CheckpointError(
            f"{found.label}: got the pin {pin!r}, expected 64 hexadecimal digits; mend: the file's sha256"
        )
    return _with_pin(found, pin)


def _with_pin(found: Checkpoint, pin: str) -> Checkpoint:
    onto = found.onto
    return replace(
        found,
        read=partial(_pinned, found.read, found, pin),
        get=partial(_pinned, found.get, found, pin),
        onto=None if onto is None else lambda view: _with_pin(onto(view), pin),
    )


def _pinned(read: Callable[..., Read], found: Checkpoint, pin: str, *name: str) -> Read:
    tensors = read(*name)
    if pin.lower() != found.sha256:
        raise CheckpointError(
            f"{found.label}: sha256 is {found.sha256}, the pin says {pin}; mend: restore the file or review and update "
            "the pin"
        )
    return tensors
