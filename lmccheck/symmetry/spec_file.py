"""A permutation spec as a file, TOML or JSON by its suffix: what discovery found, or what a person wrote instead."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from lmccheck.errors import SymmetryError, shown_path
from lmccheck.store.documents import read_document, read_table
from lmccheck.symmetry.keys import Top
from lmccheck.symmetry.slots import Slot
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.spec_reader import described, spec_from_groups

__all__ = ["load_spec", "save_spec", "spec_from_groups"]

SUFFIXES = (".toml", ".json")
HEAD = (
    "Unit groups: reordering the units of one, in all of its slots alike, must leave the network's function as it is.",
    "A slot is dimension `dim` of a tensor, or `axis` of that dimension seen, from `start` on, as a product `view`.",
)


def load_spec(path: str | os.PathLike[str], module: nn.Module) -> PermutationSpec:
    """Return the permutation spec in a ``.toml`` or ``.json`` file, checked against the tensors of ``module``.

    Whether it keeps the network's function is for ``spec.verify(module, example_inputs)`` to measure. Raises
    SymmetryError with one line for every mistake: the file, the group and slot, got, expected.
    """
    path = Path(path)
    check_suffix(path)
    try:
        _, _, document = read_document(path)
    except ValueError as error:
        raise SymmetryError(str(error)) from None
    problems: list[str] = []
    top = read_table(Top, document, "", problems)
    if top is None:
        raise SymmetryError("\n".join(f"{shown_path(path)}: {problem}" for problem in problems))
    return described(module, top.group, top.frozen, top.unruled, shown_path(path))


def save_spec(spec: PermutationSpec, path: str | os.PathLike[str], *, model: str | None = None) -> Path:
    """Write ``spec`` to a ``.toml`` or ``.json`` file, whole or not at all, and return its path.

    ``load_spec`` gives back the same groups, slots and frozen axes; ``model`` is noted for the reader. Raises
    SymmetryError when the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    lines = _json(spec, model) if path.suffix == ".json" else _toml(spec, model)
    partial = path.with_name(path.name + ".partial")
    try:
        content = "".join(f"{line}\n" for line in lines).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except (OSError, UnicodeEncodeError) as error:
        partial.unlink(missing_ok=True) if path.parent.is_dir() else None
        reason = getattr(error, "strerror", None) or error
        raise SymmetryError(
            f"{shown_path(path)}: cannot be written: {reason}; mend: choose a folder that can be written to"
        ) from None
    return path


def check_suffix(path: Path) -> None:
    """Raise SymmetryError unless the path is that of a TOML or JSON file."""
    if path.suffix not in SUFFIXES:
        raise SymmetryError(
            f"{shown_path(path)}: got the suffix {path.suffix!r}, expected .toml or .json; mend: rename the file"
        )


def _head(spec: PermutationSpec, model: str | None) -> dict[str, Any]:
    head: dict[str, Any] = {"schema": 1}
    if model is not None:
        head["model"] = model
    return head | ({"unruled": dict(spec.unruled)} if spec.unruled else {})


def _groups(spec: PermutationSpec) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield each group's keys, and its slots."""
    for group in spec.groups:
        table: dict[str, Any] = {"name": group.name, "size": group.size}
        if group.within:
            table["within"] = list(group.within)
        table |= {"bound": group.bound} if group.bound else {"droppable": True}
        yield table, [_slot(slot, spec.shapes[slot.tensor]) for slot in group.slots]


def _slot(slot: Slot, shape: Sequence[int]) -> dict[str, Any]:
    """Return a slot's keys, defaults left out where a reader would not miss them."""
    parts = slot.piece.parts
    view, strides = [part.size for part in parts], [part.stride for part in parts]
    contiguous = strides == [prod(view[k + 1 :]) for k in range(len(view))]
    table: dict[str, Any] = {"tensor": slot.tensor}
    if len(shape) > 1:
        table["dim"] = slot.dim
    if slot.role != ("consumer" if slot.dim else "producer"):
        table["role"] = slot.role
    if not contiguous or prod(view) != shape[slot.dim]:
        table["start"] = slot.start
    if len(view) > 1 or not contiguous:
        table |= {"view": view, "axis": slot.at}
    return table if contiguous else table | {"strides": strides}


def _frozen(spec: PermutationSpec) -> Iterator[dict[str, Any]]:
    for item in spec.frozen:
        yield {"tensor": item.tensor, "dim": item.dim, "size": item.size, "reason": item.reason}


def _toml(spec: PermutationSpec, model: str | None) -> Iterator[str]:
    yield from (f"# {line}" for line in HEAD)
    yield from _keys(_head(spec, model))
    for table, slots in _groups(spec):
        yield from ("", "[[group]]", *_keys(table), "slots = [")
        yield from (f"    {_value(slot)}," for slot in slots)
        yield "]"
    if spec.frozen:
        yield from ("", "# For information: what stays in place, and why.")
    for k, item in enumerate(_frozen(spec)):
        yield from ("", "[[frozen]]")[0 if k else 1 :]
        yield from _keys(item)


def _keys(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: Any) -> str:
    """Return a value as TOML has it; its strings are JSON's, but for one character, which it wants escaped."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_bare(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _bare(key: str) -> str:
    return key if key.isascii() and key.isidentifier() else _value(key)


def _json(spec: PermutationSpec, model: str | None) -> Iterator[str]:
    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    yield "{"
    yield from (f"  {text(key)}: {text(value)}," for key, value in _head(spec, model).items())
    groups = list(_groups(spec))
    yield '  "group": ['
    for k, (table, slots) in enumerate(groups):
        yield "    {"
        yield from (f"      {text(key)}: {text(value)}," for key, value in table.items())
        yield '      "slots": ['
        yield from _commas([f"        {text(slot)}" for slot in slots])
        yield from ("      ]", "    }" + ("," if k < len(groups) - 1 else ""))
    yield from ("  ],", '  "frozen": [')
    yield from _commas([f"    {text(item)}" for item in _frozen(spec)])
    yield from ("  ]", "}")


def _commas(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"{line}," for line in lines[:-1])
    yield from lines[-1:]
