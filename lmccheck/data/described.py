"""Data that a table describes, without code of a user's: which file, how it is read, and what counts in it; no torch.

``[data.NAME]`` in a manifest and the same dictionary in Python become one DataSpec.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from lmccheck.data.imports import input_files
from lmccheck.shown import one_line
from lmccheck.store.documents import Strict, read_table

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
FORMS = ("jsonl", "images", "parquet", "safetensors", "call")  # one of which every table of data has
TEXT = ("tokenizer", "count", "max_length", "pack", "mask", "column", "target")
KEYS: Mapping[str, tuple[str, ...]] = {
    "jsonl": TEXT,
    "images": ("transform",),
    "parquet": (*TEXT, "transform"),
    "safetensors": (),
    "call": (),
}
A_CALL = '"module:callable"'
A_TRANSFORM = '"module:callable", a function of a PIL image that returns a tensor'


def _text(value: Any) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text:
        raise ValueError("a path")
    return text


def _call(value: Any) -> Any:
    if not callable(value) and not (isinstance(value, str) and CALLABLE.fullmatch(value)):
        raise ValueError(A_CALL)
    return value


File = Annotated[str | None, PlainValidator(_text)]
Call = Annotated[Any, PlainValidator(_call)]


class DataTable(Strict):
    """Keys of ``[data.NAME]``."""

    jsonl: File = Field(default=None, description="the path of a file of JSON lines")
    images: File = Field(default=None, description="the path of a folder that holds a folder of images per class")
    parquet: File = Field(default=None, description="the path of a .parquet file, or of a folder of them")
    safetensors: File = Field(default=None, description="the path of a .safetensors file")
    call: Call = Field(default=None, description=A_CALL)
    tokenizer: File = Field(default=None, description="the path of a folder with a tokenizer, or of a tokenizer.json")
    count: Literal["all", "completion"] | None = Field(default=None, description='"all" or "completion"')
    max_length: int | None = Field(default=None, ge=2, description="a whole number of tokens from 2")
    pack: bool = Field(default=False, description="true or false")
    mask: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1, a share of tokens")
    transform: Call = Field(default=None, description=A_TRANSFORM)
    column: str | None = Field(default=None, min_length=1, description="the name of the column that is read")
    target: str | None = Field(default=None, min_length=1, description="the name of the column to be predicted")


@one_line(lambda spec: f"{spec.form} = {spec.path!r}")
@dataclass(frozen=True)
class DataSpec:
    """Data as they are described: ``path`` is read as ``form`` says, relative to the folder that loading is told.

    ``name``: that of ``[data.NAME]``, None in Python. ``count``: which tokens count, "completion" by default where
    there is a prompt. ``column`` and ``target`` name columns of a table; a target makes text a class to be predicted.
    """

    form: str
    path: Any
    name: str | None = None
    tokenizer: str | None = None
    count: str | None = None
    max_length: int | None = None
    pack: bool = False
    mask: float | None = None
    transform: str | Callable[[Any], Any] | None = None
    column: str | None = None
    target: str | None = None

    @property
    def files(self) -> tuple[Any, ...]:
        """What it names beside the data's own path: a tokenizer, a module of the user's."""
        return tuple(each for each in (self.tokenizer, self.transform) if isinstance(each, str))

    def inputs(self, folder: Path) -> Iterator[Path]:
        """Yield every file that reading it reads, of those that exist: none of them may be written over."""
        for each in (self.path, *self.files):
            yield from input_files(folder, each)
            if isinstance(each, str) and (folder / each).is_dir():
                yield from (path for path in sorted((folder / each).rglob("*")) if path.is_file())


def describes(source: Any) -> bool:
    """Whether a dictionary describes data, and is no batch: it says where they lie."""
    return isinstance(source, Mapping) and any(
        isinstance(source.get(form), (str, os.PathLike)) or callable(source.get(form)) for form in FORMS
    )


def read_spec(values: Any, where: str, problems: list[str], name: str | None = None) -> DataSpec | None:
    """Return what a table describes, or None after adding a line to ``problems`` for every mistake in it."""
    table = read_table(DataTable, dict(values) if isinstance(values, Mapping) else values, where, problems)
    if table is None:
        return None
    given = [form for form in FORMS if getattr(table, form) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        problems.append(f"{where}: got {got}, expected one of {', '.join(FORMS)}, which says where the data lie")
        return None
    form = given[0]
    prefix = f"{where}." if where else ""
    before = len(problems)
    for key in sorted(table.model_fields_set - {form, *KEYS[form]}):
        valid = f"expected one of {', '.join(KEYS[form])}" if KEYS[form] else "expected nothing beside it"
        problems.append(f"{prefix}{key}: not read with {form}, {valid}")
    if form == "jsonl" and table.tokenizer is None:
        expected = DataTable.model_fields["tokenizer"].description
        problems.append(f"{prefix}tokenizer: missing, expected {expected}: text becomes tokens by it")
    if table.pack and table.max_length is None:
        problems.append(f"{prefix}max_length: missing, expected {DataTable.model_fields['max_length'].description}")
    if table.mask is not None and table.target is not None:
        problems.append(f"{prefix}mask: got {table.mask}, expected none: what is predicted is {table.target!r}")
    if table.pack and table.target is not None:
        problems.append(f"{prefix}pack: got true, expected false: each text has a target of its own")
    if table.target is not None and table.count is not None:
        problems.append(f"{prefix}count: got {table.count!r}, expected none: what is predicted is {table.target!r}")
    if len(problems) > before:
        return None
    kept = {field.name: getattr(table, field.name) for field in fields(DataSpec) if hasattr(table, field.name)}
    return DataSpec(form, getattr(table, form), name, **kept)
