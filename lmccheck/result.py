"""What a property check found: one frozen record, the same for every property."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lmccheck.errors import VerdictError
from lmccheck.explain import number, result_lines, shortened
from lmccheck.finding import ALONE, PLACES, Curve, End, Finding, Matrix, Where
from lmccheck.finding import Verdict as Verdict


@dataclass(frozen=True)
class Result:
    """Outcome of one property of one pair.

    ``value`` and ``limit`` are in ``unit`` (for example nats). ``interval`` is a confidence interval for
    ``value`` or None when the verdict is about the given data and therefore exact. ``witness`` is what proves
    the verdict (a permutation, the worst t); ``details`` is JSON-able. ``evaluations`` counts full passes over the
    evaluation data. ``finding``: the same as typed data, None in a Result made by hand.
    """

    property: str
    verdict: Verdict
    value: float
    limit: float
    unit: str
    interval: tuple[float, float] | None = None
    witness: Any = field(default=None, repr=False)
    evaluations: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    finding: Finding | None = field(default=None, repr=False, compare=False)

    @builtins.property  # the field `property` hides the name inside this class
    def passed(self) -> bool:
        """True only for the verdict ``pass``; fail, inconclusive and error are all False."""
        return self.verdict == "pass"

    @builtins.property
    def lines(self) -> list[str]:
        """The result in words, a line each: of a failure what failed, how much, where, which endpoints, what next."""
        head, advice = f"{self.property}: {self.verdict}", self.details.get("next", ())
        return result_lines(head, finding_of(self), self.limit, passed=self.passed, advice=advice)

    @builtins.property
    def notes(self) -> list[str]:
        """What a reader must know beside the verdict, a line each: of the data, the endpoints, a limit nobody gave."""
        finding, given = finding_of(self), self.details.get("limits_by_default") or {}
        defaults = [f"{name} = {number(limit)} is the default: none was given" for name, limit in given.items()]
        return shortened([*finding.notes, *defaults])

    def raise_for_verdict(self) -> None:
        """Return quietly on ``pass``; raise ``VerdictError`` (an AssertionError) with the result in words otherwise."""
        if not self.passed:
            raise VerdictError("\n".join(self.lines))

    def __repr__(self) -> str:
        first, *others = self.lines
        noted = (f"note: {note}" for note in self.notes)
        return "\n".join([f"Result({first})", *(f"  {line}" for line in (*others, *noted))])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __bool__(self) -> NoReturn:
        raise TypeError("a Result has four verdicts, not two: say result.passed or call result.raise_for_verdict()")


def finding_of(result: Result) -> Finding:
    """Return a result's finding; of a result that was made by hand, what its details say under the public keys."""
    if result.finding is not None:
        return result.finding
    details = result.details
    places = {name: details[key] for key, name in PLACES.items() if details.get(key) is not None}
    alignment = details.get("alignment")
    matrix = None
    losses = [(name, details.get(f"loss_{name}"), details.get(f"error_{name}")) for name in ("a", "b", ALONE)]
    if details.get("matrix"):
        above, method = details.get("above_limit", []), (alignment or {}).get("method")
        matrix = Matrix(details["names"], details["matrix"], details["matrix_naive"], above, method)
        known = details.get("losses") or [None] * len(matrix.names)
        losses = list(zip(matrix.names, known, details.get("errors") or [None] * len(known), strict=False))
    return Finding(
        value=result.value,
        limit=result.limit,
        unit=result.unit,
        endpoints=tuple(End(name, loss, error) for name, loss, error in losses if loss is not None),
        worst_loss=details.get("worst_loss"),
        where=Where(**places),
        naive=details.get("barrier_naive"),
        curve=_curve_of(details),
        error_barrier=details.get("error_barrier"),
        matrix=matrix,
        barrier_definition=details.get("barrier_definition", ""),
        alignment=alignment,
        notes=details.get("notes", ()),
        failure=details.get("failure"),
        known=details.get("known"),
        explanation=details.get("explanation"),
    )


def _curve_of(details: Mapping[str, Any]) -> Curve | None:
    """Return the line that details hold, None where they hold none."""
    t, losses = details.get("t"), details.get("losses")
    if not (isinstance(t, Sequence) and isinstance(losses, Sequence) and len(t) == len(losses) > 0):
        return None
    ends: Any = [details.get("loss_a"), details.get("loss_b")]
    known = {key: details.get(key) for key in ("errors", "naive_losses", "naive_errors")}
    return Curve(list(t), list(losses), **known, ends=None if None in ends else ends)
