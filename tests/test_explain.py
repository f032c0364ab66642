"""A finding in words, whatever shows it: repr, exception, report."""

from __future__ import annotations

import math

import pytest

from lmccheck.errors import VerdictError
from lmccheck.explain import hidden_gap
from lmccheck.finding import End, Failure, Finding, Seen, Where
from lmccheck.properties.judge import judge
from lmccheck.result import Result

ENDS = End("a", 0.49, 0.1), End("b", 9.29, 0.9)


def failing(**more):
    seen = [Seen(0.3, "at t = 0.5"), Seen(0.2, "at t = 0.25"), Seen(0.0, "at t = 0")]
    failure = Failure("x-y", "too high", "barrier", "t = 0.5", "data d", seen, "points", next=["masks = 61"])
    found = Finding(0.3, 0.1, "nats", endpoints=ENDS, worst_loss=5.19, failure=failure, **more)
    return judge("linear_connectivity", found, 1.0)


SIX = [
    "x-y: too high",
    "barrier 0.3 nats, limit 0.1 nats",
    "where: t = 0.5, on data d",
    "worst 0.3 at t = 0.5; smallest counterexample 0.2 at t = 0.25; 2 of 3 points above the limit",
    "endpoint losses: a 0.49, b 9.29 nats (0-1 error a 0.1, b 0.9); at the worst point 5.19",
    "try next: masks = 61",
]


def test_a_failure_is_six_lines_in_repr_and_exception():
    """What; measured and limit; where; worst and smallest; endpoints; what next: the same everywhere."""
    result = failing()
    first = f"linear_connectivity: fail: {SIX[0]}"
    assert result.lines == [first, *SIX[1:]]
    assert repr(result).splitlines() == [f"Result({first})", *(f"  {line}" for line in SIX[1:])]
    with pytest.raises(VerdictError) as caught:
        result.raise_for_verdict()
    assert str(caught.value).splitlines() == [first, *SIX[1:]]


def test_a_pass_shows_as_much():
    """Measured, limit, where, and the endpoints' own losses with that at the worst point."""
    found = Finding(0.01, 0.1, "nats", endpoints=ENDS, worst_loss=5.19, where=Where(t=0.5), naive=0.7)
    assert repr(judge("p", found, 0.0)).splitlines() == [
        "Result(p: pass: measured 0.01 nats, limit 0.1 nats)",
        "  worst at t=0.5",
        "  without alignment: 0.7 nats",
        "  endpoint losses: a 0.49, b 9.29 nats (0-1 error a 0.1, b 0.9); at the worst point 5.19",
    ]


def test_what_a_result_says_is_bounded():
    """However long a name, a data's origin or a list of advice is: no line is above 500 characters."""
    seen = [Seen(0.3, "x" * 5000)]
    failure = Failure("y" * 9999, "high", "m", "w" * 9999, "d" * 9999, seen, "points", next=["z" * 99] * 99)
    ends = tuple(End("n" * 999, 0.1) for _ in range(99))
    result = judge("p", Finding(0.3, 0.1, endpoints=ends, failure=failure), 1.0)
    assert max(map(len, repr(result).splitlines())) <= 510
    assert len(result.lines) == 6


def test_a_result_made_by_hand_is_shown_too():
    """From its details where it has any, and never with an exception."""
    assert repr(Result("p", "error", math.nan, math.nan, "")) == "Result(p: error: measured nan, limit nan)"
    details = {"failure": ["one", "two"], "next": ["this", "that"]}
    assert Result("p", "fail", 1.0, 0.5, "x", details=details).lines == [
        "p: fail: one",
        "two",
        "try next: this; or that",
    ]


@pytest.mark.parametrize(
    ("above", "said"),
    [
        (
            "chord",
            [
                "a and b differ by 8.8 nats, more than the limit: the chord between them hides up to 8.8 nats; a merge "
                "is better judged by its own loss, 4.9 at t = 0.5, beside 0.49 of a"
            ],
        ),
        (
            "worse",
            ["a and b differ by 8.8 nats, more than the limit: a path may lie up to 8.8 nats above the better one"],
        ),
        ("own", []),
        (None, []),
    ],
)
def test_a_gap_between_endpoints_is_said(above, said):
    """9.29 beside 0.49: what the chord hides, and what to look at instead; nothing where each is measured by itself."""
    merge = End("at t = 0.5", 4.9) if above == "chord" else None
    found = Finding(0.0, 0.05, "nats", endpoints=ENDS, above=above, merge=merge)
    assert hidden_gap(found) == said
    assert judge("p", found, 0.0).details["notes"] == said


def test_a_gap_within_the_limit_is_not_said():
    """One equal to the limit hides no more than the limit allows."""
    ends = End("a", 0.5), End("b", 0.75)
    assert hidden_gap(Finding(0.0, 0.25, endpoints=ends, above="chord")) == []
    assert hidden_gap(Finding(0.0, 0.2499, endpoints=ends, above="chord")) != []


def test_notes_are_shown_wherever_a_result_is():
    """A pass over identical endpoints, and a limit that nobody gave, are said by repr, not only in a report."""
    found = Finding(0.0, 0.05, "nats", notes=["a and b are identical"], facts={"limits_by_default": {"limit": 0.05}})
    result = judge("p", found, 0.0)
    assert result.notes == ["a and b are identical", "limit = 0.05 is the default: none was given"]
    assert repr(result).splitlines()[-2:] == [f"  note: {note}" for note in result.notes]
