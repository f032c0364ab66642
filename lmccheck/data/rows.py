"""Lines of JSON: one object a line, each known by its file and line, and what its keys say it is; no torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

from lmccheck.errors import SourceError, nearest, shown_path
from lmccheck.store.disk import Held, Stamp, opened
from lmccheck.store.documents import parsed_json, shown

EXPECTED = "a file of JSON lines"
KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}  # keys by which a row is known
SHAPES = '{"text": …}, {"prompt": …, "completion": …} or {"messages": […]}'
ROLES = "an object with the texts 'role' and 'content'"
MOST_LINE = 2**27  # bytes of one line
GLANCE = 20  # rows that are looked at before anything is loaded


@dataclass(frozen=True)
class Row:
    """An object of a file: its place ("math.jsonl:12"), the number of its line, and what it holds."""

    place: str
    line: int
    values: Mapping[str, Any]

    def wrong(self, what: str) -> SourceError:
        """Return the error that says what is wrong with it."""
        return SourceError(f"{self.place}: {what}")


def read_rows(path: Path) -> tuple[list[Row], Held]:
    """Return every row of a file and the file's state as it was read. Raises SourceError with its file and line."""
    try:
        with opened(path, EXPECTED) as file:
            before = Stamp.of(os.fstat(file.fileno()))
            digest = hashlib.sha256()
            rows = list(_rows(_lines(file, path, digest), path))
            held = Held.after(path, file, before, digest.hexdigest())
    except ValueError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"{shown_path(path)}: cannot be read: {error.strerror or error}; mend: check it") from None
    if not rows:
        raise SourceError(f"{shown_path(path)}: is empty, expected {EXPECTED}; mend: give data to measure on")
    return rows, held


def first_rows(path: Path, count: int = GLANCE) -> list[Row]:
    """Return the first rows of a file, of which no more is read. Raises SourceError."""
    try:
        with opened(path, EXPECTED) as file:
            rows = list(islice(_rows(_lines(file, path), path), count))
    except (OSError, ValueError) as error:
        raise SourceError(str(error)) from None
    if not rows:
        raise SourceError(f"{shown_path(path)}: is empty, expected {EXPECTED}; mend: give data to measure on")
    return rows


def _lines(file: BufferedReader[Any], path: Path, digest: Any = None) -> Iterator[bytes]:
    number = 0
    while raw := file.readline(MOST_LINE + 1):
        number += 1
        if len(raw) > MOST_LINE:
            raise SourceError(
                f"{shown_path(path)}:{number}: a line of more than {MOST_LINE} bytes, expected {EXPECTED}"
            )
        if digest is not None:
            digest.update(raw)
        yield raw


def _rows(lines: Iterator[bytes], path: Path) -> Iterator[Row]:
    """Yield the rows; lines without anything may only stand at the end of a file."""
    empty: str | None = None
    for number, raw in enumerate(lines, start=1):
        place = f"{shown_path(path)}:{number}"
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            empty = empty or place
            continue
        if empty is not None:
            raise SourceError(f"{empty}: an empty line, expected one JSON object a line; mend: take it out")
        yield Row(place, number, _object(raw, place))


def _object(raw: bytes, place: str) -> dict[str, Any]:
    try:
        found = parsed_json(raw.decode())
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{place}: got the byte 0x{raw[error.start]:02x}, expected UTF-8 text; mend: save the file as UTF-8"
        ) from None
    except RecursionError:
        raise SourceError(f"{place}: nested too deeply, expected one JSON object a line") from None
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{place}: not valid JSON: {error.msg} at character {error.pos}; expected one JSON object a line; mend: "
            "write it with json.dumps"
        ) from None
    except ValueError as error:
        raise SourceError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise SourceError(f"{place}: got {shown(found)}, expected an object such as {SHAPES}")
    return found


def kind_of(rows: Sequence[Row], column: str | None = None) -> str:
    """Return what all rows are: "text", "completion" or "messages"; ``column`` is what the text is called.

    Raises SourceError for the first row that is none of them, is two of them, or is not what the first one is.
    """
    if column is not None:
        for row in rows:
            if not isinstance(row.values.get(column), str):
                got = shown(row.values[column]) if column in row.values else "none" + nearest(column, row.values)
                raise row.wrong(f"column {column!r}: got {got}, expected a text")
        return "text"
    first = _kind(rows[0])
    for row in rows[1:]:
        if (kind := _kind(row)) != first:
            raise row.wrong(
                f"has {_keys(kind)}, {rows[0].place} has {_keys(first)}; expected rows of one kind; mend: give each "
                "kind a file of its own"
            )
    return first


def _kind(row: Row) -> str:
    found = [kind for kind, keys in KINDS.items() if any(key in row.values for key in keys)]
    if len(found) != 1:
        got = " and ".join(map(_keys, found)) if found else f"the keys {list(row.values)}"
        raise row.wrong(f"got {got}, expected {SHAPES}; mend: give one of them, or say which `column` holds the text")
    kind = found[0]
    for key in KINDS[kind]:
        if key not in row.values:
            raise row.wrong(f"has no {key!r}, expected {_keys(kind)}")
        if kind == "messages":
            _require_messages(row)
        elif not isinstance(row.values[key], str):
            raise row.wrong(f"{key!r}: got {shown(row.values[key])}, expected a text")
    return kind


def _require_messages(row: Row) -> None:
    messages = row.values["messages"]
    if not isinstance(messages, list) or not messages:
        raise row.wrong(f"'messages': got {shown(messages)}, expected an array of messages, at least one")
    for k, message in enumerate(messages):
        if not isinstance(message, dict):
            raise row.wrong(f"message {k}: got {shown(message)}, expected {ROLES}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                got = shown(message[key]) if key in message else "none"
                raise row.wrong(f"message {k}, {key!r}: got {got}, expected {ROLES}")


def _keys(kind: str) -> str:
    return " and ".join(map(repr, KINDS[kind]))


def columns_of(rows: Sequence[Row], read: Set[str]) -> dict[str, tuple[Any, ...]]:
    """Return the columns beside those that are ``read`` whose values are texts, numbers or booleans, None if absent."""
    names = dict.fromkeys(name for row in rows for name in row.values if name not in read)
    found = {name: tuple(row.values.get(name) for row in rows) for name in names}
    plain = (str, int, float, bool, type(None))
    return {name: values for name, values in found.items() if all(isinstance(value, plain) for value in values)}
