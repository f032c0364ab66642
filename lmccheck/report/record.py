"""The record of one checked item: plain data that travels from an xdist worker to the controller and into reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmccheck.finding import Finding
from lmccheck.properties.judge import failure_lines, finding_of
from lmccheck.result import Result


@dataclass(frozen=True)
class CheckRecord:
    """What one item measured; ``text`` is the failure or error text, ``blocking`` whether it fails the run.

    ``pair`` is the name of what was measured, ``kind`` whether that is a pair or a set. ``failure`` is what failed, a
    line each; ``place`` the parts of ``where`` by name, ``matrix`` those of a set's Matrix.
    """

    id: str
    manifest: str
    manifest_sha256: str
    pair: str
    check: str
    property: str
    severity: str
    verdict: str
    blocking: bool
    kind: str = "pair"
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    interval: list[float] | None = None
    naive: float | None = None
    error_barrier: float | None = None
    barrier_definition: str = ""
    where: str = ""
    place: dict[str, Any] = field(default_factory=dict)
    matrix: dict[str, Any] = field(default_factory=dict)
    failure: list[str] = field(default_factory=list)
    seed: int | None = None
    profile: str = ""
    evaluations: int = 0
    seconds: float | None = None
    text: str = ""
    notes: list[str] = field(default_factory=list)
    witness: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pair_description: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars only."""
        return {name.name: plain(getattr(self, name.name)) for name in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckRecord:
        """Return the record whose ``to_dict`` gave these values."""
        return cls(**values)

    def measured(self, result: Result) -> CheckRecord:
        """Return this record with everything that a result says."""
        finding = finding_of(result)
        where = finding.where
        record = dataclasses.replace(
            self,
            verdict=result.verdict,
            value=result.value,
            limit=result.limit,
            unit=result.unit,
            interval=None if result.interval is None else list(result.interval),
            naive=finding.naive,
            error_barrier=finding.error_barrier,
            barrier_definition=finding.barrier_definition,
            where=str(where),
            place={name: part for name, part in vars(where).items() if part is not None},
            matrix={} if finding.matrix is None else vars(finding.matrix),
            evaluations=result.evaluations,
            seconds=result.seconds,
            notes=[str(note) for note in finding.notes],
            witness=witness(finding),
            details=plain(result.details),
        )
        lines = [] if result.passed else failure_lines(finding) or record.plain_lines(finding)
        return dataclasses.replace(record, failure=lines)

    def plain_lines(self, finding: Finding) -> list[str]:
        """Return the facts of a finding that words no failure itself."""
        unit = f" {self.unit}" if self.unit else ""
        lines = [
            f"{self.property}: {self.verdict} for {self.pair}",
            f"measured {number(self.value)}{unit}, limit {number(self.limit)}{unit}",
        ]
        if self.where:
            lines.append(f"worst at {self.where}")
        if self.naive is not None:
            lines.append(f"without alignment: {number(self.naive)}{unit}")
        losses = ", ".join(f"{end.name} {number(end.loss)}" for end in finding.endpoints)
        return [*lines, f"endpoint losses: {losses}"] if losses else lines

    def properties(self) -> list[tuple[str, str | int | float]]:
        """Return the flat facts for ``item.user_properties``, which JUnit files and other plugins read."""
        low, high = self.interval or (None, None)
        facts = {
            "property": self.property,
            "pair": self.pair,
            "verdict": self.verdict,
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit or None,
            "ci_low": low,
            "ci_high": high,
            "naive": self.naive,
            "error_barrier": self.error_barrier,
            "worst_t": self.place.get("t"),
            "worst_pair": ", ".join(self.place.get("pair", ())) or None,
            "seed": self.seed,
            "seconds": self.seconds,
        }
        return [(f"lmc.{name}", plain(fact)) for name, fact in facts.items() if fact is not None]


def witness(finding: Finding) -> dict[str, Any]:
    """Return the summary of what proves the verdict: small enough to read, enough to look again at the right place."""
    parts = {"worst_pair": finding.where.pair, "worst_t": finding.where.t, "alignment": finding.alignment}
    return {key: plain(part) for key, part in parts.items() if part is not None}


def number(value: Any) -> str:
    """Return a value for a reader: four significant digits, nothing for None.

    >>> number(0.123456), number(None), number("fc1")
    ('0.1235', '', 'fc1')
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def plain(value: Any) -> Any:
    """Return the value made of dicts, lists and scalars, so that it can be sent and written; NaN stays NaN.

    Subclasses (numpy's float64, torch's version string) become what they are subclasses of: xdist sends no others.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):  # tensors and arrays, without importing their libraries
        return plain(value.tolist())
    return str(value)


def finite(value: Any) -> Any:
    """Return plain data in which NaN and the infinities are the strings "nan", "inf" and "-inf", as strict JSON needs.

    >>> finite({"losses": [1.0, float("nan")]})
    {'losses': [1.0, 'nan']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return value


def ordered(records: list[CheckRecord]) -> list[CheckRecord]:
    """Return the records as every report shows them: what did not pass first, then by node id."""
    return sorted(records, key=lambda record: (record.verdict == "pass", record.id))
