"""What a run selected: every check has a row at the end, and one that left no record is told why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lmccheck.errors import LmcError
from lmccheck.gate.options import is_manifest
from lmccheck.manifest.plan import CheckPlan, Measured, Plan
from lmccheck.manifest.read import load_manifest
from lmccheck.report.record import CheckRecord
from lmccheck.store.given import paths_of

LOST = "pytest ended it without a measurement"
UNREACHED = "the run ended before it"


@dataclass
class Selection:
    """The selected checks as records that nothing was entered in, by node id, and what is known of their fate.

    ``stopped`` is why the whole run ended early, ``lost`` why a single item did (its worker crashed).
    """

    blanks: Mapping[str, CheckRecord] = field(default_factory=dict)
    stopped: str = ""
    lost: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)

    def unmeasured(self, records: Mapping[str, CheckRecord]) -> list[CheckRecord]:
        """Return a row for each selected check without a record."""
        return [blank.unmeasured(self.reason(id)) for id, blank in self.blanks.items() if id not in records]

    def reason(self, id: str) -> str:
        """Return why an item has no record."""
        if id in self.lost:
            return self.lost[id]
        if id in self.running:
            return f"interrupted while it ran: {self.stopped}" if self.stopped else LOST
        if id in self.finished:
            return LOST
        ended = self.stopped or next(iter(self.lost.values()), "")
        return f"not reached: {ended}" if ended else UNREACHED


def blank_manifest(id: str, manifest: str, plan: Plan | None) -> CheckRecord:
    """Return the record of a manifest's own item before anything is known."""
    return CheckRecord(
        id=id, manifest=manifest, manifest_sha256=plan.sha256 if plan else "", pair="", check="manifest",
        property="manifest", severity="fail", verdict="pass", blocking=True,
    )  # fmt: skip


def blank_check(
    id: str, manifest: str, plan: Plan | None, measured: Measured | None, check: CheckPlan | None
) -> CheckRecord:
    """Return the record of a check before anything is measured; where there is no plan, what its id says."""
    _, pair, name = id.rsplit("::", 2)
    folder = plan.folder if plan else Path()
    files = measured.files if measured else {}
    return CheckRecord(
        id=id, manifest=manifest, manifest_sha256=plan.sha256 if plan else "", pair=pair,
        kind=measured.kind if measured else "pair", check=name, property=check.property if check else name,
        severity=check.severity if check else "fail", verdict="pass", blocking=True,
        settings=dict(check.settings) if check else {}, claim=_claim(check.property) if check else {},
        pair_description={"files": {key: {"path": str(paths_of(given, folder)[0])} for key, given in files.items()}},
        line=measured.line if measured else 0,
    )  # fmt: skip


def _claim(name: str) -> dict[str, str]:
    """Return what a property asserts, in the words of its declaration."""
    from lmccheck.properties.registry import PROPERTIES  # read already, by the manifest that names it

    declared = PROPERTIES.get(name)
    return {"claim": declared.claim, "quantifier": declared.quantifier, "certifies": declared.certifies}


def blanks_of(ids: Iterable[str], root: Path) -> dict[str, CheckRecord]:
    """Return the records of those node ids that are of manifests: a controller knows no more of its workers' items."""

    @cache
    def plan_of(manifest: str) -> Plan | None:
        try:
            return load_manifest(root / manifest)
        except LmcError:  # it may need what only workers have imported
            return None

    found = {}
    for id in ids:
        for names in (1, 2):  # of the manifest's own item, and of a pair's or a set's check
            manifest = id.rsplit("::", names)[0]
            if id.count("::") - manifest.count("::") == names and _is_manifest(root, manifest):
                plan = plan_of(manifest)
                found[id] = _blank(id, manifest, plan) if names == 2 else blank_manifest(id, manifest, plan)
    return found


def _is_manifest(root: Path, name: str) -> bool:
    return is_manifest(Path(name)) and (root / name).is_file()


def _blank(id: str, manifest: str, plan: Plan | None) -> CheckRecord:
    _, pair, name = id.rsplit("::", 2)
    measured = next((each for each in plan.comparisons if each.name == pair), None) if plan else None
    check = next((each for each in measured.checks if each.name == name), None) if measured else None
    return blank_check(id, manifest, plan, measured, check)
