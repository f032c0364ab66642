"""Names of checkpoints: the shortest parts of their paths that tell them apart; patterns of files, in natural order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, nearest
from lmccheck.store.given import Adapted, name_of

MAGIC = re.compile(r"[*?\[]")
SHOWN = 3  # matches that a remark names, the last among them


def model_names(models: Sequence[Any], otherwise: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a name for each model: its file's stem, or the parts of the paths that tell files of one stem apart.

    An adapter on a base is named after the adapter; a state dict is ``otherwise[k]``, or ``model k``. Parts are joined
    by a dash, so that a name is one of a file, too; what is the same path is told apart by its place.

    >>> model_names(["a/model.safetensors", "b/model.safetensors"])
    ('a', 'b')
    >>> model_names(["lr1/s0/m.safetensors", "lr1/s1/m.safetensors", "lr2/s0/m.safetensors"])
    ('lr1-s0', 'lr1-s1', 'lr2-s0')
    """
    paths = {k: path for k, model in enumerate(models) if (path := _path_of(model)) is not None}
    told = dict(zip(paths, _told_apart(list(map(_parts, paths.values()))), strict=True))
    short = [told.get(k, otherwise[k] if otherwise else f"model {k}") for k in range(len(models))]
    return tuple(name if short.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(short))


def _path_of(model: Any) -> str | None:
    """Return the path after which a model is named, None for what lies in no file."""
    adapter = model.adapter if isinstance(model, Adapted) else model.get("adapter") if isinstance(model, dict) else None
    named = model if adapter is None else adapter
    return os.fspath(named) if isinstance(named, (str, os.PathLike)) else None


def _parts(path: str) -> list[str]:
    """Return a model's short name, and the names of the folders that it lies in from the nearest on."""
    named = Path(os.path.normpath(path))
    return [name_of(named, ""), *(part for part in reversed(named.parts[:-1]) if part not in (os.sep, ".."))]


def _told_apart(paths: list[list[str]]) -> list[str]:
    """Return a name for each path: its file's, or what tells those of one file name apart."""
    groups: dict[str, list[int]] = {}
    for k, path in enumerate(paths):
        groups.setdefault(path[0], []).append(k)
    names = [path[0] for path in paths]
    for members in (members for members in groups.values() if len(members) > 1):
        for k, name in zip(members, _folders([paths[k] for k in members]), strict=True):
            names[k] = name
    return [  # another file may be called as a folder is
        f"{name}-{path[0]}" if names.count(name) > 1 and name != path[0] else name
        for name, path in zip(names, paths, strict=True)
    ]


def _folders(paths: list[list[str]]) -> list[str]:
    """Return as few folders as tell paths to files of one name apart, those nearest the file where several would."""
    depth = max(map(len, paths))
    columns = [[path[d] if d < len(path) else "" for path in paths] for d in range(1, depth)]
    unlike = [column for column in columns if len(set(column)) > 1]
    whole = next((column for column in unlike if len(set(column)) == len(column)), None)
    most = 1
    while whole is None and most <= len(unlike):
        joined = ["-".join(filter(None, row)) for row in zip(*reversed(unlike[:most]), strict=True)]
        whole = joined if len(set(joined)) == len(joined) or most == len(unlike) else None
        most += 1
    return [name or path[0] for name, path in zip(whole or [""] * len(paths), paths, strict=True)]


def is_pattern(given: Any, folder: Path) -> bool:
    """Whether a text is a pattern of paths: one with ``*``, ``?`` or ``[``, unless there is a file of that very name.

    >>> is_pattern("round-12/*.safetensors", Path()), is_pattern("a.safetensors", Path())
    (True, False)
    """
    return isinstance(given, str) and MAGIC.search(given) is not None and not os.path.lexists(folder / given)


def matches(pattern: str, folder: Path) -> list[str]:
    """Return the paths that a pattern matches, relative as it is, in natural order: client-2 before client-10.

    Hidden files and folders match only what says so. Raises CheckpointError where nothing does.
    """
    try:
        found = glob.glob(pattern, root_dir=folder, recursive=True)
    except (OSError, ValueError, re.error) as error:
        raise CheckpointError(f"{pattern!r} is no pattern: {error}; mend: write it as in a shell") from None
    if not found:
        above = pattern
        while MAGIC.search(above):
            above = os.path.dirname(above)
        where = folder / above
        try:
            names = sorted(os.listdir(where))
        except (OSError, ValueError):
            raise CheckpointError(f"no file matches {pattern!r}: there is no folder {where}") from None
        near = nearest(os.path.basename(pattern), names)
        raise CheckpointError(f"no file matches {pattern!r} in {where}, which holds {len(names)} others{near}")
    return sorted(found, key=natural)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key by which numbers in texts are ordered as numbers.

    >>> sorted(["c10", "c9", "b"], key=natural)
    ['b', 'c9', 'c10']
    """
    pieces = re.split(r"([0-9]+)", text)
    return [(0, int(piece), piece) if piece[:1] in "0123456789" and piece else (1, 0, piece) for piece in pieces]


def expanded(models: Sequence[Any] | str, folder: Path) -> tuple[list[Any], list[str]]:
    """Return models with every pattern replaced by what it matches, and a line on each pattern for reports.

    Raises CheckpointError where a pattern matches nothing.
    """
    given = [models] if isinstance(models, str) else list(models)
    found: list[Any] = []
    said: list[str] = []
    for each in given:
        if not is_pattern(each, folder):
            found.append(each)
            continue
        matched = matches(each, folder)
        found += matched
        listed = matched if len(matched) <= SHOWN else [*matched[: SHOWN - 1], "…", matched[-1]]
        said.append(f"{each} matches {len(matched)}: {', '.join(listed)}")
    return found, said
