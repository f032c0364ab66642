"""Files of tables that people write (TOML, JSON), read against models that say what is expected; no torch here.

Every mistake becomes one line: where, the key, what was found and what is expected.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lmccheck.errors import nearest, shown_path
from lmccheck.store.disk import Held, read_bytes
from lmccheck.store.whole import write_whole

PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
LONG_KEY = re.compile(rf"(?<![\w-]){PART}(?:[ \t]*+\.[ \t]*+{PART}){{100,}}")  # reading one takes its length squared
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which JSON can say and no file can hold
MOST = {"TOML": 2**24, "JSON": 2**27}  # bytes; more would be read for minutes
BARE = re.compile(r"[A-Za-z0-9._-]+")


class Strict(BaseModel):
    """A table of a file: no unknown keys, no conversions; a field's description says what is expected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)
    belongs: ClassVar[Mapping[str, str]] = {}  # keys of other tables, each with where it belongs

    @classmethod
    def elsewhere(cls, key: str, value: Any) -> str:
        """Say where a key belongs that is unknown here and like no other; empty where that is not known."""
        return ""


Table = TypeVar("Table", bound=Strict)


def read_document(path: Path) -> tuple[Held, str, dict[str, Any]]:
    """Return the state, the text and the tables of a ``.json`` file, or of a TOML file of any other name.

    Raises ValueError with one line that begins with the file's name.
    """
    kind = "JSON" if path.suffix == ".json" else "TOML"
    raw, held = read_bytes(path, f"a {kind} file", MOST[kind])
    return held, *decoded(raw, path, kind)


def decoded(raw: bytes, path: Path, kind: str) -> tuple[str, dict[str, Any]]:
    """Return the text and the tables of a file's bytes; raise ValueError as ``read_document`` does."""
    shown_name = shown_path(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{shown_name}: line {line}: got the byte 0x{raw[error.start]:02x}, expected UTF-8 text; save the file as "
            "UTF-8"
        ) from None
    if kind == "TOML" and (key := LONG_KEY.search(text)):
        line = text.count("\n", 0, key.start()) + 1
        raise ValueError(f"{shown_name}: line {line}: got a key of more than 100 parts, expected few")
    try:
        found = parsed_json(text) if kind == "JSON" else tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{shown_name}: not valid {kind}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{shown_name}: not valid {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{shown_name}: got {shown(found)}, expected a table")
    return text, found


def parsed_json(text: str) -> Any:
    """Return what JSON says. Raises ValueError, for a key that occurs twice too, and RecursionError."""
    escapes = "\\ud" in text or "\\uD" in text  # without which no text has half of a character
    return json.loads(text, object_pairs_hook=_once_in_unicode if escapes else _once)


def write_document(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file as UTF-8, whole or not at all. Raises ValueError with one line."""
    try:
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{shown_path(path)}: cannot be written: {reason}; mend: choose a folder that can be written to"
        ) from None


def toml_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a table as lines of a TOML file, tables in it inline."""
    yield from (f"{key} = {toml_value(value)}" for key, value in table.items())


def toml_value(value: Any) -> str:
    """Return a value as TOML has it; its strings are JSON's, but for one character, which it wants escaped.

    >>> toml_value({"view": [2, 3], "a.b": True})
    '{ view = [2, 3], "a.b" = true }'
    """
    if isinstance(value, dict):
        keys = (key if key.isascii() and key.isidentifier() else toml_value(key) for key in value)
        return (
            "{ "
            + ", ".join(f"{key} = {toml_value(item)}" for key, item in zip(keys, value.values(), strict=True))
            + " }"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, which unlike a TOML table may by itself say a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key in found if times[key] > 1)!r} occurs twice in one object")
    return found


def _once_in_unicode(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object as ``_once`` does, of whole characters only."""
    found = _once(pairs)
    for text in (*found, *found.values()):
        if isinstance(text, str) and not text.isascii() and SURROGATE.search(text):
            raise ValueError(f"the text {text!r} is no Unicode")
    return found


def read_table(model: type[Table], values: Any, where: str, problems: list[str], separator: str = ".") -> Table | None:
    """Return the table as its model, or None after adding a line to ``problems`` for every mistake in it."""
    if not isinstance(values, dict):
        problems.append(f"{where}: got {shown(values)}, expected a table")
        return None
    prefix = f"{where}{separator}" if where else ""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        for key, kind in {str(problem["loc"][0]): problem["type"] for problem in error.errors()}.items():
            if kind == "extra_forbidden":
                valid = ", ".join(fields)
                hint = model.belongs.get(key) or nearest(key, fields) or model.elsewhere(key, values[key])
                line = f"{prefix}{key_text(key)}: unknown key{hint}, expected one of {valid}"
            elif kind == "missing":
                line = f"{prefix}{key}: missing, expected {fields[key].description}"
            else:
                line = f"{prefix}{key}: got {shown(values[key])}, expected {fields[key].description}"
            problems.append(line)
        return None


def key_text(name: str) -> str:
    """Return a key as TOML would need it: bare where it may be, else quoted, so that a message stays one line."""
    return name if BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def near(name: object, valid: Iterable[str]) -> str:
    """Return the nearest valid name as ``nearest`` does, or nothing for a value that is no text."""
    return nearest(name, valid) if isinstance(name, str) else ""


def shown(value: object) -> str:
    """Return a value of a file as its author wrote it, with its type where the value alone may mislead.

    >>> shown(True), shown("25"), shown(2.5), shown({})
    ('true (a boolean)', '"25" (a string)', '2.5', 'a table')
    """
    match value:
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case str():
            return f"{json.dumps(value, ensure_ascii=False)} (a string)"
        case dict():
            return "a table"
        case list():
            return "an array"
        case None:
            return "null"
        case int() if value.bit_length() > 1000:
            return f"a whole number of {value.bit_length()} bits"
        case _:
            return str(value)
