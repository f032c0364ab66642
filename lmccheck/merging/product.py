"""What a recipe makes: made at the first look, opened like any checkpoint, gone with the last who looks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lmccheck.errors import CheckpointError
from lmccheck.merging.contract import Made
from lmccheck.store.checkpoint import Checkpoint, look_at


class Product:
    """One merge on disk. ``make(folder)`` writes it below a new folder, which is removed with this object."""

    def __init__(self, make: Callable[[Path], Made], label: str) -> None:
        self._make, self._label = make, label

    @cached_property
    def made(self) -> Made:
        """What the recipe wrote. Raises LmcError."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="lmccheck-merge-"))
        except OSError as error:
            raise CheckpointError(
                f"{self._label}: no folder for it: {error.strerror or error}; mend: set TMPDIR to one with room"
            ) from None
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._make(folder / "made")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """It, opened as a user's would be."""
        return replace(look_at(str(self.made.path), Path(), self._label), label=self._label)
