"""What loading requires of checkpoints: that nothing differs beside their weights but what is accepted."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmccheck.beside.compare import Side, compare
from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import Checkpoint


def read_with(folder: Path, **data: Any) -> dict[str, Path]:
    """Return the folders of the tokenizers that descriptions of data name, which are relative to a folder."""
    found = {}
    for name, source in data.items():
        told = source.get("tokenizer") if isinstance(source, Mapping) else getattr(source, "tokenizer", None)
        if isinstance(told, (str, os.PathLike)) and told:
            path = folder / told
            found[name] = path if path.is_dir() else path.parent
    return found


def require_same_beside(
    checkpoints: Mapping[str, Checkpoint], accept: Iterable[str] = (), *, built: bool, meant: Collection[str] = (),
    data: Mapping[str, Path] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return what is to be said of differences beside the weights of checkpoints, by name, that are accepted.

    Raises CheckpointError where there are others.
    ``built``: their model is built of the first one's config; else lone files are not asked for what lies beside them.
    ``data``: as in ``compare``.
    """
    if isinstance(accept, str):
        raise CheckpointError(f"accept: got {accept!r}, expected a list of names; mend: accept=[{accept!r}]")
    asked = [
        (name, one if built or one.path is None or not os.path.isfile(one.path) else replace(one, home=None))
        for name, one in checkpoints.items()
    ]
    found = compare([replace(Side.of(name, one), meant=meant) for name, one in asked], accept, data=data)
    if found.problems:
        first, *others = found.problems
        more = f" (and {len(others)} more)" if others else ""
        hint = "".join(f"; {line}" for line in list(found.unknown.values())[:1])
        raise CheckpointError(f"{first.replace('accept = [', 'accept=[')}{more}{hint}")
    return found.told_accepted()
