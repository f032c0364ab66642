"""A folder as ``save_pretrained`` writes it: the weights in one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.folders import WEIGHTS
from lmccheck.store.shards import File, Shards


def open_folder(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return the weights of a folder as a checkpoint; nothing but headers is read."""
    path = folder / given
    found = next((path / name for name in WEIGHTS if os.path.lexists(path / name)), None)
    if found is None:
        raise CheckpointError(
            f"{shown_path(path)}: got a folder without {' or '.join(WEIGHTS)}, expected the folder of a saved model; "
            "mend: name the folder that save_pretrained wrote, or the file itself"
        )
    return Shards([File(found)]).checkpoint(path, path)


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


SOURCES.add("folder", Source("the folder of a saved model", _is_path, open_folder, there=os.path.isdir), __name__)
