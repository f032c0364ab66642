"""From a finding to the fixed Result: the verdict and the public details, each in one place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

from lmccheck.errors import LmcError
from lmccheck.explain import failure_lines, hidden_gap, next_of
from lmccheck.finding import ALONE, PLACES, Curve, Finding, Verdict
from lmccheck.result import Result


def judge(name: str, finding: Finding, seconds: float) -> Result:
    """Compare a finding with its limit. Raises LmcError for a finding that cannot be judged."""
    if not isinstance(finding, Finding):
        raise LmcError(f"{name}: returned {type(finding).__name__}, expected a Finding; mend: return one")
    if not isinstance(finding.value, (int, float)) or isinstance(finding.value, bool):
        raise LmcError(
            f"{name}: its finding's value is {finding.value!r}, expected a number; mend: correct the property"
        )
    if finding.verdict not in (None, *get_args(Verdict)):
        raise LmcError(
            f"{name}: its finding's verdict is {finding.verdict!r}, expected one of {list(get_args(Verdict))}"
        )
    if finding.judged == "pass" and not (math.isfinite(finding.value) and math.isfinite(finding.bound)):
        raise LmcError(
            f"{name}: value {finding.value}, limit {finding.bound}; expected finite numbers; mend: check the model"
        )
    for end in finding.endpoints:
        if finding.judged == "pass" and not math.isfinite(end.loss):
            raise LmcError(
                f"{name}: the loss of {end.name} is {end.loss}, expected a finite one; mend: check the model"
            )
    finding = replace(finding, notes=[*finding.notes, *hidden_gap(finding)])
    return Result(
        property=name,
        verdict=finding.judged,
        value=finding.value,
        limit=finding.bound,
        unit=finding.unit,
        interval=finding.interval,
        witness=finding.witness,
        evaluations=finding.evaluations,
        seconds=seconds,
        details=details_of(finding),
        finding=finding,
    )


def details_of(finding: Finding) -> dict[str, Any]:
    """Return a finding as the details of a Result, under their public keys; JSON-able."""
    details: dict[str, Any] = {"limit_given": finding.limit}
    if finding.barrier_definition:
        details["barrier_definition"] = finding.barrier_definition
    if [end.name for end in finding.endpoints] in (["a", "b"], [ALONE]):
        for end in finding.endpoints:
            details |= {f"loss_{end.name}": end.loss, f"error_{end.name}": end.error}
    if finding.worst_loss is not None:
        details["worst_loss"] = finding.worst_loss
    if isinstance(curve := finding.curve, Curve):
        details |= {"t": curve.t, "losses": curve.losses, "errors": curve.errors}
        details |= {"barrier": finding.value, "error_barrier": finding.error_barrier}
        if curve.naive_losses is not None:
            details |= {"naive_losses": curve.naive_losses, "naive_errors": curve.naive_errors}
    if (matrix := finding.matrix) is not None:
        details |= {"names": matrix.names, "matrix": matrix.aligned, "matrix_naive": matrix.naive}
        details["above_limit"] = matrix.above
    places = {key: getattr(finding.where, name) for key, name in PLACES.items()}
    details |= {key: list(part) if key == "worst_pair" else part for key, part in places.items() if part is not None}
    if finding.naive is not None:
        details["barrier_naive"] = finding.naive
    if finding.alignment is not None:
        details["alignment"] = dict(finding.alignment)
    details |= {"known": finding.known, "notes": list(finding.notes), **finding.facts}
    if finding.explanation is not None:
        details["explanation"] = dict(finding.explanation)
    if finding.judged != "pass" and finding.failure is not None:
        details["failure"] = failure_lines(finding)
        if advice := next_of(finding):
            details["next"] = advice
    return details
