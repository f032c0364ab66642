"""What can be known of a manifest before any network runs: files, pins, and the tensors their headers list.

Headers only: even a manifest over large checkpoints is inspected in milliseconds, without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmccheck.errors import CheckpointError, nearest
from lmccheck.manifest.plan import PairPlan, Plan, SetPlan
from lmccheck.store.checkpoint import Checkpoint, look_at

SHOWN_TENSORS = 3


def problems(plan: Plan) -> list[str]:
    """Return one line per problem of the manifest's files; an empty list means that all of them can be loaded."""
    return [
        f"{item.kind}.{item.name}{problem}" for item in plan.comparisons for problem in _problems(item, plan.folder)
    ]


def _problems(item: PairPlan | SetPlan, folder: Path) -> Iterator[str]:
    """Yield problems, each beginning with the key below the item's table ('.a: …') or with ': '."""
    for key in ("data", "calibration"):
        source = getattr(item, key)
        if source is not None and source.endswith(".safetensors") and not (folder / source).is_file():
            yield f".{key}: {missing(folder / source)}"
    if item.symmetry is not None and not (folder / item.symmetry).is_file():
        yield f".symmetry: {missing(folder / item.symmetry)}"
    headers: dict[str, Checkpoint] = {}
    seen: list[str] = []
    for key, file in item.files.items():
        path = folder / file
        if not path.exists():
            yield f".{key}: {missing(path)}"
            continue
        same = next((other for other in seen if os.path.samefile(path, folder / item.files[other])), None)
        seen.append(key)
        try:
            checkpoint = look_at(file, folder, key)
        except CheckpointError as error:
            yield f".{key}: {error}"
            continue
        yield from _pin_problems(key, checkpoint, item.pins.get(key))
        if same is not None:
            yield f": {same} and {key} are the same file, {file}; expected two checkpoints"
        else:
            headers[key] = checkpoint
    kinds = ("dtype",) if isinstance(item, PairPlan) and item.model_b is not None else ("shape", "dtype")
    first = next(iter(headers), "")
    for other in list(headers)[1:]:
        yield from _differences(first, other, headers[first], headers[other], kinds)


def missing(path: Path) -> str:
    """Say that a file is not there, with the nearest name that is."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    where = f" in {path.parent}" if path.parent.is_dir() else f"; the folder {path.parent} does not exist either"
    return f"no file {path.name!r}{where}{nearest(path.name, names)}"


def _pin_problems(key: str, checkpoint: Checkpoint, pin: str | None) -> Iterator[str]:
    if pin is not None and (found := checkpoint.sha256) != pin:
        named = key.replace("models", "sha256") if key.startswith("models") else f"sha256.{key}"
        name = Path(checkpoint.path or key).name
        yield f".{named}: {name} has sha256 {found}, expected {pin}; pin the file that was reviewed"


def _differences(a: str, b: str, first: Checkpoint, second: Checkpoint, kinds: Sequence[str]) -> Iterator[str]:
    """Yield what keeps two checkpoints from being points of one weight space (or of two that differ in widths)."""
    for side, other, own, others in ((a, b, first, second), (b, a, second, first)):
        only = sorted(own.tensors.keys() - others.tensors.keys())
        if only:
            yield f": {_some(only)} in {side} only, expected the same tensors in {other}"
    shared = sorted(first.tensors.keys() & second.tensors.keys())
    for kind in kinds:
        unlike = [
            f"{name} is {getattr(first.tensors[name], kind)} in {a} and {getattr(second.tensors[name], kind)} in {b}"
            for name in shared
            if getattr(first.tensors[name], kind) != getattr(second.tensors[name], kind)
        ]
        if unlike:
            yield f": {_some(unlike)}; expected the same {kind}s"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
    return ", ".join(names[:SHOWN_TENSORS]) + more
