"""Means of a population from samples of it: bounds, what all of several means show together, and how many would do.

Every bound here is asymptotic: its error rate becomes the one stated as samples grow. Student's t stands on that alone;
where the sample leans to the side that a bound is on, the first term of Edgeworth's series, γ(2t²+1)/(6√n), widens it.
Fewer than FEWEST samples bound nothing: of so few nobody knows how they lean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

MOST_SAMPLES = 10**9
FEWEST = 20
CROSSINGS = 100  # steps, within which a bound is 0, or nowhere
NEAR = 1e-12  # relative
MANY = 1000  # degrees of freedom from which on Student's quantile is the normal one's expansion, to 1e-6


@dataclass(frozen=True)
class Sample:
    """What is kept of n values of which the population's mean is asked: ``skewness`` γ is that of the values.

    ``reach``: how far from 0 a value can be, None where that is not known. One value that far is then counted as seen,
    on the side that a bound looks at: n values that are all alike say that fewer than about 3 in n are not.
    """

    count: int
    mean: float
    deviation: float  # with n − 1; NaN of a single value
    skewness: float = 0.0
    reach: float | None = None

    @classmethod
    def of(cls, values: Any, reach: float | None = None) -> Sample:
        """Return the sample of (n,) values. One that is no finite number makes the mean infinite.

        >>> Sample.of([1.0, 2.0, 6.0])
        Sample(count=3, mean=3.0, deviation=2.6457513110645907, skewness=0.5951700641394974, reach=None)
        """
        import numpy as np

        x = np.asarray(values, dtype=np.float64)
        count = len(x)
        if not np.isfinite(x).all():
            return cls(count, math.inf, math.nan, 0.0, reach)
        scale = 2.0 ** (math.frexp(float(np.abs(x).max()))[1] - 1)  # so that no square overflows
        mean = float((x / scale).mean())
        apart = x / scale - mean
        spread = float((apart**2).sum())
        mean, deviation = scale * mean, scale * math.sqrt(spread / (count - 1)) if count > 1 else math.nan
        skewness = float(((apart / math.sqrt(spread / count)) ** 3).mean()) if spread > 0 else 0.0
        return cls(count, mean, deviation, skewness, reach)

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Return a lower and an upper bound of the population's mean, each with this confidence by itself.

        A mean that is no number lies above everything: what was seen once is possible.
        """
        low, high = (self._bound(side, confidence, self.count) for side in (-1, 1))
        return low, high

    def student(self, confidence: float) -> tuple[float, float]:
        """Return both bounds as Student's t alone has them.

        Equivalent to ``scipy.stats.ttest_1samp(values, 0).confidence_interval(2 * confidence - 1)``.
        """
        if not math.isfinite(self.mean):
            return self.mean, self.mean
        if self.count < 2:
            return -math.inf, math.inf
        half = student_quantile(confidence, self.count - 1) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half

    def needed(self, confidence: float) -> float:
        """Return about how many samples would put 0 outside the bound, went on as they did; infinite where too many."""
        if self.mean == 0 or not math.isfinite(self.mean) or self.count < 2:
            return math.inf
        side = -1 if self.mean > 0 else 1

        def settled(count: int) -> bool:
            return side * self._bound(side, confidence, count) <= 0

        low, high = 2, MOST_SAMPLES
        if not settled(high):
            return math.inf
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if settled(middle) else (middle + 1, high)
        return low

    def _bound(self, side: int, confidence: float, count: int) -> float:
        """Return the bound on one side, as it would be of so many samples like these."""
        if not math.isfinite(self.mean):
            return math.inf
        if count < FEWEST or self.count < 2:
            return side * math.inf
        mean, deviation, skewness = self.mean, self.deviation, max(0.0, side * self.skewness)
        if self.reach is not None:
            apart = side * self.reach - mean
            variance = (deviation**2 * (count - 1) + apart**2 * count / (count + 1)) / count
            mean, deviation, count, skewness = mean + apart / (count + 1), math.sqrt(variance), count + 1, 0.0
        t, root = student_quantile(confidence, count - 1), math.sqrt(count)
        return mean + side * deviation / root * (t + skewness * (2 * t * t + 1) / (6 * root))


@cache
def _normal_quantile(confidence: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(confidence)


@cache
def student_quantile(confidence: float, freedom: int) -> float:
    """Return the quantile of Student's t; of many degrees of freedom by the normal quantile's expansion (Fisher 1926).

    >>> round(student_quantile(0.95, 10), 4), round(student_quantile(0.95, 1000), 4)
    (1.8125, 1.6464)
    """
    if freedom < MANY:
        from scipy.stats import t

        return float(t.ppf(confidence, freedom))
    z = _normal_quantile(confidence)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Claim:
    """That one at least of several means is at most 0. ``place``: where; ``alternatives``: samples of what they are of.

    ``fixed``: whether it was asked before the samples were looked at. One that was chosen by them can keep all from
    passing and never makes them fail, by more than what is possible at all.
    """

    place: str
    alternatives: tuple[Sample, ...]
    fixed: bool = True

    @property
    def mean(self) -> float:
        """The mean that decides here, of those that were seen."""
        return min(sample.mean for sample in self.alternatives)

    def bounds(self, error: float, questions: int) -> tuple[float, float]:
        """Return what the smallest of its means is at least, were this one of so many ``questions``, and at most."""
        lows = [sample.bounds(1 - error / questions)[0] for sample in self.alternatives]
        highs = [sample.bounds(1 - error / len(self.alternatives))[1] for sample in self.alternatives]
        low = min(lows) if self.fixed or not math.isfinite(self.mean) else -math.inf
        return low, min(highs)

    def student(self, error: float, questions: int) -> tuple[float, float]:
        """Return the same by Student's t alone."""
        low = min(sample.student(1 - error / questions)[0] for sample in self.alternatives)
        high = min(sample.student(1 - error / len(self.alternatives))[1] for sample in self.alternatives)
        return low if self.fixed else -math.inf, high

    def more(self, error: float, questions: int) -> float:
        """Return how many times as many samples would settle it."""
        passes, own = self.mean <= 0, len(self.alternatives)
        needed = [
            sample.needed(1 - error / (own if passes else questions)) / sample.count
            for sample in self.alternatives
            if (sample.mean <= 0) == passes
        ]
        return min(needed) if passes else max(needed)


@dataclass(frozen=True)
class Judgement:
    """What samples say of a population: ``low`` and ``high`` bound the largest of all claims' means, 0 the limit.

    ``student``: both by Student's t alone. ``place``: the claim that is largest in ``high``. ``questions``: by how many
    claims the error of a wrong ``fail`` is divided. ``more``: how many times as many samples would settle it, 1 where
    it is, infinite where no number would.
    """

    verdict: Literal["pass", "fail", "inconclusive"]
    low: float
    high: float
    student: tuple[float, float]
    place: str
    questions: int
    more: float


def judged(claims: Sequence[Claim], confidence: float) -> Judgement:
    """Return whether all claims hold of the population that the samples are from.

    ``pass``, where each of them is shown at level α = 1 − confidence: an intersection–union test, which needs no
    correction; of a claim's k alternatives one has to be shown at α/k. ``fail``, where one of the m fixed claims is
    refuted at α/m, all of its alternatives. Else ``inconclusive``. Asymptotically either is wrong with probability at
    most α. Source: Berger 1982 (intersection–union), Bonferroni.

    >>> of = Sample(100, -0.5, 1.0)
    >>> judged([Claim("here", (of,))], 0.95).verdict, judged([Claim("here", (of,))], 1 - 1e-9).verdict
    ('pass', 'inconclusive')
    """
    error, questions = 1 - confidence, max(1, sum(claim.fixed for claim in claims))
    bounds = [claim.bounds(error, questions) for claim in claims]
    low, high = (max(side) for side in zip(*bounds, strict=True))
    plain = tuple(max(side) for side in zip(*(c.student(error, questions) for c in claims), strict=True))
    verdict: Literal["pass", "fail", "inconclusive"] = "fail" if low > 0 else "pass" if high <= 0 else "inconclusive"
    at = max(range(len(claims)), key=lambda k: bounds[k][0 if verdict == "fail" else 1])
    more = _more(claims, error, questions) if verdict == "inconclusive" else 1.0
    return Judgement(verdict, low, high, (plain[0], plain[1]), claims[at].place, questions, more)


def crossing(bound: Callable[[float], float]) -> float:
    """Return the shift at which a bound is 0 that falls by about as much as the shift rises; infinite where none is.

    So is a ratio of means bounded: by all that it may be shifted by and not be refuted. Where the denominator is not
    known to differ from 0, nothing bounds it. Source: Fieller 1954.

    >>> round(crossing(lambda shift: 1.0 - 0.8 * shift), 9)
    1.25
    """
    shift, scale = 0.0, 0.0
    for _ in range(CROSSINGS):
        left = bound(shift)
        shift, scale = shift + left, max(scale, abs(left))
        if not math.isfinite(left) or abs(left) <= NEAR * scale:
            return shift
    return math.copysign(math.inf, left)


def _more(claims: Sequence[Claim], error: float, questions: int) -> float:
    """Return how many times as many samples would settle what they now point to."""
    above = [claim for claim in claims if claim.mean > 0]
    if not above:
        return max(claim.more(error, questions) for claim in claims)
    return min((claim.more(error, questions) for claim in above if claim.fixed), default=math.inf)
