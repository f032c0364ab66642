"""When a failure is explained, and what of it is said: at most three lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.finding import Finding

if TYPE_CHECKING:
    from lmccheck.data.load import Data
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.evaluate.segment import Segment
    from lmccheck.properties.measured_line import Apart, Line

MOST_CLASSES = 3


def with_why(finding: Finding, explain: bool | None, profile: str, why: Callable[[], Mapping[str, Any]]) -> Finding:
    """Return a finding with what carries it, where that is wanted: of failures, but not in ``dev``; of passes if asked.

    A finding that is undecided has nothing to explain.
    """
    on = bool(explain) if explain is not None else finding.judged == "fail" and profile != "dev"
    return replace(finding, explanation=why()) if on and finding.judged in ("pass", "fail") else finding


def explain_line(
    data: Data, between: Segment, line: Line, ends: Sequence[Measured], apart: Apart | None = None
) -> dict[str, Any]:
    """Return what carries the barrier of a line, by one more evaluation; ``ends``: the original endpoints' losses."""
    from lmccheck.diagnose.explanation import Lost, explanation

    which = None
    if apart is not None:
        name = str(line.worst_part)
        which = apart.slices.index == apart.slices.names.index(name)
        line = line.part(name)
    t = line.highest[1]
    found, (a, b) = between.measure(t).losses, (end.losses for end in ends)
    return explanation(Lost(data, found - ((1 - t) * a + t * b), {"a": found - a, "b": found - b}, which))


def said_of_samples(found: Mapping[str, Any]) -> str:
    """Say which samples carry half of what is lost, and which parent is hurt more.

    >>> samples = {"half": 3, "of": 40, "classes": {"7": 2, "1": 1}}
    >>> said_of_samples({"samples": samples, "parent": "b"})
    'samples: 3 of 40 carry half of it (class 7: 2, class 1: 1); most is lost where b answers best'
    """
    samples, parent = found["samples"], found["parent"]
    if not samples["half"]:
        return ""
    classes = [f"class {name}: {count}" for name, count in samples["classes"].items()]
    named = ", ".join(classes[:MOST_CLASSES]) + (", …" if len(classes) > MOST_CLASSES else "")
    text = f"samples: {samples['half']} of {samples['of']} carry half of it" + (f" ({named})" if named else "")
    return text if parent is None else f"{text}; most is lost where {parent} answers best"
