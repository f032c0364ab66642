"""Exact intervals: for a share seen in independent trials, and for a quantile of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_TRIALS = 100_000


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval for a success probability from ``hits`` among independent ``trials``.

    Low is the (1−c)/2 quantile of Beta(k, n−k+1), high the (1+c)/2 quantile of Beta(k+1, n−k); 0 and 1 where nothing
    or everything succeeded. It covers the true share with probability at least c, whatever the share.
    Source: Clopper and Pearson 1934. Equivalent to ``scipy.stats.binomtest(k, n).proportion_ci(c, method="exact")``.

    >>> [round(end, 4) for end in clopper_pearson(7, 20)]
    [0.1539, 0.5922]
    """
    from scipy.stats import beta

    if not 0 <= hits <= trials or trials < 1 or not 0 < confidence < 1:
        raise ValueError(f"clopper_pearson: got {hits} of {trials} at {confidence}; expected 0 ≤ hits ≤ trials ≥ 1")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def trials_to_settle(hits: int, trials: int, share: float, confidence: float = 0.95) -> int | None:
    """Return about how many trials would put ``share`` outside the interval if successes went on as they did.

    None where even 100,000 would not.

    >>> trials_to_settle(7, 20, 0.25)
    91
    """
    rate = hits / trials
    low, high = trials, MOST_TRIALS
    if not _settled(round(rate * high), high, share, confidence):
        return None
    while low < high:  # rounding makes this almost, not quite, monotone: hence "about"
        middle = (low + high) // 2
        if _settled(round(rate * middle), middle, share, confidence):
            high = middle
        else:
            low = middle + 1
    return low


def _settled(hits: int, trials: int, share: float, confidence: float) -> bool:
    low, high = clopper_pearson(hits, trials, confidence)
    return low >= share or high < share


def quantile_of(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed.

    Equivalent to ``numpy.quantile(values, share, method="inverted_cdf")``; infinite values are allowed.

    >>> quantile_of([4.0, 1.0, 3.0, 2.0], 0.25)
    1.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-12) - 1)]


def quantile_interval(values: Sequence[float], share: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return two order statistics between which the true quantile lies, or None where the sample is too small.

    Of n independent values the r-th smallest is above the quantile with probability at most P(Bin(n, share) < r), and
    the s-th smallest below it with probability at most P(Bin(n, share) ≥ s); each of these gets half of 1−c.
    Source: David and Nagaraja 2003, Order Statistics, 7.1.

    >>> quantile_interval([float(k) for k in range(1, 101)], 0.25)
    (17.0, 35.0)
    >>> quantile_interval([1.0, 2.0], 0.25) is None
    True
    """
    import numpy as np
    from scipy.stats import binom

    count, tail = len(values), (1 - confidence) / 2
    ordered = sorted(values)
    ranks = np.arange(1, count + 1)
    lower = ranks[binom.cdf(ranks - 1, count, share) <= tail]
    upper = ranks[binom.sf(ranks - 1, count, share) <= tail]
    return (ordered[lower[-1] - 1], ordered[upper[0] - 1]) if lower.size and upper.size else None
