"""A finding in words: the lines of a failure, what a result says of itself, what a chord hides; each in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lmccheck.finding import ALONE, End, Failure, Finding, Seen

LONGEST = 500  # characters of a line
MOST_ENDS = 12  # endpoints that are all named
ABOVE = {  # what a value is measured above, and what a gap between the endpoints therefore hides
    "chord": "the chord between them hides up to {gap}",
    "worse": "a path may lie up to {gap} above the better one",
}


def failure_lines(finding: Finding) -> list[str]:
    """Return a failure's text: what; measured against the limit; where; worst and smallest; the endpoints' losses."""
    parts = failure_parts(finding)
    if "measured" not in parts:
        return [line for lines in parts.values() for line in lines]
    measured, where = "; ".join([*parts.pop("measured"), *parts.pop("remarks")]), parts.pop("where")
    first, *others = (line for lines in parts.values() for line in lines)
    return [first, measured, *(f"where: {line}" for line in where), *others]


def failure_parts(finding: Finding) -> dict[str, list[str]]:
    """Return the lines of a failure's text by the question that they answer; of one given as lines the first is what.

    >>> failure_parts(Finding(2.0, 1.0, failure=["a: too high", "because"]))
    {'what': ['a: too high'], 'why': ['because']}
    """
    failure, unit = finding.failure, _unit(finding)
    if not isinstance(failure, Failure):
        lines = [str(line) for line in failure or ()]
        return {name: told for name, told in (("what", lines[:1]), ("why", lines[1:])) if told}
    value = finding.value if failure.value is None else failure.value
    measured = f"{failure.measured} {value:.4g}{unit}, limit {finding.bound:.4g}{unit}"
    return {
        "what": [f"{failure.subject}: {failure.what}"],
        "measured": [measured],
        "remarks": list(failure.remarks),
        "where": [f"{failure.where}, on {failure.data}"],
        "extremes": [_extremes(failure, finding.bound)],
        "endpoints": [f"{endpoint_losses(finding)}{failure.beside}"],
        "why": list(failure.diagnosis),
    }


def next_of(finding: Finding) -> list[str]:
    """Return what a finding says may help."""
    return list(finding.failure.next if isinstance(finding.failure, Failure) else finding.advice)


def next_lines(advice: Sequence[str]) -> list[str]:
    """Return the line that follows a failure's others, where there is something to try.

    >>> next_lines(["masks = 61", "refit = true"]), next_lines([])
    (['try next: masks = 61; or refit = true'], [])
    """
    return [f"try next: {'; or '.join(advice)}"] if advice else []


def plain_lines(subject: str, finding: Finding, limit: float | None) -> list[str]:
    """Return the facts of a finding that passes, or that words no failure itself; ``subject`` is the first line."""
    unit = _unit(finding)
    lines = [subject, f"measured {number(finding.value)}{unit}, limit {number(limit)}{unit}"]
    if where := str(finding.where):
        lines.append(f"worst at {where}")
    if finding.known:
        lines.append(f"known: {finding.known}")
    if finding.naive is not None:
        lines.append(f"without alignment: {number(finding.naive)}{unit}")
    return [*lines, endpoint_losses(finding)] if finding.endpoints else lines


def result_lines(head: str, finding: Finding, limit: float, *, passed: bool, advice: Sequence[str] = ()) -> list[str]:
    """Return what a result says of itself: as much of a pass as of a failure; no line is longer than 500 characters."""
    told = [] if passed else failure_lines(finding)
    if told:
        return shortened([f"{head}: {told[0]}", *told[1:], *next_lines(advice)])
    first, measured, *others = plain_lines(head, finding, limit)
    return shortened([f"{first}: {measured}", *others])


def number(value: Any) -> str:
    """Return a value for a reader: four significant digits, nothing for None.

    >>> number(0.123456), number(None), number("fc1")
    ('0.1235', '', 'fc1')
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def shortened(lines: Iterable[str]) -> list[str]:
    """Return lines of at most 500 characters each; what is longer ends in an ellipsis.

    >>> [len(line) for line in shortened(["x" * 900, "y"])]
    [500, 1]
    """
    return [line if len(line) <= LONGEST else line[: LONGEST - 1] + "…" for line in lines]


def called(name: str, before: str = "") -> str:
    """Return what a sentence calls an endpoint: by its name, after a word that may stand before it, or the model.

    >>> called("b"), called("b", "endpoint "), called("model", "endpoint ")
    ('b', 'endpoint b', 'the model')
    """
    return "the model" if name == ALONE else before + name


def of_endpoint(name: str, before: str = " of ", after: str = "") -> str:
    """Return the words that say of which endpoint something is, none where there is only one.

    >>> f"level 1{of_endpoint('b')}", f"level 1{of_endpoint('model')}", f"{of_endpoint('b', '', ': ')}level 1"
    ('level 1 of b', 'level 1', 'b: level 1')
    """
    return "" if name == ALONE else f"{before}{name}{after}"


def endpoint_losses(finding: Finding) -> str:
    """Return the endpoints' own losses, their 0-1 errors, and the loss at the worst point, as far as they are known.

    Of many the best and the worst are named.
    """

    alone = [end.name for end in finding.endpoints] == [ALONE] and not finding.examined

    def listed(values: Iterable[tuple[str, float]]) -> str:
        return ", ".join(f"{value:.4g}" if alone else f"{name} {value:.4g}" for name, value in values)

    ends = sorted(finding.endpoints, key=lambda end: (end.loss != end.loss, end.loss))
    shown = finding.endpoints if len(ends) <= MOST_ENDS else [ends[0], ends[-1]]
    of = "" if len(ends) <= MOST_ENDS else f" of {len(ends)}, the best and the worst"
    what = "parents" if finding.examined else "its own loss" if alone else "endpoint losses"
    losses = listed((end.name, end.loss) for end in shown)
    errors = listed((end.name, end.error) for end in shown if end.error is not None)
    text = f"{what}{of}: {losses}{_unit(finding)}" + (f" (0-1 error {errors})" if errors else "")
    if finding.examined and finding.merge is not None:
        return f"{text}; {finding.merge.name} {finding.merge.loss:.4g}"
    if finding.worst_loss is None:
        return text
    on = f", on {finding.where.data}," if finding.where.data is not None else ""
    return f"{text}; at the worst point{on} {finding.worst_loss:.4g}"


def hidden_gap(finding: Finding) -> list[str]:
    """Return what is to be said where the endpoints differ by more than the limit: nothing, or what that hides.

    A merge is judged by the better endpoint then, of which a barrier over the chord says little: its own loss is said.
    """
    ends = [end for end in finding.endpoints if math.isfinite(end.loss)]
    if finding.above not in ABOVE or not ends or finding.verdict == "error":
        return []
    best, worst = min(ends, key=_loss), max(ends, key=_loss)
    gap = worst.loss - best.loss
    if not gap > finding.bound:
        return []
    unit = _unit(finding)
    text = (
        f"{best.name} and {worst.name} differ by {gap:.4g}{unit}, more than the limit: "
        f"{ABOVE[finding.above].format(gap=f'{gap:.4g}{unit}')}"
    )
    if finding.merge is None:
        return [text]
    return [
        f"{text}; a merge is better judged by its own loss, {finding.merge.loss:.4g} {finding.merge.name}, beside "
        f"{best.loss:.4g} of {best.name}"
    ]


def _loss(end: End) -> float:
    return end.loss


def _unit(finding: Finding) -> str:
    return f" {finding.unit}" if finding.unit else ""


def _extremes(failure: Failure, bound: float) -> str:
    """Say the first of the worst measurements, the smallest one above its limit, and how many are above theirs."""

    def excess(seen: Seen) -> float:
        """What is no number is above all."""
        return math.inf if math.isnan(seen.height) else seen.height - (bound if seen.bound is None else seen.bound)

    worst = max(failure.seen, key=excess)
    over = [seen for seen in failure.seen if excess(seen) > 0]
    smallest = failure.simplest or min(over, key=excess, default=worst)
    how = "simplest" if failure.simplest else "smallest"
    return (
        f"worst {worst.height:.4g} {worst.place}; {how} counterexample {smallest.height:.4g} {smallest.place}; "
        f"{len(over)} of {len(failure.seen)} {failure.things} above the limit"
    )
