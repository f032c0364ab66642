"""A permutation spec as a file: what discovery found, or what a person wrote; written as TOML, read as JSON too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from lmccheck.errors import SymmetryError, shown_path
from lmccheck.store.disk import Held
from lmccheck.store.documents import read_document, read_table, toml_lines, toml_value, write_document
from lmccheck.symmetry.slots import Slot
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.spec_reader import described, spec_from_groups
from lmccheck.symmetry.spec_tables import Problems, Top
from lmccheck.symmetry.stacks import usual_role

__all__ = ["load_spec", "save_spec", "spec_from_groups"]

HEAD = (
    "Unit groups: reordering the units of one, in all of its slots alike, must leave the network's function as it is.",
    "A slot is dimension `dim` of a tensor, or `axis` of that dimension seen, from `start` on, as a product `view`.",
)


def load_spec(path: str | os.PathLike[str], module: nn.Module) -> PermutationSpec:
    """Return the permutation spec in a ``.toml`` or ``.json`` file, checked against the tensors of ``module``.

    Whether it keeps the network's function is for ``spec.verify(module, example_inputs)`` to measure. Raises
    SymmetryError with one line for every mistake: the file, the group and slot, got, expected.
    """
    return read_spec(path, module)[0]


def read_spec(path: str | os.PathLike[str], module: nn.Module) -> tuple[PermutationSpec, Held]:
    """Return what ``load_spec`` does, and the state of the file that was read."""
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise SymmetryError(
            f"{shown_path(path)}: got the suffix {path.suffix!r}, expected .toml or .json; mend: rename the file"
        )
    try:
        held, _, document = read_document(path)
    except ValueError as error:
        raise SymmetryError(str(error)) from None
    problems = Problems(shown_path(path))
    top = read_table(Top, document, "", problems)
    problems.settle()
    assert top is not None  # there was no problem
    return described(module, top.group, top.frozen, top.unruled, shown_path(path)), held


def save_spec(spec: PermutationSpec, path: str | os.PathLike[str], *, model: str | None = None) -> Path:
    """Write ``spec`` to a ``.toml`` file, whole or not at all, and return its path.

    ``load_spec`` gives back the same groups, slots and frozen axes; ``model`` is noted for the reader. Raises
    SymmetryError when the file cannot be written.
    """
    path = Path(path)
    require_toml(path)
    try:
        write_document(path, _lines(spec, model))
    except ValueError as error:
        raise SymmetryError(str(error)) from None
    return path


def require_toml(path: Path) -> None:
    """Raise SymmetryError unless the path is that of a file that a spec may be written to."""
    if path.suffix != ".toml":
        raise SymmetryError(
            f"{shown_path(path)}: got the suffix {path.suffix!r}, expected .toml, as which specs are written; mend: "
            "rename the file"
        )


def _lines(spec: PermutationSpec, model: str | None) -> Iterator[str]:
    yield from (f"# {line}" for line in HEAD)
    head = {"schema": 1, "model": model, "unruled": dict(spec.unruled)}
    yield from toml_lines({key: value for key, value in head.items() if value not in (None, {})})
    for group in spec.groups:
        table: dict[str, Any] = {"name": group.name, "size": group.size}
        if group.within:
            table["within"] = list(group.within)
        table |= {"bound": group.bound} if group.bound else {"droppable": True}
        yield from ("", "[[group]]", *toml_lines(table), "slots = [")
        yield from (f"    {toml_value(_slot(slot, spec.shapes[slot.tensor]))}," for slot in group.slots)
        yield "]"
    if spec.frozen:
        yield from ("", "# For information: what stays in place, and why.", "[[frozen]]")
    for k, item in enumerate(spec.frozen):
        yield from ("", "[[frozen]]") if k else ()
        yield from toml_lines({"tensor": item.tensor, "dim": item.dim, "size": item.size, "reason": item.reason})


def _slot(slot: Slot, shape: Sequence[int]) -> dict[str, Any]:
    """Return a slot's keys, defaults left out where a reader would not miss them."""
    parts = slot.piece.parts
    view, strides = [part.size for part in parts], [part.stride for part in parts]
    contiguous = strides == [prod(view[k + 1 :]) for k in range(len(view))]
    table: dict[str, Any] = {"tensor": slot.tensor}
    if len(shape) > 1:
        table["dim"] = slot.dim
    if slot.role != usual_role(slot.tensor, slot.dim):
        table["role"] = slot.role
    if not contiguous or prod(view) != shape[slot.dim]:
        table["start"] = slot.start
    if len(view) > 1 or not contiguous:
        table |= {"view": view, "axis": slot.at}
    return table if contiguous else table | {"strides": strides}
