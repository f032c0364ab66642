"""``lmc.toml`` to a typed plan: what is compared with what, on which data, against which limits.

Reads TOML only: no checkpoint is opened and nothing heavy is imported, because collection must stay instant. Every
mistake is found in one pass and reported as one line naming the file, the key, what was found and what is expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from lmccheck.errors import CheckpointError, LmcError, ManifestError, nearest, one_line, shown_path
from lmccheck.manifest.data import NamedData
from lmccheck.manifest.merges import check_problems, first_data, merge_problems
from lmccheck.manifest.plan import CheckPlan, Comparison, MergePlan, ModelPlan, PairPlan, Plan, SetPlan
from lmccheck.manifest.tables import (
    CALLABLE,
    FILE,
    HASH,
    LOSSES,
    MODELS,
    AdaptedTable,
    MergeTable,
    ModelTable,
    PairTable,
    Pins,
    SetTable,
    Sources,
    Top,
)  # fmt: skip
from lmccheck.merging.contract import read_recipe
from lmccheck.properties.population import misplaced
from lmccheck.properties.registry import OF, PROPERTIES, TABLES, Kind, properties_of
from lmccheck.properties.settings import Place
from lmccheck.store.documents import Table, key_text, near, read_document, read_table, shown
from lmccheck.store.given import Adapted, Named, lies_in_folder
from lmccheck.store.names import expanded

Keys = TypeVar("Keys", bound=Sources)
Item = TypeVar("Item", bound=Comparison)
Build = Callable[[Keys, str, dict[str, Any]], Item | None]
NAME = re.compile(r"[A-Za-z0-9._-]+")
TOLD = 100  # problems of one manifest that are told at once
LONGEST_NAME = 120  # characters: files are called after a pair and one of its checks, in at most 255 bytes
AT_LEAST = "at least one [pair.NAME], [model.NAME], [set.NAME] or [merge.NAME]"
RESERVED_NAMES = ("manifest",)  # the manifest's own item has this name
HEADER = re.compile(r"""\s*\[\s*(pair|model|set|merge)\s*\.\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))""")


def load_manifest(path: Path) -> Plan:
    """Read and check a manifest.

    Raises ``ManifestError`` with one line per problem, each beginning with the file's name.
    """
    try:
        held, text, document = read_document(path)
    except ValueError as error:
        raise ManifestError(str(error)) from None
    reader = _Reader(text, path.parent)
    plan = reader.everything(document, path, held.sha256)
    if reader.problems:
        told = [one_line(f"{shown_path(path)}: {problem}") for problem in reader.problems[:TOLD]]
        more = len(reader.problems) - TOLD
        raise ManifestError("\n".join([*told, *([f"{shown_path(path)}: {more} more problems"] if more > 0 else [])]))
    return plan


class _Reader:
    """Walks the tables of one document and gathers every problem, so that one run shows them all."""

    def __init__(self, text: str, folder: Path) -> None:
        self.lines = _lines_of(text)
        self.folder = folder
        self.problems: list[str] = []
        self.data = NamedData({}, self.problems)

    def everything(self, document: dict[str, Any], path: Path, sha256: str) -> Plan:
        plan = Plan(path, sha256)
        if not document:
            self.problems.append(f"the file is empty, expected schema = 1 and {AT_LEAST}")
            return plan
        top = self.table(Top, document, "")
        if top is None:
            return plan
        self.data = NamedData(top.data, self.problems)
        for name in top.data:
            self.name(name, f"data.{key_text(name)}")
        defaults = self.table(Sources, top.defaults, "defaults") or Sources()
        kinds = {"pair": top.pair, "model": top.models, "set": top.sets, "merge": top.merge}
        if not any(kinds.values()):
            self.problems.append(f"no pairs, no models, no sets and no merges, expected {AT_LEAST}")
        pairs = self.each("pair", top.pair, PairTable, self.pair, defaults)
        for one, other in combinations(kinds, 2):
            for name in sorted(kinds[one].keys() & kinds[other].keys()):
                taken = f"the name {name!r} is taken by a {one}, expected another"
                self.problems.append(f"{other}.{key_text(name)}: {taken}")
        return replace(
            plan,
            pairs=pairs,
            models=self.each("model", top.models, ModelTable, self.model, defaults),
            sets=self.each("set", top.sets, SetTable, self.set, defaults),
            merges=self.each("merge", top.merge, MergeTable, self.merge, defaults),
            data=self.data.specs,
        )

    def each(
        self, kind: str, tables: dict[str, Any], model: type[Keys], build: Build[Keys, Item], defaults: Sources
    ) -> tuple[Item, ...]:
        """Return the plans of a kind: ``build`` makes one of its table, the table's place, and what all kinds have."""
        found = []
        for name, values in tables.items():
            where = f"{kind}.{key_text(name)}"
            self.name(name, where, reserved=RESERVED_NAMES)
            if (table := self.table(model, values, where)) is not None:
                line = self.lines.get((kind, name), 1)  # of the first header that names it, 1 when it is written inline
                found.append(build(table, where, {"name": name, "line": line, **self.inherited(table, defaults)}))
        return tuple(plan for plan in found if plan is not None)

    def inherited(self, table: Sources, defaults: Sources) -> dict[str, Any]:
        """Return every source: the table's own value, or that of [defaults]."""
        found = {key: getattr(table, key) or getattr(defaults, key) for key in Sources.model_fields}
        accept = defaults.accept if table.accept is None else table.accept
        return found | {"accept": accept or (), "untie": getattr(table, "untie", False)}

    def pair(self, table: PairTable, where: str, common: dict[str, Any]) -> PairPlan:
        pins = self.table(Pins, table.sha256, f"{where}.sha256") or Pins()
        for key in ("symmetry", "untie") if table.model_b is not None else ():
            if getattr(table, key):
                self.problems.append(f"{where}.{key}: not read where model_b says another network, expected none")
        plan = PairPlan(
            a=self.checkpoint(table.a, f"{where}.a"),
            b=self.checkpoint(table.b, f"{where}.b"),
            model_b=table.model_b,
            sha256={key: value.lower() for key, value in pins if value},
            checks=self.checks(table.check, where, "pair" if table.model_b is None else "widths"),
            **common | ({} if table.model_b is None else {"symmetry": None}),
        )
        return replace(plan, folders=self.folders(plan))

    def model(self, table: ModelTable, where: str, common: dict[str, Any]) -> ModelPlan:
        return ModelPlan(
            checkpoint=self.checkpoint(table.checkpoint, f"{where}.checkpoint"),
            sha256=None if table.sha256 is None else table.sha256.lower(),
            checks=self.checks(table.check, where, "model"),
            **common,
        )

    def set(self, table: SetTable, where: str, common: dict[str, Any]) -> SetPlan:
        given, matched = self.models(table, where)
        count = len(given)
        models = [self.checkpoint(model, f"{where}.models[{k}]") for k, model in enumerate(given)]
        for k, pin in enumerate(table.sha256):
            if not isinstance(pin, str) or not re.fullmatch("[0-9a-fA-F]{64}", pin):
                self.problems.append(f"{where}.sha256[{k}]: got {shown(pin)}, expected {HASH}")
        if table.sha256 and len(table.sha256) != count:
            pins = f"{len(table.sha256)} hash{'' if len(table.sha256) == 1 else 'es'}"
            self.problems.append(f"{where}.sha256: got {pins}, expected one for each of the {count} models, in order")
        checks = self.checks(table.check, where, "set")
        for check in checks:
            places = {key for key, p in PROPERTIES.get(check.property).parameters.items() if p.annotation == Place}
            for key in sorted(places & check.settings.keys()):
                if check.settings[key] >= count:
                    self.problems.append(
                        f"{where}.check.{key_text(check.name)}.{key}: got {check.settings[key]}, expected the place of "
                        f"one of the {count} models, from 0 to {count - 1}"
                    )
        plan = SetPlan(
            models=tuple(models),
            matched=tuple(matched),
            sha256=tuple(str(pin).lower() for pin in table.sha256),
            checks=checks,
            **common,
        )
        return replace(plan, folders=self.folders(plan))

    def folders(self, plan: PairPlan | SetPlan) -> tuple[str, ...]:
        """Return the keys of checkpoints that are folders."""
        return tuple(key for key, given in plan.files.items() if lies_in_folder(given, self.folder))

    def checkpoint(self, value: Any, where: str) -> Named:
        """Return what is named as a checkpoint: a path, or an adapter on its base."""
        if isinstance(value, dict):
            table = self.table(AdaptedTable, value, where)
            return Adapted(self.checkpoint(table.base, f"{where}.base"), table.adapter) if table else ""
        if not isinstance(value, str) or not value:
            self.problems.append(f"{where}: got {shown(value)}, expected {FILE}")
        return str(value)

    def merge(self, table: MergeTable, where: str, common: dict[str, Any]) -> MergePlan | None:
        parents = tuple(table.parents)
        self.problems += [f"{where}{problem}" for problem in merge_problems(table)]
        try:
            recipe = read_recipe(table.recipe, parents, self.folder)
        except LmcError as error:
            self.problems.append(f"{where}.recipe{error}")
            return None
        if table.align != "none" and not recipe.declared.linear:
            expected = f"expected none: {recipe.name} gets the parents as they are"
            self.problems.append(f"{where}.align: got {shown(table.align)}, {expected}")
        self.data.require(recipe.settings.get("validation"), f"{where}.recipe.{recipe.name}")
        checks = self.checks(table.check, where, "merge")
        for check in checks:
            at = f"{where}.check.{key_text(check.name)}"
            self.problems += [f"{at}{problem}" for problem in check_problems(check, parents)]
            self.data.require(check.settings.get("data"), f"{at}.data")
        first = first_data(checks)
        return MergePlan(
            checks=checks,
            **common | {"data": common["data"] or self.data.specs.get(first, first)},
            sources=self.data.specs,
            parents={
                key: self.checkpoint(given, f"{where}.parents.{key_text(key)}") for key, given in table.parents.items()
            },
            recipe=recipe,
            base=None if table.base is None else self.checkpoint(table.base, f"{where}.base"),
            shipped=None if table.shipped is None else self.checkpoint(table.shipped, f"{where}.shipped"),
            align=table.align,
            sha256={key: str(pin).lower() for key, pin in table.sha256.items()},
        )

    def models(self, table: SetTable, where: str) -> tuple[list[Any], list[str]]:
        """Return the models of a set, patterns replaced by what they match, and a line on each pattern."""
        try:
            models, matched = expanded(table.models, self.folder)
        except CheckpointError as error:
            self.problems.append(f"{where}.models: {error}")
            return [], []
        if len(models) < 2:
            got = f"{shown(table.models)}{''.join(f', and {told}' for told in matched)}"
            self.problems.append(f"{where}.models: got {got}, expected {MODELS}")
        return models, matched

    def checks(self, tables: dict[str, Any], where: str, kind: Kind) -> tuple[CheckPlan, ...]:
        if not tables:
            self.problems.append(f"{where}: no checks, expected at least one [{where}.check.PROPERTY]")
        found = [self.check(name, values, f"{where}.check.{key_text(name)}", kind) for name, values in tables.items()]
        return tuple(check for check in found if check is not None)

    def check(self, name: str, values: Any, where: str, kind: Kind) -> CheckPlan | None:
        self.name(name, where)
        if not isinstance(values, dict):
            self.problems.append(f"{where}: got {shown(values)}, expected a table of settings")
            return None
        named = values.get("property", name)
        if not isinstance(named, str) or named not in PROPERTIES or kind not in PROPERTIES.get(named).of:
            key = f"{where}.property" if "property" in values else where
            self.problems.append(f"{key}: got {shown(named)}, {_expected_property(named, kind, 'property' in values)}")
            return None
        declared = PROPERTIES.get(named)
        settings = self.table(declared.table, values, where)
        if settings is None:
            return None
        stated = declared.stated(settings)
        self.problems.extend(f"{where}{line}" for line in misplaced(stated, declared.parameters))
        return CheckPlan(name, named, settings.severity, stated)

    def name(self, name: str, where: str, reserved: Iterable[str] = ()) -> None:
        if not NAME.fullmatch(name):
            self.problems.append(f"{where}: expected a name of letters, digits, '.', '_' and '-' only")
        elif len(name) > LONGEST_NAME:
            self.problems.append(f"{where}: got a name of {len(name)} characters, expected at most {LONGEST_NAME}")
        elif name in (".", ".."):
            self.problems.append(f"{where}: the name {name!r} is that of a folder, expected another")
        if name in reserved:
            self.problems.append(f"{where}: the name {name!r} is taken by the manifest's own item, expected another")

    def table(self, model: type[Table], values: Any, where: str) -> Table | None:
        """Return the table as its model, or None after noting every problem in it."""
        table = read_table(model, values, where, self.problems)
        if not isinstance(table, Sources):
            return table
        before = len(self.problems)
        if table.loss is not None and table.loss not in LOSSES and not re.fullmatch(CALLABLE, table.loss):
            expected = f"expected {Sources.model_fields['loss'].description}{nearest(table.loss, LOSSES)}"
            self.problems.append(f"{where}.loss: got {shown(table.loss)}, {expected}")
        named = {key: self.data.source(getattr(table, key), f"{where}.{key}") for key in ("data", "calibration")}
        return None if len(self.problems) > before else table.model_copy(update=named)


def _lines_of(text: str) -> dict[tuple[str, str], int]:
    """Return the first line that names each pair, model, set and merge in a header."""
    found: dict[tuple[str, str], int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if header := HEADER.match(line):
            kind, *names = header.groups()
            for name in filter(None, names):
                found.setdefault((kind, name), number)
    return found


def _expected_property(named: object, kind: Kind, stated: bool) -> str:
    """Say which properties there are, the nearest one, and of what the named one is a property."""
    known = properties_of(kind)
    if isinstance(named, str) and named in PROPERTIES:
        owners = PROPERTIES.get(named).of
        return (
            f"which is a property of {' or of '.join(OF[owner] for owner in owners)}, expected one of {OF[kind]} "
            f"({', '.join(known)}); mend: ask it of a {' or a '.join(TABLES[owner] for owner in owners)}"
        )
    mend = "" if stated else '; a check of another name says which with property = "…"'
    return f"expected a property ({', '.join(known)}){near(named, known)}{mend}"
