"""What a recipe makes: made at the first look, opened like any checkpoint, gone with the last who looks."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError
from lmccheck.merging.contract import Made
from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.folders import MADE_HERE
from lmccheck.store.scratch import drop_scratch, new_scratch
from lmccheck.store.streamed import save_streamed
from lmccheck.store.whole import replacing, write_whole

KEY = "lmccheck"  # of the metadata


class Product:
    """One merge on disk. ``make(folder)`` writes it below a new folder, which is removed with this object."""

    def __init__(self, make: Callable[[Path], Made], label: str) -> None:
        self._make, self._label = make, label

    @cached_property
    def made(self) -> Made:
        """What the recipe wrote. Raises LmcError."""
        try:
            folder = new_scratch("merge")
        except OSError as error:
            raise CheckpointError(
                f"{self._label}: no folder for it: {error.strerror or error}; mend: set TMPDIR to one with room"
            ) from None
        weakref.finalize(self, drop_scratch, folder)
        return self._make(folder / "made")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """It, opened as a user's would be."""
        return replace(look_at(str(self.made.path), Path(), self._label), label=self._label)

    def save(self, path: Path, facts: Mapping[str, Any], inputs: Iterable[Path]) -> Path:
        """Write it as one file of safetensors, whole or not at all, with facts in the metadata's key ``lmccheck``."""
        made = self.checkpoint
        return save_streamed(path, made.tensors, made.get, {**made.metadata, KEY: json.dumps(facts)}, inputs=inputs)

    def ship(self, target: Path, facts: Mapping[str, Any]) -> None:
        """Copy it into a folder, and write ``lmccheck.json``, by which the folder is known as made here."""
        path = self.made.path
        write_whole(target / MADE_HERE, f"{json.dumps(facts, indent=2)}\n".encode())
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with replacing(target / file.name) as partial:
                shutil.copyfile(file, partial)
