"""From a DataSpec to samples: one way for each form of data."""

from __future__ import annotations

from pathlib import Path

from lmccheck.data.described import DataSpec
from lmccheck.data.images import read_images
from lmccheck.data.parquet import read_parquet
from lmccheck.data.rows import read_rows
from lmccheck.data.text import Read, read_text


def read_described(spec: DataSpec, folder: Path) -> Read:
    """Return the samples that a spec describes, paths being relative to ``folder``. Raises SourceError."""
    if spec.form == "images":
        return read_images(spec, folder)
    if spec.form == "parquet":
        return read_parquet(spec, folder)
    rows, held = read_rows(folder / spec.path)
    return read_text(spec, rows, (held,), folder)
