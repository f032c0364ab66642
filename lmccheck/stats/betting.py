"""Is a mean too large? Bets on numbers ≥ 0 that are drawn without replacement; exact whatever their distribution.

H0: N fixed numbers X ≥ 0 have a mean of at most m. They are drawn in random order. A capital of 1 is multiplied by
1 + λ_n·(X_n − m_n) at each draw, where m_n = (N·m − Σ_{j<n} X_j)/(N − n + 1) is the largest mean that H0 leaves to what
is not drawn, and the stake λ_n ∈ [0, 1/m_n] is fixed before X_n is drawn. Under H0 the capital is a nonnegative
supermartingale, so that it ever reaches 1/α with probability at most α (Ville), and one may look after every draw.
Source: Waudby-Smith and Ramdas 2020, Estimating means of bounded random variables by betting, section 5. Differs in
that the numbers need no upper bound, since only stakes λ ≥ 0 are made, and in the stakes: the capital is shared by
fixed fractions λ_n·m_n, as of a universal portfolio, of which nothing is to be estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64] | Sequence[float]

FRACTIONS = [2.0**-k for k in range(11)]  # of what may be staked; each of an equal share of the capital
OUTWARD = 1e-9  # relative: means are tested this much higher, which is far more than sums in float64 round
STEPS = 60  # halvings in which a bound is found


def settled_after(drawn: Numbers, count: int, mean: float, error: float) -> int | None:
    """Return after how many draws it is settled that ``count`` numbers ≥ 0 have a mean above ``mean``; None if not.

    ``drawn``, (n,) float64: the first n ≤ ``count`` of them in random order, an order that depends on nothing in them.
    Where the mean is at most ``mean``, the chance that this ever settles is at most ``error``, whatever the numbers are
    and however often it is asked with more of them. Raises ValueError for a negative number.

    >>> settled_after([5.0] * 40, 1000, 1.0, 1e-6), settled_after([1.0] * 1000, 1000, 1.0, 1e-6)
    (10, None)

    What is drawn may already exceed all that the mean allows: then it is certain.

    >>> settled_after([0.0, 11.0], 10, 1.0, 1e-6)
    2
    """
    import numpy as np

    values = np.nan_to_num(np.asarray(drawn, dtype=np.float64), nan=math.inf, posinf=math.inf)
    if values.size > count or (values < 0).any():
        raise ValueError(f"settled_after: expected at most {count} numbers ≥ 0, got {values.size}, from {values.min()}")
    sums = values.cumsum()
    before = np.concatenate([[0.0], sums[:-1]])  # (n,) what was drawn before each draw
    allowed = count * mean * (1 + OUTWARD)
    left = (allowed - before) / (count - np.arange(values.size))  # (n,) the mean of what is left, at most
    ratio = np.divide(values, left, out=np.ones_like(values), where=left > 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # all may be lost, and infinitely much be won
        shares = np.log1p(np.outer(FRACTIONS, ratio - 1)).cumsum(1)  # (fractions, n) log of each share's capital
    settled = (sums > allowed) | (_log_mean(shares) >= -math.log(error))
    return int(settled.argmax()) + 1 if settled.any() else None


def _log_mean(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log of the mean of exp over the first axis."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        top = logs.max(0)
        result: NDArray[np.float64] = top + np.log(np.exp(logs - top).mean(0))
    return result


def at_least(drawn: Numbers, count: int, error: float) -> float:
    """Return a lower bound of the mean of ``count`` numbers ≥ 0, of which some were drawn in random order.

    It is above their mean with probability at most ``error``, however often it is asked with more of them.

    >>> round(at_least([1.0, 0.0] * 100, 1000, 0.05), 3)
    0.402
    """
    import numpy as np

    values = np.asarray(drawn, dtype=np.float64)
    low, high = 0.0, float(values.mean())
    if not (math.isfinite(high) and high > 0):
        return high
    for _ in range(STEPS):  # the capital falls as the mean that is tested rises
        middle = (low + high) / 2
        if settled_after(values, count, middle, error) is None:
            high = middle
        else:
            low = middle
    return low
