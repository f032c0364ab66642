"""What ``load_merge`` is given, checked before anything is read: names, recipe, alignment, pins, distinct files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmccheck.alignment import method_names
from lmccheck.errors import CheckpointError, LmcError, nearest
from lmccheck.merging.contract import Recipe, read_recipe
from lmccheck.store.checkpoint import Checkpoint

SAID = ("better-parent", "worse-parent", "mean", "merge")  # which no parent may be called


def require_alignable(align: str, recipe: Recipe) -> None:
    """Raise LmcError for what is no method of alignment, and where the recipe aligns or mixes by itself."""
    known = ("none", *method_names())
    if align not in known:
        near = nearest(align, known) if isinstance(align, str) else ""
        raise LmcError(f"align = {align!r}{near}; expected one of {', '.join(known)}")
    if align != "none" and not recipe.declared.linear:
        raise LmcError(
            f"align = {align!r}: {recipe.name} gets the parents as they are, expected none; mend: leave it out, or "
            "align the files before (lmccheck align)"
        )


def recipe_of(given: Any, names: tuple[str, ...], folder: Path) -> Recipe:
    if isinstance(given, Recipe):
        return given
    try:
        return read_recipe(given, names, folder)
    except LmcError as error:
        raise LmcError(f"recipe{error}") from None


def pins_of(given: Mapping[str, str] | None, names: tuple[str, ...]) -> Mapping[str, str]:
    if other := next((key for key in given or {} if key not in (*names, "base")), None):
        raise CheckpointError(
            f"sha256: got the key {other!r}{nearest(other, names)}, expected parents' names and base only; mend: name "
            "the one it pins"
        )
    return given or {}


def names_of(parents: Any) -> tuple[str, ...]:
    if not isinstance(parents, Mapping) or not parents:
        raise CheckpointError(
            f"parents: got {type(parents).__name__}, expected a table of checkpoints by name; mend: "
            'parents = {"chat": "chat.safetensors", "math": "math.safetensors"}'
        )
    for name in parents:
        if not isinstance(name, str) or not name or name in SAID:
            raise CheckpointError(f"parents: got the name {name!r}, expected a text other than {', '.join(SAID)}")
    return tuple(parents)


def require_enough(names: tuple[str, ...], recipe: Recipe, base_model: Any) -> None:
    if recipe.declared.needs_base and base_model is None:
        raise CheckpointError(
            f"recipe {recipe.name} needs the base of the parents, and none is given; mend: give base_model (in a "
            "manifest: base)"
        )
    if "base" in names and base_model is not None:
        raise CheckpointError(
            "parents: one is called 'base', and a base is given, too; expected another name; mend: rename the parent"
        )
    if len(names) < 2 and base_model is None:
        raise CheckpointError(
            f"parents: got one, {names[0]}, and no base, expected at least two checkpoints to merge; mend: give the "
            "others, or the base"
        )


def require_distinct(opened: Mapping[str, Checkpoint]) -> None:
    """Raise CheckpointError where two parents are one file."""
    places: dict[tuple[str, ...], str] = {}
    for name, checkpoint in opened.items():
        if not checkpoint.files:
            continue
        first = places.setdefault(tuple(os.path.realpath(file) for file in checkpoint.files), name)
        if first != name:
            raise CheckpointError(
                f"parents {first} and {name} are the same file, {checkpoint.label}; expected two checkpoints; mend: "
                "name the other"
            )
