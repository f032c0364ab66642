"""What a recipe is: how parents become one checkpoint, what it was told, and which laws it claims; no torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.data.imports import input_files, label
from lmccheck.errors import LmcError, nearest
from lmccheck.registry import Registry
from lmccheck.shown import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

LAWS = ("unit", "equal", "order", "scale", "equivariant", "linear")  # which a recipe may claim
Measure = Callable[[Any], Callable[[Mapping[str, "Tensor"]], float]]  # named data -> weights -> mean loss
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Made:
    """What a recipe wrote: one file, or a folder with its config, JSON-able facts, and remarks for the report."""

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Making:
    """One making of a merge: parents under the names of their files, where it goes, and what the recipe was told.

    ``target`` is a folder that does not exist yet. ``measure(data)`` gives the mean loss of weights on named data; None
    where there is no network to measure with.
    """

    parents: Mapping[str, Checkpoint]
    base: Checkpoint | None
    target: Path
    settings: Mapping[str, Any]
    folder: Path  # of relative paths and modules
    seed: int = 0
    measure: Measure | None = None


Make = Callable[[Making], Made]
Read = Callable[[Any, tuple[str, ...], Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Declared:
    """A recipe as its file declares it.

    ``read(value, parents, options)`` returns the settings, checked without reading a file; it raises LmcError, to
    which the key is added; a setting ``validation`` is the name of data. ``expects`` says what its value is,
    ``options`` which keys may stand beside it. ``claims`` gives the laws that hold under some settings. ``linear``: a
    weighted mean of parents, which may be aligned before;
    ``needs_base``: cannot be made without one. ``look`` finds what is wrong with files that the settings name.
    ``drawn``: on which small networks its laws are tried; empty where it runs on its own parents only. ``once``: it
    sums in float64 and rounds to nearest once, to which its laws are held; others may round after every step.
    """

    name: str
    make: Make = field(repr=False)
    read: Read = field(repr=False)
    expects: str
    options: tuple[str, ...] = ()
    claims: Callable[[Mapping[str, Any]], frozenset[str]] = field(default=lambda settings: frozenset(), repr=False)
    linear: bool = False
    needs_base: bool = False
    look: Callable[[Mapping[str, Any], tuple[str, ...], Path], None] | None = field(default=None, repr=False)
    drawn: Literal["perceptron", "llama", "adapters", ""] = "perceptron"
    once: bool = False


RECIPES: Registry[Declared] = Registry("recipe", "lmccheck.merging.recipes")


def recipe(name: str, *, read: Read, expects: str, **more: Any) -> Callable[[Make], Make]:
    """Register the decorated function ``Making -> Made`` as the recipe of that name."""

    def register(make: Make) -> Make:
        RECIPES.add(name, Declared(name, make, read, expects, **more), make.__module__)
        return make

    return register


@one_line(lambda found: f"{found.text}")
@dataclass(frozen=True)
class Recipe:
    """How a merge is made: a declared recipe with its settings. Made by ``read_recipe``."""

    name: str
    settings: Mapping[str, Any]
    claims: frozenset[str]
    declared: Declared = field(repr=False)
    folder: Path = field(repr=False)

    def make(
        self,
        parents: Mapping[str, Checkpoint],
        base: Checkpoint | None,
        target: Path,
        *,
        seed: int = 0,
        measure: Measure | None = None,
    ) -> Made:
        """Write the merge below ``target``, a new folder; return the file or folder that holds it, and facts.

        Raises LmcError (CheckpointError, SourceError) with one line.
        """
        return self.declared.make(Making(parents, base, target, self.settings, self.folder, seed, measure))

    @property
    def text(self) -> str:
        """The recipe in few words, for a reader."""
        parts = (
            _said(value) if isinstance(value, Mapping) else f"{key} = {_said(value)}"
            for key, value in self.settings.items()
            if value is not None and value is not False
        )
        said = ", ".join(parts)
        return f"{self.name} ({said})" if said else self.name

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files that its settings name, those that exist."""
        return tuple(input_files(self.folder, *self.settings.values()))

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        return {"recipe": self.name, **{key: _plain(value) for key, value in self.settings.items()}}

    def look(self, parents: tuple[str, ...]) -> None:
        """Raise LmcError where a file that the settings name is not what the recipe needs; nothing heavy is read."""
        if self.declared.look is not None:
            self.declared.look(self.settings, parents, self.folder)


def read_recipe(given: Any, parents: tuple[str, ...], folder: Path) -> Recipe:
    """Return what ``{ linear = {…} }`` or ``"uniform"`` says, checked against the names of the parents.

    Raises LmcError with what was got and what is expected, beginning with ``: `` or the key below the recipe's own.
    """
    table = {given: True} if isinstance(given, str) else given
    known = RECIPES.names()
    if not isinstance(table, Mapping) or not table:
        raise LmcError(f": got {given!r}, expected a table with one of {', '.join(known)}")
    methods = [key for key in table if key in RECIPES]
    if not methods:
        unknown = next(iter(table))
        near = nearest(unknown, known) if isinstance(unknown, str) else ""
        raise LmcError(f": unknown recipe {unknown!r}{near}; expected one of {', '.join(known)}")
    if len(methods) > 1:
        raise LmcError(
            f": got {len(methods)} recipes, {' and '.join(methods)}, expected one; mend: leave out the others"
        )
    declared = RECIPES.get(methods[0])
    options = {key: value for key, value in table.items() if key != declared.name}
    for key in options:
        if key not in declared.options:
            expected = f"expected one of {', '.join(declared.options)}" if declared.options else "expected none"
            near = nearest(str(key), (*declared.options, *known))
            near = " (it is a key of the merge itself)" if key in ("align", "base", "shipped", "parents") else near
            raise LmcError(f".{key}: unknown option of {declared.name}{near}; {expected}")
    settings = declared.read(table[declared.name], parents, options)
    return Recipe(declared.name, settings, declared.claims(settings), declared, folder)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{key} {_said(part)}" for key, part in value.items()]
        return ", ".join([*parts[:6], *(["…"] if len(parts) > 6 else [])])
    return f"{value:.4g}" if isinstance(value, float) else label(value) if callable(value) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else label(value)
