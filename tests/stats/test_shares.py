"""Exact intervals: against scipy and numpy, and by counting over all outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from lmccheck.stats import clopper_pearson, quantile_interval, quantile_of, trials_to_settle


@pytest.mark.parametrize("trials", [1, 2, 8, 20, 137])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_clopper_pearson_equals_scipy(trials: int, confidence: float) -> None:
    """Equal to binomtest's exact interval for every number of successes."""
    for hits in range(trials + 1):
        expected = binomtest(hits, trials).proportion_ci(confidence, method="exact")
        assert clopper_pearson(hits, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
def test_clopper_pearson_covers(share: float) -> None:
    """Summed over all outcomes, the interval misses the true share with probability at most 5 %."""
    missed = sum(
        binom.pmf(hits, 20, share)
        for hits in range(21)
        if not clopper_pearson(hits, 20)[0] <= share <= clopper_pearson(hits, 20)[1]
    )
    assert missed <= 0.05


@pytest.mark.parametrize(("hits", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(hits: int, trials: int) -> None:
    """More successes than trials is no data."""
    with pytest.raises(ValueError, match="expected"):
        clopper_pearson(hits, trials)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 20, 101])
def test_quantile_equals_numpy(count: int) -> None:
    """The smallest value that a share of the values do not exceed."""
    values = np.random.default_rng(count).normal(size=count).tolist()
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert quantile_of(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_quantile_interval_covers() -> None:
    """Of 1,000 uniform samples of 40, at most 5 % (and noise) miss the true quantile."""
    samples = np.random.default_rng(0).uniform(size=(1000, 40))
    found = [quantile_interval(row.tolist(), 0.25) for row in samples]
    missed = sum(not (low <= 0.25 <= high) for low, high in (ends for ends in found if ends is not None))
    assert None not in found
    assert missed / 1000 <= 0.06


def test_too_few_values_have_no_quantile_interval() -> None:
    """Of 8 values none is below the lower quartile with enough certainty."""
    assert quantile_interval([float(k) for k in range(8)], 0.25) is None
    assert quantile_interval([float(k) for k in range(20)], 0.25) == (1.0, 9.0)


def test_trials_to_settle() -> None:
    """So many trials at the same rate do exclude the share, a few less do not; a rate equal to it never does."""
    for hits, trials in ((7, 20), (3, 20), (2, 8)):
        needed = trials_to_settle(hits, trials, 0.25)
        if hits / trials == 0.25:
            assert needed is None
            continue
        assert needed is not None
        low, high = clopper_pearson(round(needed * hits / trials), needed)
        assert low >= 0.25 or high < 0.25
        fewer = needed // 2
        low, high = clopper_pearson(round(fewer * hits / trials), fewer)
        assert low < 0.25 <= high
