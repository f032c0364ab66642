"""What can be known of a manifest before any network runs: files, pins, and the tensors their headers list.

Headers only: even a manifest over large checkpoints is inspected in milliseconds, without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lmccheck.checkpoint import Header, read_header, sha256_of
from lmccheck.errors import CheckpointError, nearest
from lmccheck.manifest import PairPlan, Plan

SHOWN_TENSORS = 3


def problems(plan: Plan) -> list[str]:
    """Return one line per problem of the manifest's files; an empty list means that every pair can be loaded."""
    return [f"pair.{pair.name}{problem}" for pair in plan.pairs for problem in _pair_problems(pair, plan.folder)]


def _pair_problems(pair: PairPlan, folder: Path) -> Iterator[str]:
    """Yield problems, each beginning with the key below the pair's table ('.a: …') or with ': '."""
    for key in ("data", "calibration"):
        source = getattr(pair, key)
        if source is not None and source.endswith(".safetensors") and not (folder / source).is_file():
            yield f".{key}: {missing(folder / source)}"
    if pair.symmetry is not None and not (folder / pair.symmetry).is_file():
        yield f".symmetry: {missing(folder / pair.symmetry)}"
    files = {"a": folder / pair.a, "b": folder / pair.b}
    headers: dict[str, Header] = {}
    for side, path in files.items():
        if not path.exists():
            yield f".{side}: {missing(path)}"
            continue
        try:
            headers[side] = read_header(path)
        except CheckpointError as error:
            yield f".{side}: {error}"
            continue
        yield from _pin_problems(side, path, pair.sha256.get(side))
    if files["a"].exists() and files["b"].exists() and os.path.samefile(files["a"], files["b"]):
        yield f": a and b are the same file, {pair.a}; expected two checkpoints"
    elif len(headers) == 2:
        yield from _differences(headers["a"], headers["b"])


def missing(path: Path) -> str:
    """Say that a file is not there, with the nearest name that is."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    where = f" in {path.parent}" if path.parent.is_dir() else f"; the folder {path.parent} does not exist either"
    return f"no file {path.name!r}{where}{nearest(path.name, names)}"


def _pin_problems(side: str, path: Path, pin: str | None) -> Iterator[str]:
    if pin is not None and (found := sha256_of(path)) != pin:
        yield f".sha256.{side}: {path.name} has sha256 {found}, expected {pin}; pin the file that was reviewed"


def _differences(a: Header, b: Header) -> Iterator[str]:
    """Yield what keeps two checkpoints from being points of one weight space."""
    for side, other, own, others in (("a", "b", a, b), ("b", "a", b, a)):
        only = sorted(own.tensors.keys() - others.tensors.keys())
        if only:
            yield f": {_some(only)} in {side} only, expected the same tensors in {other}"
    shared = sorted(a.tensors.keys() & b.tensors.keys())
    for kind in ("shape", "dtype"):
        unlike = [
            f"{name} is {getattr(a.tensors[name], kind)} in a and {getattr(b.tensors[name], kind)} in b"
            for name in shared
            if getattr(a.tensors[name], kind) != getattr(b.tensors[name], kind)
        ]
        if unlike:
            yield f": {_some(unlike)}; expected the same {kind}s"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
    return ", ".join(names[:SHOWN_TENSORS]) + more
