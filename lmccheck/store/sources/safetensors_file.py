"""One safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.folders import CONFIG, WEIGHTS
from lmccheck.store.shards import File, Shards


def open_file(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return a safetensors file as a checkpoint; its header is checked, nothing else is read."""
    path = folder / given
    found = Shards([File(path)])
    belongs = path.name in WEIGHTS and os.path.lexists(path.parent / CONFIG)
    return found.checkpoint(path, path.parent if belongs else None)


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


SOURCES.add("safetensors", Source("a .safetensors path", _is_path, open_file, fallback=True), __name__)
