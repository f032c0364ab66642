"""Tables of parquet, read by pyarrow, which comes with the library datasets (extra ``data``): a row is a sample.

Rows of text are what lines of JSON are. Others hold numbers, or images as the library datasets stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.collate import array
from lmccheck.data.described import DataSpec
from lmccheck.data.extras import extra
from lmccheck.data.folders import parquet_files
from lmccheck.data.images import read_image, stacked, transform_of
from lmccheck.data.imports import say
from lmccheck.data.rows import KINDS, Row, columns_of
from lmccheck.data.text import Read, read_text
from lmccheck.errors import SourceError, nearest, shown_path
from lmccheck.store.disk import Held, hashed
from lmccheck.store.documents import shown

INPUTS = ("inputs", "image", "pixel_values", "features", "x")  # what the column of inputs is called, `column` unsaid
TARGETS = ("targets", "label", "labels", "target", "y")


def read_parquet(spec: DataSpec, folder: Path) -> Read:
    """Return the samples of a table: text where there is a tokenizer, else numbers or images. Raises SourceError."""
    rows: list[Row] = []
    held: list[Held] = []
    for path in parquet_files(folder / spec.path):
        found, one = _rows(path, len(rows))
        rows += found
        held.append(one)
    if not rows:
        raise SourceError(f"{shown_path(folder / spec.path)}: holds no row, expected samples; mend: give data")
    if spec.tokenizer is not None:
        return read_text(spec, rows, tuple(held), folder)
    if text := next(
        (key for keys in KINDS.values() for key in keys if key in rows[0].values and spec.column is None), None
    ):
        raise rows[0].wrong(f"holds text, {text!r}, and no tokenizer is given; mend: tokenizer = a folder")
    inputs, targets = _column(spec.column, INPUTS, rows[0], "column"), _column(spec.target, TARGETS, rows[0], "target")
    images = isinstance(rows[0].values[inputs], dict) or rows[0].values[inputs] is None
    values = _images(rows, inputs, spec, folder) if images else _numbers(rows, inputs)
    if spec.transform is not None and not images:
        raise SourceError(f"transform = {spec.transform!r}: column {inputs!r} holds no images; mend: leave it out")
    return Read(
        values,
        _numbers(rows, targets),
        "images" if images else None,
        tuple(held),
        columns_of(rows, {inputs, targets}),
        tuple(row.place for row in rows),
    )


def _rows(path: Path, before: int) -> tuple[list[Row], Held]:
    library = extra("pyarrow.parquet", "data", shown_path(path))
    try:
        held = hashed(path)
        found = library.read_table(str(path), use_threads=False).to_pylist()
    except ValueError as error:
        raise SourceError(
            f"{shown_path(path)}: no parquet that can be read: {say(error)}; mend: write it again"
        ) from None
    except Exception as error:
        raise SourceError(f"{shown_path(path)}: cannot be read: {say(error)}; mend: write it again") from None
    return [Row(f"{shown_path(path)}, row {k}", before + k, values) for k, values in enumerate(found)], held


def _column(said: str | None, usual: Sequence[str], row: Row, key: str) -> str:
    """Return the name of a column that a spec says, or that has a usual name."""
    names = [said] if said is not None else [name for name in usual if name in row.values]
    if len(names) == 1 and names[0] in row.values:
        return names[0]
    got = (
        f"no column {said!r}{nearest(said, row.values)}"
        if said is not None
        else f"{names or 'none of the usual names'}"
    )
    raise row.wrong(f"{key}: got {got} among {list(row.values)}; mend: {key} = the name of one of them")


def _numbers(rows: Sequence[Row], name: str) -> Tensor:
    for row in rows:
        value = row.values.get(name)
        if value is None or isinstance(value, (str, bytes, dict)):
            raise row.wrong(
                f"{name!r}: got {shown(value)}, expected numbers; mend: take the row out, or name another column"
            )
    return array([row.values[name] for row in rows], f"column {name!r}")


def _images(rows: Sequence[Row], name: str, spec: DataSpec, folder: Path) -> Tensor:
    change = transform_of(spec, folder)
    found = []
    for row in rows:
        value: Any = row.values.get(name)
        raw = value.get("bytes") if isinstance(value, dict) else None
        if not isinstance(raw, bytes):
            raise row.wrong(f"{name!r}: got {shown(value)}, expected an image with its bytes; mend: embed the images")
        found.append(read_image(raw, row.place, change))
    return torch.stack(found) if len(found) == 1 else stacked(found, [row.place for row in rows], change.given)
