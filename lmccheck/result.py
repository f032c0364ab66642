"""What a property check found: one frozen record, the same for every property."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lmccheck.errors import VerdictError
from lmccheck.finding import Finding
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

    def raise_for_verdict(self) -> None:
        """Return quietly on ``pass``; raise ``VerdictError`` (an AssertionError) otherwise."""
        if not self.passed:
            raise VerdictError(
                f"{self.property}: {self.verdict}: measured {self.value:.4g} {self.unit}, limit {self.limit:.4g} "
                f"{self.unit}"
            )

    def __bool__(self) -> NoReturn:
        raise TypeError("a Result has four verdicts, not two: say result.passed or call result.raise_for_verdict()")
