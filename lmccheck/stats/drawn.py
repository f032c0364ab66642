"""A share of draws, of masks, say, each of which is judged by samples of a population: draws and samples are random.

That at least the share of all draws holds is shown at level α, half of it for either chance. Of K draws m have to hold
for that, by Clopper and Pearson's bound at α/2. That m of these K do is shown at α/2 where the m-th smallest of their
upper bounds, each at α/2/(K−m+1), is within the limit: if m−1 or fewer did, one of the other K−m+1 draws would have to
be misjudged, however much draws, which share the samples, are joined. That fewer than the share hold is shown alike, by
the draws that have to fail. Source: Benjamini and Heller 2008 (partial conjunction, Bonferroni's form).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from lmccheck.stats.means import MOST_SAMPLES, Claim, Judgement
from lmccheck.stats.shares import clopper_pearson

Draw = Sequence[Claim]  # all of which have to hold for it to hold
Bounds = Callable[[Claim, float, int], tuple[float, float]]


def judged_share(ends: Sequence[Sequence[Draw]], share: float, confidence: float) -> Judgement:
    """Return whether of every endpoint's draws a ``share`` holds, of all that could be drawn and of all samples.

    ``ends``: of each endpoint its draws. ``low`` and ``high`` bound the largest of the endpoints' quantiles at
    ``share``; of several endpoints each has to pass, and for one to fail α is shared out among them.

    >>> from lmccheck.stats.means import Sample
    >>> draws = [[Claim(f"draw {k}", (Sample(1000, -0.7 + k / 20, 1.0),))] for k in range(20)]
    >>> [judged_share([draws], share, 0.95).verdict for share in (0.25, 0.5, 0.99)]
    ['pass', 'inconclusive', 'fail']
    """
    error = (1 - confidence) / 2
    found = [_quantile(draws, share, error, len(ends), Claim.bounds) for draws in ends]
    plain = [_quantile(draws, share, error, len(ends), Claim.student) for draws in ends]
    low, high = max(end[0][0] for end in found), max(end[1][0] for end in found)
    verdict: Literal["pass", "fail", "inconclusive"] = "fail" if low > 0 else "pass" if high <= 0 else "inconclusive"
    place = max((end[0] if verdict == "fail" else end[1] for end in found), key=lambda at: at[0])[1]
    student = (max(end[0][0] for end in plain), max(end[1][0] for end in plain))
    more = _more(ends, share, confidence) if verdict == "inconclusive" else 1.0
    return Judgement(verdict, low, high, student, place, max(end[2] for end in found), more)


@cache
def to_pass(draws: int, share: float, error: float) -> int | None:
    """Return how many draws have to hold for the share to be shown; None where not even all would do.

    >>> to_pass(20, 0.25, 0.025), to_pass(8, 0.25, 0.025), to_pass(2, 0.25, 0.025)
    (10, 6, None)
    """
    return next((k for k in range(draws + 1) if clopper_pearson(k, draws, 1 - 2 * error)[0] >= share), None)


@cache
def to_fail(draws: int, share: float, error: float) -> int | None:
    """Return how many draws may hold at most for less than the share to be shown; None where not even none would do.

    >>> to_fail(20, 0.25, 0.025), to_fail(8, 0.25, 0.025)
    (1, None)
    """
    holding = [k for k in range(draws + 1) if clopper_pearson(k, draws, 1 - 2 * error)[1] < share]
    return max(holding, default=None)


def _quantile(
    draws: Sequence[Draw], share: float, error: float, ends: int, bounds: Bounds
) -> tuple[tuple[float, str], tuple[float, str], int]:
    """Return bounds of the quantile of one endpoint's draws, each with its place, and by how much α is divided."""
    most, least = to_fail(len(draws), share, error / ends), to_pass(len(draws), share, error)
    low, high = (-math.inf, ""), (math.inf, "")
    questions = 1
    if least is not None:
        each = error / (len(draws) - least + 1)
        highs = (max((bounds(claim, each, 1)[1], claim.place) for claim in draw) for draw in draws)
        high = sorted(highs)[least - 1]
    if most is not None:
        each = error / ends / (most + 1)
        lows = (max((bounds(claim, each, len(draw))[0], claim.place) for claim in draw) for draw in draws)
        low = sorted(lows)[most]
        questions = 2 * ends * (most + 1) * max(map(len, draws))
    return low, high, questions


def _more(ends: Sequence[Sequence[Draw]], share: float, confidence: float) -> float:
    """Return about how many times as many samples would settle it; infinite where more draws are needed as well."""
    count = max(sample.count for draws in ends for draw in draws for claim in draw for sample in claim.alternatives)

    def settled(samples: int) -> bool:
        more = [[[_of(claim, samples / count) for claim in draw] for draw in draws] for draws in ends]
        error = (1 - confidence) / 2
        found = [_quantile(draws, share, error, len(ends), Claim.bounds) for draws in more]
        return max(low[0] for low, _, _ in found) > 0 or max(high[0] for _, high, _ in found) <= 0

    low, high = count, MOST_SAMPLES
    if count < 2 or not settled(high):
        return math.inf
    while high - low > max(1, low // 100):
        middle = max(low + 1, math.isqrt(low * high))
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high / count


def _of(claim: Claim, times: float) -> Claim:
    """Return a claim as it would be of so many times the samples, went on as they did."""
    return replace(claim, alternatives=tuple(replace(s, count=round(times * s.count)) for s in claim.alternatives))
