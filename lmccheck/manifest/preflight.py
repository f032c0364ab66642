"""What can be known of a manifest before any network runs: files, pins, and the tensors their headers list.

Headers only: even a manifest over large checkpoints is inspected in milliseconds, without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

from lmccheck.beside.compare import Compared
from lmccheck.beside.folder import Folder
from lmccheck.data.described import DataSpec
from lmccheck.data.look_at_data import look_at_data
from lmccheck.errors import CheckpointError, LmcError, SourceError, nearest, one_line, shown_path
from lmccheck.manifest.beside import acceptances, compared
from lmccheck.manifest.plan import Measured, MergePlan, PairPlan, Plan
from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.documents import read_document
from lmccheck.store.given import Named, paths_of
from lmccheck.store.header import read_header, require_evaluable, require_samples
from lmccheck.store.prefixes import alike, prefix_problem

SHOWN_TENSORS = 3
MOST_TWINS = 8
LISTED = 1000  # names of a folder that are compared with one that is missing


def problems(plan: Plan) -> list[str]:
    """Return one line per problem of the manifest's files; an empty list means that all of them can be loaded."""
    return inspected(plan).problems


@dataclass
class Inspected:
    """One line per problem, and one per remark: what is no mistake, and may explain one."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspected(plan: Plan) -> Inspected:
    """Return what a manifest's files show before any network runs."""
    looks, found = _Looks(plan.folder), Inspected()
    named = ((name, looks.described(spec)) for name, spec in plan.data.items() if spec.form != "safetensors")
    found.problems += [one_line(f"data.{name}: {problem}") for name, problem in named if problem]
    accepting: dict[int, list[tuple[str, Compared]]] = {}  # by the list, which items may have from [defaults]
    for item in plan.comparisons:
        name = f"{item.kind}.{item.name}"
        headers: dict[str, Checkpoint] = {}
        found.problems += [one_line(f"{name}{problem}") for problem in _problems(item, looks, headers)]
        beside = compared(item, headers, plan, looks.beside)
        found.problems += [one_line(f"{name}: {problem}") for problem in beside.problems]
        found.notes += [one_line(f"{name}: {note}") for note in beside.notes]
        accepting.setdefault(id(item.accept), []).append((name, beside))
    for items in accepting.values():
        unknown, unmet = acceptances(items)
        found.problems += unknown
        found.notes += unmet
    return found


class _Looks:
    """What the files of a manifest say; each is looked at once, however many pairs name it, as loading does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = cache(self._names)
        self.checkpoint = cache(self._checkpoint)
        self.data = cache(self._data)
        self.described = cache(self._described)
        self.spec = cache(self._spec)
        self.beside = cache(Folder)

    def _checkpoint(self, file: Named) -> Checkpoint | str:
        """Return a checkpoint that a network could be evaluated with, or what is wrong with it."""
        try:
            found = look_at(file, self.folder, str(file))
            require_evaluable(found.tensors, found.label)
        except CheckpointError as error:
            return next(filter(None, map(self.missing, paths_of(file, self.folder))), str(error))
        return found

    def _data(self, file: str, tokens: bool) -> str | None:
        """Return what is wrong with a file of samples, or None; ``tokens``: targets may be left out."""
        try:
            require_samples(read_header(self.folder / file), shown_path(self.folder / file), tokens=tokens)
        except CheckpointError as error:
            return self.missing(file) or str(error)
        return None

    def _described(self, spec: DataSpec) -> str | None:
        """Return what is wrong with data that a table describes, as far as their first lines tell, or None."""
        for file in (spec.path, spec.tokenizer):
            if isinstance(file, str) and spec.form != "call" and (problem := self.missing(file)):
                return problem
        try:
            look_at_data(spec, self.folder)
        except SourceError as error:
            return str(error)
        return None

    def _spec(self, file: str) -> str | None:
        """Return what keeps a permutation spec from being read, or None; what it says is checked when it is loaded."""
        try:
            read_document(self.folder / file)
        except ValueError as error:
            return self.missing(file) or str(error)
        return None

    def missing(self, file: str | Path) -> str | None:
        """Say that a file is not there, with the nearest name that is; None for one that is, or cannot be asked for."""
        path = self.folder / file
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            names = self.names(path.parent)
            where = f"; the folder {path.parent} does not exist either" if names is None else f" in {path.parent}"
            return f"no file {path.name!r}{where}{nearest(path.name, names or ())}"
        except (OSError, ValueError):
            pass
        return None

    def _names(self, folder: Path) -> list[str] | None:
        """Return some names in a folder, None where there is no folder."""
        try:
            return list(islice(os.listdir(folder), LISTED))
        except OSError:
            return None


def _problems(item: Measured, looks: _Looks, headers: dict[str, Checkpoint]) -> Iterator[str]:
    """Yield problems, each beginning with the key below the item's table ('.a: …') or with ': '; fill ``headers``."""
    for key in ("data", "calibration"):
        source = getattr(item, key)
        if isinstance(source, DataSpec) and source.form != "safetensors":
            problem = looks.described(source) if source.name is None else None
        else:
            file = source.path if isinstance(source, DataSpec) else source
            problem = (
                looks.data(file, item.loss == "next_token" or item.loss is item.model is None)
                if str(file).endswith(".safetensors")
                else None
            )
        if problem:
            yield f".{key}: {problem}"
    if item.symmetry is not None and (problem := looks.spec(item.symmetry)):
        yield f".symmetry: {problem}"
    seen: dict[str, Checkpoint] = {}
    for key, file in item.files.items():
        checkpoint = looks.checkpoint(file)
        if isinstance(checkpoint, str):
            yield f".{key}: {checkpoint}"
            continue
        twice = (other for other, known in seen.items() if known.same_files(checkpoint))
        same = None if key == "base" else next(twice, None)  # a base may be merged with what was tuned from it
        seen[key] = checkpoint
        yield from _pin_problems(key, checkpoint, item.pins.get(key))
        if same is not None:
            what = "file" if len(checkpoint.files) == 1 else "files"
            yield f": {same} and {key} are the same {what}, {file}; expected two checkpoints"
        else:
            headers[key] = checkpoint
    kinds = ("dtype",) if isinstance(item, PairPlan) and item.model_b is not None else ("shape", "dtype")
    if isinstance(item, MergePlan):
        yield from _recipe_problems(item)
        kinds = ("shape",) if item.recipe.settings.get("dtype") else kinds
    first = next(iter(headers), "")
    if isinstance(item, MergePlan) and item.shipped is not None:
        published = looks.checkpoint(item.shipped)
        if isinstance(published, str):
            yield f".shipped: {published}"
        else:
            headers["shipped"] = published
    for other in [key for key in headers if key not in (first, "shipped")]:
        one, two = alike(headers[first], headers[other])
        found = list(_differences(first, other, one, two, kinds))
        yield from found
        if not found and isinstance(item, PairPlan):
            yield from _twins(first, other, one, two)


def _recipe_problems(item: MergePlan) -> Iterator[str]:
    try:
        item.recipe.look(tuple(item.parents))
    except LmcError as error:
        yield f".recipe{error}"


def _twins(a: str, b: str, first: Checkpoint, second: Checkpoint) -> Iterator[str]:
    """Yield what two checkpoints are where they are one under two names."""
    try:
        same = first.same_contents(second)
    except (OSError, ValueError) as error:
        yield f": {a} and {b} cannot be compared: {error}"
        return
    if same:
        names = " and ".join(Path(end.path or "").name for end in (first, second))
        yield f": {a} and {b} hold the same weights, {names}; expected two networks; mend: name the other checkpoint"


def _pin_problems(key: str, checkpoint: Checkpoint, pin: str | None) -> Iterator[str]:
    try:
        found = checkpoint.sha256 if pin is not None else None
    except CheckpointError as error:
        yield f".{key}: {error}"
        return
    if found != pin:
        named = f"sha256.{key.removeprefix('parents.')}"
        named = key.replace("models", "sha256") if key.startswith("models") else named
        named = "sha256" if key == "checkpoint" else named  # of a single model
        name = Path(checkpoint.path or key).name
        yield f".{named}: {name} has sha256 {found}, expected {pin}; pin the file that was reviewed"


def _differences(a: str, b: str, first: Checkpoint, second: Checkpoint, kinds: Sequence[str]) -> Iterator[str]:
    """Yield what keeps two checkpoints from being points of one weight space (or of two that differ in widths)."""
    for side, other, own, others in ((a, b, first, second), (b, a, second, first)):
        if side == a and (problem := prefix_problem(others.tensors, own.tensors, side)):
            yield f".{other}: {problem}"
            return
        only = sorted(own.tensors.keys() - others.tensors.keys())
        if len(only) <= MOST_TWINS:  # weights that one of them has tied, and the other stored twice
            shared_names = own.tensors.keys() & others.tensors.keys()
            only = [name for name in only if not own.has_twin(name, shared_names)]
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
