"""The record of one checked item: plain data that travels from an xdist worker to the controller and into reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmccheck.result import Result


@dataclass(frozen=True)
class CheckRecord:
    """What one item measured; ``text`` is the failure or error text, ``blocking`` whether it fails the run.

    ``pair`` is the name of what was measured, ``kind`` whether that is a pair or a set.
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
    where: str = ""
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
        details = result.details
        return dataclasses.replace(
            self,
            verdict=result.verdict,
            value=result.value,
            limit=result.limit,
            unit=result.unit,
            interval=None if result.interval is None else list(result.interval),
            naive=details.get("barrier_naive"),
            where=where(details),
            evaluations=result.evaluations,
            seconds=result.seconds,
            notes=[str(note) for note in details.get("notes", ())],
            witness=witness(details),
            details=plain(details),
        )

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
            "error_barrier": self.details.get("error_barrier"),
            "worst_t": self.details.get("worst_t"),
            "worst_pair": ", ".join(self.details.get("worst_pair", ())) or None,
            "seed": self.seed,
            "seconds": self.seconds,
        }
        return [(f"lmc.{name}", plain(fact)) for name, fact in facts.items() if fact is not None]


def where(details: Mapping[str, Any]) -> str:
    """Return where the worst was seen, short enough for a column: two models, an endpoint and its layer, or a point on
    the straight line, the segment of a path and its kind, the layer, the seed.
    """
    if pair := details.get("worst_pair"):
        return ", ".join(pair)
    if side := details.get("worst_side"):
        return ":".join(part for part in (side, details.get("worst_layer")) if part)
    parts = {"t": details.get("worst_t"), "seg": details.get("worst_segment")}
    parts |= {"layer": details.get("worst_layer"), "seed": details.get("worst_seed")}
    return " ".join(f"{name}={number(part)}" for name, part in parts.items() if part is not None)


def witness(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of what proves the verdict: small enough to read, enough to look again at the right place."""
    return {key: plain(details[key]) for key in ("worst_pair", "worst_t", "alignment") if details.get(key) is not None}


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
