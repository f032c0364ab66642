"""A folder as ``save_pretrained`` writes it: its weights lie in one safetensors file, or in shards with an index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.folders import INDEX, weights_in
from lmccheck.store.shards import File, Shards
from lmccheck.store.sources.index import shards_of_index


def open_folder(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return the weights of a folder as a checkpoint; nothing but headers is read."""
    path = folder / given
    weights = weights_in(path)
    found = shards_of_index(weights) if weights.name.endswith(INDEX) else Shards([File(weights)])
    return found.checkpoint(path, path)


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


SOURCES.add("folder", Source("the folder of a saved model", _is_path, open_folder, there=os.path.isdir), __name__)
