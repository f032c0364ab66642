"""Where weights lie: a file, or whatever else a source knows how to open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.errors import CheckpointError
from lmccheck.registry import Registry
from lmccheck.store.files import TensorHeader

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors that lie somewhere, described without reading them.

    ``label`` is what messages call it; ``path`` and ``sha256`` are None for weights that are in no file. ``read``
    returns all tensors, on the CPU, in their stored dtypes; names that share a tensor go on sharing it.
    """

    label: str
    tensors: Mapping[str, TensorHeader] = field(repr=False)
    read: Callable[[], dict[str, Tensor]] = field(repr=False)
    path: str | None = None
    sha256: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able. ``parameters`` counts floating numbers."""
        floats = [header for header in self.tensors.values() if header.is_floating_point]
        return {
            "path": self.path,
            "sha256": self.sha256,
            "parameters": sum(header.numbers for header in floats),
            "dtype": "+".join(sorted({header.torch_dtype for header in floats})),
        }


@dataclass(frozen=True)
class Source:
    """A kind of checkpoint: what it opens, in words, whether it can open a thing, and how.

    ``open(given, folder, side)`` returns the Checkpoint, paths being relative to ``folder``; ``side`` (``a``, ``b``,
    ``model 2``) names it where it has no name of its own. Raises CheckpointError.
    """

    opens: str
    accepts: Callable[[Any], bool]
    open: Callable[[Any, Path, str], Checkpoint]


SOURCES: Registry[Source] = Registry("checkpoint source", "lmccheck.store.sources")


def open_checkpoint(given: Any, folder: Path, side: str, pin: str | None = None) -> Checkpoint:
    """Return what ``given`` stands for, opened by the first source that accepts it.

    ``pin`` is the SHA-256 that a file must have. Raises CheckpointError.
    """
    source = next((source for source in SOURCES if source.accepts(given)), None)
    if source is None:
        expected = " or ".join(source.opens for source in SOURCES)
        raise CheckpointError(f"{side}: got {type(given).__name__}, expected {expected}")
    found = source.open(given, folder, side)
    if pin is not None and found.sha256 is None:
        raise CheckpointError(f"{found.label}: got a pin, expected one for files only; mend: leave its sha256 out")
    if pin is not None and pin.lower() != found.sha256:
        raise CheckpointError(
            f"{found.label}: sha256 is {found.sha256}, the pin says {pin}; mend: restore the file or review and update "
            "the pin"
        )
    return found
