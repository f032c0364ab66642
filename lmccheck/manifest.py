"""``lmc.toml`` to a typed plan: what is compared with what, on which data, against which limits.

Reads TOML only: no checkpoint is opened and nothing heavy is imported, because collection must stay instant. Every
mistake is found in one pass and reported as one line naming the file, the key, what was found and what is expected.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lmccheck.errors import ManifestError, nearest, shown_path
from lmccheck.settings import SETTINGS
from lmccheck.tables import Strict, Table, key_text, near, read_document, read_table, shown

NAME = re.compile(r"[A-Za-z0-9._-]+")
CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
LOSSES = ("cross_entropy", "mse", "next_token")
RESERVED_PAIR_NAMES = ("manifest",)  # the manifest's own item has this name
HEADER_OF_PAIR = re.compile(r"""\s*\[\s*pair\s*\.\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))""")

SOURCE = 'a path ending ".safetensors" or "module:callable"'
SPEC_FILE = 'a path ending ".toml" or ".json"'


@dataclass(frozen=True)
class CheckPlan:
    """One property to be measured of one pair; ``settings`` holds only what the manifest states."""

    name: str
    property: str
    severity: Literal["fail", "warn"]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PairPlan:
    """Two checkpoints and everything needed to evaluate them; paths are as written, relative to the manifest."""

    name: str
    a: str
    b: str
    model: str | None
    data: str | None
    calibration: str | None
    loss: str | None
    symmetry: str | None
    sha256: Mapping[str, str]
    checks: tuple[CheckPlan, ...]
    line: int


@dataclass(frozen=True)
class Plan:
    """A whole manifest."""

    path: Path
    sha256: str
    pairs: tuple[PairPlan, ...]

    @property
    def folder(self) -> Path:
        """The folder against which the manifest's paths and modules are resolved."""
        return self.path.parent


class Sources(Strict):
    """Keys of ``[defaults]``, each of which a pair may override."""

    model: str | None = Field(default=None, description='"module:callable", the callable returning a torch.nn.Module')
    data: str | None = Field(default=None, description=SOURCE)
    calibration: str | None = Field(default=None, description=SOURCE)
    loss: str | None = Field(default=None, description='"cross_entropy", "mse", "next_token" or "module:callable"')
    symmetry: str | None = Field(default=None, description=SPEC_FILE)


class PairTable(Sources):
    """Keys of ``[pair.NAME]``."""

    a: str = Field(min_length=1, description="the path of a .safetensors file")
    b: str = Field(min_length=1, description="the path of a .safetensors file")
    sha256: dict[str, Any] = Field(default={}, description='a table such as { a = "…", b = "…" }')
    check: dict[str, Any] = Field(default={}, description="a table of checks")


class Pins(Strict):
    """Keys of ``sha256``."""

    a: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description="64 hexadecimal digits")
    b: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description="64 hexadecimal digits")


class Top(Strict):
    """Keys of the file itself."""

    version: int = Field(alias="schema", ge=1, le=1, description="1")
    defaults: dict[str, Any] = Field(default={}, description="a table")
    pair: dict[str, Any] = Field(default={}, description="a table of pairs")


def load_manifest(path: Path) -> Plan:
    """Read and check a manifest.

    Raises ``ManifestError`` with one line per problem, each beginning with the file's name.
    """
    try:
        raw, text, document = read_document(path)
    except ValueError as error:
        raise ManifestError(str(error)) from None
    reader = _Reader(text)
    pairs = reader.pairs(document)
    if reader.problems:
        raise ManifestError("\n".join(f"{shown_path(path)}: {problem}" for problem in reader.problems))
    return Plan(path, hashlib.sha256(raw).hexdigest(), pairs)


class _Reader:
    """Walks the tables of one document and gathers every problem, so that one run shows them all."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.problems: list[str] = []

    def pairs(self, document: dict[str, Any]) -> tuple[PairPlan, ...]:
        if not document:
            self.problems.append("the file is empty, expected schema = 1 and at least one [pair.NAME]")
            return ()
        top = self.table(Top, document, "")
        if top is None:
            return ()
        defaults = self.table(Sources, top.defaults, "defaults") or Sources()
        if not top.pair:
            self.problems.append("no pairs, expected at least one [pair.NAME]")
        plans = [self.pair(name, table, defaults) for name, table in top.pair.items()]
        return tuple(plan for plan in plans if plan is not None)

    def pair(self, name: str, values: Any, defaults: Sources) -> PairPlan | None:
        where = f"pair.{key_text(name)}"
        self.name(name, where, reserved=RESERVED_PAIR_NAMES)
        table = self.table(PairTable, values, where)
        if table is None:
            return None
        pins = self.table(Pins, table.sha256, f"{where}.sha256") or Pins()
        if not table.check:
            self.problems.append(f"{where}: no checks, expected at least one [{where}.check.PROPERTY]")
        checks = [self.check(key, settings, f"{where}.check.{key_text(key)}") for key, settings in table.check.items()]
        source = {key: getattr(table, key) or getattr(defaults, key) for key in Sources.model_fields}
        return PairPlan(
            name=name,
            a=table.a,
            b=table.b,
            sha256={key: value.lower() for key, value in pins if value},
            checks=tuple(check for check in checks if check is not None),
            line=self.line_of(name),
            **source,
        )

    def check(self, name: str, values: Any, where: str) -> CheckPlan | None:
        self.name(name, where)
        if not isinstance(values, dict):
            self.problems.append(f"{where}: got {shown(values)}, expected a table of settings")
            return None
        named = values.get("property", name)
        if not isinstance(named, str) or named not in SETTINGS:
            mend = "" if "property" in values else '; a check of another name says which with property = "…"'
            key = f"{where}.property" if "property" in values else where
            known = ", ".join(SETTINGS)
            self.problems.append(
                f"{key}: got {shown(named)}, expected a property ({known}){near(named, SETTINGS)}{mend}"
            )
            return None
        settings = self.table(SETTINGS[named], values, where)
        return CheckPlan(name, named, settings.severity, settings.given()) if settings else None

    def name(self, name: str, where: str, reserved: Iterable[str] = ()) -> None:
        if not NAME.fullmatch(name):
            self.problems.append(f"{where}: expected a name of letters, digits, '.', '_' and '-' only")
        if name in reserved:
            self.problems.append(f"{where}: the name {name!r} is taken by the manifest's own item, expected another")

    def table(self, model: type[Table], values: Any, where: str) -> Table | None:
        """Return the table as its model, or None after noting every problem in it."""
        table = read_table(model, values, where, self.problems)
        if not isinstance(table, Sources):
            return table
        found = [f"{where}.{key}: {problem}" for key, problem in _source_problems(table)]
        self.problems += found
        return None if found else table

    def line_of(self, pair: str) -> int:
        """Return the 1-based line of the first header that names the pair (1 when it is written inline)."""
        for number, line in enumerate(self.lines, start=1):
            header = HEADER_OF_PAIR.match(line)
            if header and pair in header.groups():
                return number
        return 1


def _source_problems(table: Sources) -> Iterable[tuple[str, str]]:
    """Yield the key and the problem of every source that is neither a file nor ``module:callable``."""
    for key, value in table:
        if key not in Sources.model_fields or value is None:
            continue
        expected = Sources.model_fields[key].description
        if key == "symmetry":
            if not value.endswith((".toml", ".json")):
                yield key, f"got {shown(value)}, expected {expected}"
        elif CALLABLE.fullmatch(value):
            continue
        elif key == "model" or (key == "loss" and value not in LOSSES):
            yield key, f"got {shown(value)}, expected {expected}{nearest(value, LOSSES) if key == 'loss' else ''}"
        elif key in ("data", "calibration") and not value.endswith(".safetensors"):
            yield key, f"got {shown(value)}, expected {expected}"
