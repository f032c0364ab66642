"""What the first lines of described data tell before anything is loaded: do they parse, and are they of one kind?"""

from __future__ import annotations

from pathlib import Path

from lmccheck.data.described import DataSpec
from lmccheck.data.folders import image_files, parquet_files
from lmccheck.data.rows import first_rows, kind_of
from lmccheck.data.tokenizing import require_tokenizer


def look_at_data(spec: DataSpec, folder: Path) -> None:
    """Raise SourceError where the files of a spec are not there, or their first lines cannot be read; no torch."""
    if spec.tokenizer is not None:
        require_tokenizer(folder / spec.tokenizer)
    if spec.form == "jsonl":
        kind_of(first_rows(folder / spec.path), spec.column)
    elif spec.form == "images":
        image_files(folder / spec.path)
    elif spec.form == "parquet":
        parquet_files(folder / spec.path)
