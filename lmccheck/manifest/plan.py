"""What a manifest asks for, as plain data: which checkpoints, on which data, and the checks of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmccheck.data.described import DataSpec
from lmccheck.data.imports import input_files
from lmccheck.merging.contract import Recipe
from lmccheck.store.given import Named, files_of
from lmccheck.store.header import SAFETENSORS
from lmccheck.store.names import model_names


@dataclass(frozen=True)
class CheckPlan:
    """One property to be measured; ``settings`` holds only what the manifest states."""

    name: str
    property: str
    severity: Literal["fail", "warn"]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What pairs, models, sets and merges have in common: sources, checks, and the manifest's line that names them.

    ``accept`` names what may differ in configs and tokenizers; ``folders`` are the keys of checkpoints that are
    folders, and are written as such. ``untie``: tied heads are written apart.
    """

    name: str
    model: str | None
    data: str | DataSpec | None
    calibration: str | DataSpec | None
    loss: str | None
    symmetry: str | None
    checks: tuple[CheckPlan, ...]
    line: int
    accept: Sequence[str] = field(default=(), kw_only=True)
    folders: Collection[str] = field(default=(), kw_only=True)
    untie: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class PairPlan(Comparison):
    """Two checkpoints; paths are as written, relative to the manifest.

    ``model_b`` is b's own network where that has other widths than a's, ``model``; else None.
    """

    a: Named
    b: Named
    sha256: Mapping[str, str]
    model_b: str | None = None
    kind = "pair"

    @property
    def ships(self) -> str:
        """What --lmc-aligned-dir writes of it, for the terminal."""
        return "aligned b" if self.model_b is None else "fused b"

    @property
    def shipped_files(self) -> tuple[str, ...]:
        """The names of files in it, where it is a folder."""
        return ()

    @property
    def shipped_name(self) -> str:
        """The name of the file or folder written: b's aligned, or a's with b's weights fused."""
        key, how = ("b", "aligned") if self.model_b is None else ("a", "fused")
        return f"{self.name}-b-{how}{'' if key in self.folders else SAFETENSORS}"

    @property
    def files(self) -> dict[str, Named]:
        """Checkpoints by the key that names them below the pair's table."""
        return {"a": self.a, "b": self.b}

    @property
    def pins(self) -> dict[str, str]:
        """Expected hashes by the same keys."""
        return dict(self.sha256)


@dataclass(frozen=True)
class ModelPlan(Comparison):
    """One checkpoint by itself; its path is as written, relative to the manifest."""

    checkpoint: Named
    sha256: str | None = None
    kind = "model"
    ships = None  # nothing is written of it
    shipped_name = ""
    shipped_files: tuple[str, ...] = field(default=(), init=False)

    @property
    def files(self) -> dict[str, Named]:
        """Its checkpoint by the key that names it below the model's table."""
        return {"checkpoint": self.checkpoint}

    @property
    def pins(self) -> dict[str, str]:
        """The expected hash by the same key."""
        return {} if self.sha256 is None else {"checkpoint": self.sha256}


@dataclass(frozen=True)
class SetPlan(Comparison):
    """Two checkpoints of one network or more; ``sha256`` is empty or as long as ``models``.

    ``matched`` says what each pattern among them was replaced by.
    """

    models: tuple[Named, ...]
    sha256: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    kind = "set"
    ships = "aligned models"

    @property
    def shipped_name(self) -> str:
        """The name of the folder written."""
        return self.name

    @property
    def shipped_files(self) -> tuple[str, ...]:
        """The names of the files and folders in it: those of the models, which tell them apart."""
        named = zip(model_names(self.models), self.files, strict=True)
        return tuple(f"{name}-aligned{'' if key in self.folders else SAFETENSORS}" for name, key in named)

    @property
    def files(self) -> dict[str, Named]:
        """Checkpoints by the key that names them below the set's table."""
        return {f"models[{k}]": model for k, model in enumerate(self.models)}

    @property
    def pins(self) -> dict[str, str]:
        """Expected hashes by the same keys."""
        return dict(zip(self.files, self.sha256, strict=False))


@dataclass(frozen=True)
class MergePlan(Comparison):
    """Parents by name and the recipe that makes one of them; ``sources`` are the manifest's data by name."""

    parents: Mapping[str, Named]
    recipe: Recipe
    base: Named | None = None
    shipped: Named | None = None
    align: str = "none"
    sha256: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, DataSpec] = field(default_factory=dict)
    kind = "merge"
    ships = "the merge"

    @property
    def shipped_name(self) -> str:
        """The name of the folder written."""
        return f"{self.name}-merged"

    @property
    def shipped_files(self) -> tuple[str, ...]:
        """The names of the files in it, as far as they are known beforehand."""
        return ("merged.safetensors",)

    @property
    def files(self) -> dict[str, Named]:
        """Checkpoints by the key that names them below the merge's table."""
        base = {} if self.base is None else {"base": self.base}
        return {**{f"parents.{name}": given for name, given in self.parents.items()}, **base}

    @property
    def pins(self) -> dict[str, str]:
        """Expected hashes by the same keys."""
        return {"base" if key == "base" else f"parents.{key}": pin for key, pin in self.sha256.items()}


Measured = PairPlan | ModelPlan | SetPlan | MergePlan


@dataclass(frozen=True)
class Plan:
    """A whole manifest; ``data`` are those that it gives a name."""

    path: Path
    sha256: str
    pairs: tuple[PairPlan, ...] = ()
    sets: tuple[SetPlan, ...] = ()
    merges: tuple[MergePlan, ...] = ()
    data: Mapping[str, DataSpec] = field(default_factory=dict)
    models: tuple[ModelPlan, ...] = ()

    @property
    def inputs(self) -> Iterator[Path]:
        """Every file that its checks read, of those that exist."""
        for each in self.comparisons:
            named = [each.model, each.data, each.calibration, each.loss, each.symmetry, getattr(each, "model_b", None)]
            named += [text for check in each.checks for text in texts(check.settings)]
            yield from input_files(self.folder, *named)
            merged = [each.shipped] if isinstance(each, MergePlan) and each.shipped is not None else []
            for given in (*each.files.values(), *merged):
                yield from files_of(given, self.folder)
            if isinstance(each, MergePlan):
                yield from each.recipe.inputs
            for described in (each.data, each.calibration, *getattr(each, "sources", {}).values()):
                if isinstance(described, DataSpec):
                    yield from described.inputs(self.folder)

    @property
    def folder(self) -> Path:
        """The folder against which the manifest's paths and modules are resolved."""
        return self.path.parent

    @property
    def comparisons(self) -> tuple[Measured, ...]:
        """Everything that has checks, pairs first."""
        return (*self.pairs, *self.models, *self.sets, *self.merges)


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a setting, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts(part)
