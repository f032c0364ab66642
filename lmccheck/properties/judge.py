"""From a finding to the fixed Result: the verdict, the public details, and the text of a failure; each in one place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

from lmccheck.errors import LmcError
from lmccheck.finding import End, Failure, Finding, Matrix, Seen, Verdict, Where
from lmccheck.result import Result

PLACES = {"worst_t": "t", "worst_segment": "segment", "worst_side": "side"}  # keys of details, fields of Where
PLACES |= {"worst_layer": "layer", "worst_pair": "pair", "worst_seed": "seed"}


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
    if [end.name for end in finding.endpoints] == ["a", "b"]:
        for end in finding.endpoints:
            details |= {f"loss_{end.name}": end.loss, f"error_{end.name}": end.error}
    if (curve := finding.curve) is not None:
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
    details |= {"notes": list(finding.notes), **finding.facts}
    if finding.judged != "pass" and finding.failure is not None:
        details["failure"] = failure_lines(finding)
    return details


def finding_of(result: Result) -> Finding:
    """Return a result's finding; of a result that was made by hand, what its details say under the public keys."""
    if result.finding is not None:
        return result.finding
    details = result.details
    places = {name: details[key] for key, name in PLACES.items() if details.get(key) is not None}
    alignment = details.get("alignment")
    matrix = None
    if details.get("matrix"):
        above, method = details.get("above_limit", []), (alignment or {}).get("method")
        matrix = Matrix(details["names"], details["matrix"], details["matrix_naive"], above, method)
    losses = [(name, details.get(f"loss_{name}"), details.get(f"error_{name}")) for name in "ab"]
    return Finding(
        value=result.value,
        limit=result.limit,
        unit=result.unit,
        endpoints=tuple(End(name, loss, error) for name, loss, error in losses if loss is not None),
        where=Where(**places),
        naive=details.get("barrier_naive"),
        error_barrier=details.get("error_barrier"),
        matrix=matrix,
        barrier_definition=details.get("barrier_definition", ""),
        alignment=alignment,
        notes=details.get("notes", ()),
        failure=details.get("failure"),
    )


def failure_lines(finding: Finding) -> list[str]:
    """Return a failure's text: what; measured against the limit; where; worst and smallest; the endpoints' losses."""
    failure, unit = finding.failure, f" {finding.unit}" if finding.unit else ""
    if not isinstance(failure, Failure):
        return [str(line) for line in failure or ()]
    value = finding.value if failure.value is None else failure.value
    measured = f"{failure.measured} {value:.4g}{unit}, limit {finding.bound:.4g}{unit}"
    return [
        f"{failure.subject}: {failure.what}",
        "; ".join([measured, *failure.remarks]),
        f"where: {failure.where}, on {failure.data}",
        _extremes(failure, finding.bound),
        f"endpoint losses: {_endpoints(finding)}{failure.beside}",
    ]


def _extremes(failure: Failure, bound: float) -> str:
    """Say the first of the worst measurements, the smallest one above its limit, and how many are above theirs."""

    def excess(seen: Seen) -> float:
        """What is no number is above all."""
        return math.inf if math.isnan(seen.height) else seen.height - (bound if seen.bound is None else seen.bound)

    worst = max(failure.seen, key=excess)
    over = [seen for seen in failure.seen if excess(seen) > 0]
    smallest = min(over, key=excess, default=worst)
    return (
        f"worst {worst.height:.4g} {worst.place}; smallest counterexample {smallest.height:.4g} {smallest.place}; "
        f"{len(over)} of {len(failure.seen)} {failure.things} above the limit"
    )


def _endpoints(finding: Finding) -> str:
    def listed(values: Iterator[tuple[str, float]]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in values)

    losses = listed((end.name, end.loss) for end in finding.endpoints)
    errors = listed((end.name, end.error) for end in finding.endpoints if end.error is not None)
    return f"{losses} {finding.unit}".rstrip() + (f" (0-1 error {errors})" if errors else "")
