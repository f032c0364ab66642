"""One safetensors file."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from lmccheck.errors import shown_path
from lmccheck.store import files
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source


def open_file(given: str | os.PathLike[str], folder: Path, side: str) -> Checkpoint:
    """Return a safetensors file as a checkpoint; its header is checked, nothing else is read."""
    path = folder / given
    header = files.read_header(path)
    return Checkpoint(
        shown_path(path),
        header.tensors,
        partial(files.load, path),
        str(path),
        partial(files.sha256_of, path),
        header.metadata,
    )


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


SOURCES.add("safetensors", Source("a .safetensors path", _is_path, open_file, fallback=True), __name__)
