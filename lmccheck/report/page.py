"""What the HTML report says, in the order in which it says it: plain values for its template, nothing measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lmccheck.report.formats import Run, shown
from lmccheck.report.notes import decided, meanings, missing
from lmccheck.report.record import NOT_MEASURED, CheckRecord, ordered, plain
from lmccheck.report.redact import relative
from lmccheck.report.section import LOOKS, Section, flat

ROWS, LEAST, MOST = 320, 13, 61  # of all tables together, and of one: the page stays below 200 kB for ten pairs
NAMED = 3  # of what is not to be merged
READ = ("model", "data", "calibration", "loss", "symmetry", "recipe", "device")  # beside the files, in this order


@dataclass(frozen=True)
class Page:
    """All that the report says of records, in order, and of their run."""

    records: Sequence[CheckRecord]
    run: Run

    @cached_property
    def sections(self) -> list[Section]:
        rows = max(LEAST, min(MOST, ROWS // max(len(self.records), 1)))
        return [Section(record, place, rows) for place, record in enumerate(self.records, 1)]

    @property
    def bad(self) -> list[Section]:
        return [section for section in self.sections if not section.passed]

    @property
    def good(self) -> list[Section]:
        return [section for section in self.sections if section.passed]

    @property
    def gate(self) -> tuple[str, str, str]:
        """Whether it is green: the look, the sign, and the words."""
        if not self.run.finished:
            return (*LOOKS[NOT_MEASURED], "Not finished")
        if self.run.report_only:
            return (*LOOKS[NOT_MEASURED], "Report only: nothing here fails the run")
        if self.run.exit_status == 0 and not self.run.errors and all(record.green() for record in self.records):
            return (*LOOKS["pass"], "The gate is green")
        return (*LOOKS["fail"], "The gate is red")

    @property
    def headline(self) -> str:
        """What was decided, in one line."""
        return decided(list(self.records), self.run)

    @property
    def decision(self) -> str:
        """What follows from it."""
        if not self.run.finished:
            return "It is going on, or it was killed. Nothing here is a verdict."
        held = list(dict.fromkeys(section.name for section in self.sections if not section.record.green()))
        if held:
            more = f" and {len(held) - NAMED} more" if len(held) > NAMED else ""
            return f"Do not merge on the strength of this run: {', '.join(held[:NAMED])}{more}."
        if self.run.errors or self.run.exit_status:
            return "Do not merge on the strength of this run: it did not end well, whatever its checks say."
        warned = sum(not section.passed for section in self.sections)
        beside = f", {warned} {'of them warns' if warned == 1 else 'of them warn'} only" if warned else ""
        return f"The limits hold on the data that was given{beside}; other data may differ."

    @property
    def counts(self) -> list[tuple[str, str, str]]:
        """Every verdict that occurs, how often: look, sign and words."""
        found = Counter(record.verdict for record in self.records)
        return [(*look, f"{found[verdict]} {verdict}") for verdict, look in LOOKS.items() if found[verdict]]

    @property
    def missing(self) -> str:
        return missing(list(self.records))

    @property
    def meanings(self) -> list[str]:
        return meanings(list(self.records))

    @property
    def environment(self) -> list[tuple[str, str]]:
        """What the run was, by name."""
        used = next((record.environment for record in self.records if record.environment), {})
        facts = {**self.run.environment, **used}
        arguments = " ".join(facts.pop("arguments", ()))
        manifests = dict.fromkeys((record.manifest, record.manifest_sha256) for record in self.records)
        ended = "" if self.run.exit_status is None else str(self.run.exit_status)
        return [
            *flat(facts),
            ("exit status", ended),
            ("arguments", arguments),
            *((name, f"sha256 {digest}") for name, digest in manifests if digest),
        ]

    @property
    def compared(self) -> list[Compared]:
        """Every pair, model, set and merge once, as a check that could load it describes it."""
        found: dict[tuple[str, str], CheckRecord] = {}
        for record in self.records:
            if record.pair and ("model" in record.pair_description or (record.manifest, record.pair) not in found):
                found[record.manifest, record.pair] = record
        return [Compared(record) for record in found.values()]


@dataclass(frozen=True)
class Compared:
    """What was compared under one name."""

    record: CheckRecord

    @property
    def files(self) -> Iterator[tuple[str, str, str, str]]:
        """Its models: name, file, hash, and what the file holds."""
        for name, facts in self.record.pair_description.get("files", {}).items():
            if isinstance(facts, Mapping):
                count = f"{facts['parameters']:,} parameters" if facts.get("parameters") else ""
                holds = ", ".join(filter(None, (count, str(facts.get("dtype") or ""))))
                path = facts.get("path") or facts.get("origin") or ""
                yield name, str(path), str(facts.get("sha256") or ""), holds

    @property
    def read(self) -> list[tuple[str, str]]:
        """What else was read, by name."""
        described = self.record.pair_description
        return [(name, _told(described[name])) for name in READ if described.get(name)]


def _told(facts: Any) -> str:
    if not isinstance(facts, Mapping):
        return str(facts)
    first = facts.get("origin") or facts.get("text") or facts.get("name") or ""
    samples = f"{facts['samples']:,} samples" if facts.get("samples") else ""
    digest = f"sha256 {facts['sha256']}" if facts.get("sha256") else ""
    return ", ".join(filter(None, (str(first), samples, digest)))


def page_of(records: Iterable[CheckRecord], run: Run) -> Page:
    """Return the page: records in the order of every report, names as they may be shown, paths below the root."""
    rows = [CheckRecord.from_dict(relative(record.to_dict(), run.root)) for record in ordered(shown(list(records)))]
    errors, environment = (relative(plain(part), run.root) for part in (list(run.errors), run.environment))
    return Page(rows, replace(run, errors=errors, environment=environment))
