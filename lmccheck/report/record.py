"""The record of one checked item: plain data that travels from an xdist worker to the controller and into reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmccheck.errors import one_line, printable
from lmccheck.explain import failure_lines, failure_parts, plain_lines
from lmccheck.finding import Finding
from lmccheck.result import Result, finding_of

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class CheckRecord:
    """What one item measured; ``text`` is the failure or error text, ``blocking`` whether it fails the run.

    ``pair`` is the name of what was measured, a ``kind`` of pair, model, set or merge; ``endpoints`` are its models,
    each a ``name``, its own ``loss`` and ``error``, and ``worst_loss`` is the loss where the worst was seen.
    ``known`` is how the value is known; ``of_losses``: whether losses decide at all. ``failure`` is what failed, a line
    each, ``next`` what may help. ``place`` are the parts of ``where`` by name, ``matrix`` those of a set's Matrix.
    ``line``: where the manifest names what was measured, 0 where that is not known. ``curve`` is what the finding is
    drawn by, one of ``lmccheck.curves``, its ``kind`` beside its fields; ``answers`` are the lines of ``failure`` by
    the question that they answer; ``claim`` is the property's claim, its quantifier and what a pass certifies;
    ``reproduce`` is the command that measures it again; ``explanation`` is what carries the value, as
    ``diagnose/explanation.py`` says it, empty where that was not asked; ``baseline`` is the
    stored value, the change and what it comes to, empty where nothing was stored.
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
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    worst_loss: float | None = None
    naive: float | None = None
    error_barrier: float | None = None
    barrier_definition: str = ""
    where: str = ""
    place: dict[str, Any] = field(default_factory=dict)
    matrix: dict[str, Any] = field(default_factory=dict)
    failure: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
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
    line: int = 0
    curve: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    claim: dict[str, str] = field(default_factory=dict)
    reproduce: str = ""
    known: str | None = None
    of_losses: bool = True
    explanation: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars only."""
        return {name.name: plain(getattr(self, name.name)) for name in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckRecord:
        """Return the record whose ``to_dict`` gave these values."""
        return cls(**values)

    def unmeasured(self, reason: str) -> CheckRecord:
        """Return this record as that of a check that was selected and has no verdict."""
        reason = one_line(reason)
        return dataclasses.replace(self, verdict=NOT_MEASURED, blocking=True, text=reason, notes=[reason])

    def green(self) -> bool:
        """Whether it may stand in a run that is green: passed, or measured and meant to warn only."""
        return self.verdict == "pass" or (self.severity == "warn" and self.verdict in ("fail", "inconclusive"))

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
            endpoints=[plain(vars(end)) for end in finding.endpoints],
            worst_loss=finding.worst_loss,
            next=list(result.details.get("next", ())),
            naive=finding.naive,
            known=finding.known,
            of_losses=finding.of_losses,
            error_barrier=finding.error_barrier,
            barrier_definition=finding.barrier_definition,
            where=str(where),
            place={name: part for name, part in vars(where).items() if part is not None},
            matrix={} if finding.matrix is None else vars(finding.matrix),
            curve={} if finding.curve is None else {"kind": finding.curve.kind, **plain(vars(finding.curve))},
            evaluations=result.evaluations,
            seconds=result.seconds,
            notes=[str(note) for note in finding.notes],
            witness=witness(finding),
            details=plain(result.details),
            explanation=plain(finding.explanation or {}),
        )
        if result.passed:
            return record
        told = failure_lines(finding) or plain_lines(
            f"{self.property}: {result.verdict} for {self.pair}", finding, result.limit
        )
        return dataclasses.replace(record, failure=told, answers=failure_parts(finding))

    def losses(self) -> dict[str, float | None]:
        """Return the endpoints' own losses and 0-1 errors as flat facts; of a set, or of many, the best and the worst.

        >>> record = CheckRecord(*["x"] * 8, False, endpoints=[{"name": "a", "loss": 0.5, "error": None}])
        >>> record.losses()
        {'loss_a': 0.5, 'error_a': None}
        """
        return {f"{kind}_{name}": end[kind] for name, end in self.ends().items() for kind in ("loss", "error")}

    def ends(self) -> dict[str, dict[str, Any]]:
        """Return the endpoints by name; of a set, or of more than two, the one of lowest and that of highest loss."""
        if self.kind != "set" and len(self.endpoints) <= 2:
            return {end["name"]: end for end in self.endpoints}
        by_loss = sorted(self.endpoints, key=lambda end: (end["loss"] != end["loss"], end["loss"]))
        return {"best": by_loss[0], "worst": by_loss[-1]} if by_loss else {}

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
            "known": self.known,
            "ci_low": low,
            "ci_high": high,
            **self.losses(),
            "worst_loss": self.worst_loss,
            "naive": self.naive,
            "error_barrier": self.error_barrier,
            "baseline": self.baseline.get("value"),
            "baseline_change": self.baseline.get("change"),
            "where": self.where or None,
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


def plain(value: Any) -> Any:
    """Return the value made of dicts, lists and scalars, so that it can be sent and written; NaN stays NaN.

    Subclasses (numpy's float64, torch's version string) become what they are subclasses of: xdist sends no others.
    Texts become ``printable`` here, since whatever is in a report has passed this place.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(str(value))
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):  # tensors and arrays, without importing their libraries
        return plain(value.tolist())
    return printable(str(value))


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


def names_of(records: list[CheckRecord]) -> Callable[[CheckRecord], str]:
    """Return what calls a record by the name of its pair or set, after its manifest where there are several."""
    several = len({record.manifest for record in records}) > 1
    return lambda record: f"{record.manifest}::{record.pair}" if several and record.pair else record.pair


def ordered(records: list[CheckRecord]) -> list[CheckRecord]:
    """Return the records as every report shows them: what did not pass first, then by node id."""
    return sorted(records, key=lambda record: (record.verdict == "pass", record.id))
