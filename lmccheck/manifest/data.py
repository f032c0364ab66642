"""Data that a manifest gives a name, ``[data.NAME]``, and what is read where it asks for data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lmccheck.data.described import DataSpec, read_spec
from lmccheck.errors import nearest
from lmccheck.manifest.tables import SOURCE, SOURCES
from lmccheck.store.documents import key_text, shown


class NamedData:
    """The tables ``[data.NAME]``, read; what is wrong with them is added to ``problems``, once."""

    def __init__(self, tables: Mapping[str, Any], problems: list[str]) -> None:
        self.problems = problems
        self.broken: set[str] = set()  # names of data in which there is a mistake
        self.specs: dict[str, DataSpec] = {}
        for name, values in tables.items():
            where = f"data.{key_text(name)}"
            if re.search(SOURCES, name):
                problems.append(f"{where}: the name {name!r} reads like a file, expected another")
            if (spec := read_spec(values, where, problems, name)) is not None:
                self.specs[name] = spec
            else:
                self.broken.add(name)

    def source(self, value: str | dict[str, Any] | None, where: str) -> str | DataSpec | None:
        """Return what is read: data by their name, a table of them, or a source as it is written."""
        if isinstance(value, dict):
            return read_spec(value, where, self.problems)
        if value is None or value in self.broken or re.search(SOURCES, value):
            return value
        if value not in self.specs:
            self.problems.append(f"{where}: got {shown(value)}, expected {SOURCE}{nearest(value, self.specs)}")
        return self.specs.get(value)

    def require(self, data: Any, where: str) -> None:
        """Note the names in a check's ``data``, one, several or one for each parent, that are none."""
        for place, name in _names(data):
            self.source(name, f"{where}{place}")


def _names(data: Any) -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield "", data
    elif isinstance(data, Mapping):
        yield from ((f".{key_text(key)}", name) for key, name in data.items() if isinstance(name, str))
    elif isinstance(data, list):
        yield from ((f"[{k}]", name) for k, name in enumerate(data) if isinstance(name, str))
