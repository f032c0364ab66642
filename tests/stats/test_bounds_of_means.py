"""Bounds of means beside scipy's, and how often verdicts by them are wrong where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import skew, t, ttest_1samp

from lmccheck.stats.means import Claim, Sample, judged, student_quantile

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


@pytest.mark.parametrize("count", [20, 21, 500, 3000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_bounds_of_what_leans_to_neither_side_are_students(count: int, confidence: float) -> None:
    """Values in pairs around 1 have no skewness: both bounds are scipy's."""
    half = np.random.default_rng(count).normal(size=count // 2)
    values = 1 + np.concatenate([half, -half, np.zeros(count % 2)])
    expected = ttest_1samp(values, 0.0).confidence_interval(2 * confidence - 1)
    found = Sample.of(values)
    assert found.bounds(confidence) == pytest.approx(tuple(expected), abs=1e-6)
    assert found.student(confidence) == pytest.approx(tuple(expected), abs=1e-6)


def test_a_bound_is_widened_by_edgeworths_term_on_the_side_that_values_lean_to() -> None:
    """γ(2t²+1)/(6√n) more standard errors, γ as scipy has it."""
    values = np.random.default_rng(0).exponential(size=64)
    sample, q = Sample.of(values), t.ppf(0.95, 63)
    more = skew(values) * (2 * q * q + 1) / 6 / 8
    error = values.std(ddof=1) / 8
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert sample.bounds(0.95) == pytest.approx((low, high + more * error), abs=1e-9)
    assert Sample.of(-values).bounds(0.95) == pytest.approx((-high - more * error, -low), abs=1e-9)


def test_quantiles_of_many_degrees_of_freedom_are_scipys() -> None:
    """By the expansion, from 1,000 on."""
    for freedom in (1000, 5000):
        for confidence in (0.9, 0.95, 0.999, 1 - 1e-6):
            assert student_quantile(confidence, freedom) == pytest.approx(t.ppf(confidence, freedom), abs=1e-6)


def test_what_is_no_number_fails_and_what_is_one_sample_is_open() -> None:
    """NaN was seen, so that it is possible; one value has no spread; equal ones have none either."""
    assert judged([Claim("here", (Sample.of([0.0, math.nan]),))], 0.95).verdict == "fail"
    assert judged([Claim("here", (Sample.of([-1.0, math.inf]),), fixed=False)], 0.95).verdict == "fail"
    assert judged([Claim("here", (Sample.of([-1.0]),))], 0.95).verdict == "inconclusive"
    assert judged([Claim("here", (Sample.of([-1.0] * 20),))], 0.95).verdict == "pass"
    assert judged([Claim("here", (Sample.of([1.0] * 20),))], 0.95).verdict == "fail"


def test_fewer_than_twenty_samples_bound_nothing() -> None:
    """Two that agree are no evidence of the others; what would settle it is twenty at least."""
    for value in (-1.0, 1.0):
        few = judged([Claim("here", (Sample.of([value, value + 1e-6] * 9 + [value]),))], 0.95)
        assert (few.verdict, few.low, few.high) == ("inconclusive", -math.inf, math.inf)
        assert few.more == pytest.approx(20 / 19)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-300, 1.0, 1e300])
def test_a_bound_of_any_size_has_the_same_shape(factor: float) -> None:
    """Losses of a user's own may have squares that no float holds."""
    values = np.random.default_rng(1).exponential(size=20)
    expected = [factor * end for end in Sample.of(values).bounds(0.95)]
    assert Sample.of(factor * values).bounds(0.95) == pytest.approx(expected, rel=1e-9, abs=0.0)


def test_errors_that_were_never_seen_are_possible_up_to_three_in_n() -> None:
    """Of 0–1 losses without a difference in n the bound is near 1 − α^(1/n), not 0."""
    for count in (50, 200, 1000):
        low, high = Sample.of(np.zeros(count), reach=1.0).bounds(0.95)
        assert high == pytest.approx(1 - 0.05 ** (1 / count), rel=0.15)
        assert low == -high


def test_of_several_alternatives_one_is_enough_and_all_have_to_be_refuted() -> None:
    """Pass at α/k by one of k, fail by all; claims that were chosen by the samples never fail."""
    good, bad = Sample(100, -1.0, 1.0), Sample(100, 1.0, 1.0)
    near = Sample(100, -0.18, 1.0)  # shown at 5 %, not at 2.5 %
    assert judged([Claim("x", (near,))], 0.95).verdict == "pass"
    assert judged([Claim("x", (near, bad))], 0.95).verdict == "inconclusive"
    assert judged([Claim("x", (good, bad))], 0.95).verdict == "pass"
    assert judged([Claim("x", (bad, bad))], 0.95).verdict == "fail"
    assert judged([Claim("x", (good,)), Claim("y", (bad,), fixed=False)], 0.95).verdict == "inconclusive"
    worse = Sample(100, 0.18, 1.0)
    assert judged([Claim("x", (worse,))], 0.95).verdict == "fail"
    assert judged([Claim("x", (worse,)), Claim("y", (good,))], 0.95).verdict == "inconclusive"


@pytest.mark.parametrize("sign", [-1, 1])
def test_samples_that_are_named_would_do(sign: int) -> None:
    """As many with the same mean, deviation and skewness settle it; one fewer do not."""
    sample = Sample(50, sign * 0.1, 1.0, 0.4)
    claims = judged([Claim("x", (sample,))], 0.95)
    needed = math.ceil(claims.more * 50)
    assert claims.verdict == "inconclusive"
    for count, settled in ((needed, True), (needed - 1, False)):
        now = judged([Claim("x", (Sample(count, sign * 0.1, 1.0, 0.4),))], 0.95)
        assert (now.verdict != "inconclusive") == settled
    assert judged([Claim("x", (Sample(50, 0.0, 1.0),))], 0.95).more == math.inf
    both = judged([Claim("x", (sample, Sample(50, sign * 0.05, 1.0, 0.4)))], 0.95)
    nearer = Sample(50, sign * (0.1 if sign < 0 else 0.05), 1.0, 0.4)  # a pass needs one, a fail all of them
    assert both.more * 50 == nearer.needed(0.975 if sign < 0 else 0.95)


DRAWS: dict[str, tuple[Draw, float, float]] = {  # draws of mean 0, and how often at most a pass and a fail are wrong
    "normal": (lambda rng, size: rng.normal(size=size), 0.06, 0.06),
    "t, 3 degrees": (lambda rng, size: rng.standard_t(3, size=size), 0.06, 0.06),
    "exponential": (lambda rng, size: rng.exponential(size=size) - 1, 0.065, 0.06),
    "lognormal": (lambda rng, size: np.exp(rng.normal(size=size)) - math.exp(0.5), 0.095, 0.06),
    "one in a hundred": (lambda rng, size: 5.0 * (rng.random(size) < 0.01) - 0.05, 0.14, 0.06),
}


def rates(draw: Draw, samples: int, runs: int, seed: int = 0) -> tuple[float, float]:
    """Return how often a mean that is the limit is found below it, and above it."""
    rng = np.random.default_rng(seed)
    verdicts = [judged([Claim("x", (Sample.of(row),))], 0.95).verdict for row in draw(rng, (runs, samples))]
    return verdicts.count("pass") / runs, verdicts.count("fail") / runs


@pytest.mark.parametrize("name", DRAWS)
def test_wrong_verdicts_at_the_limit_are_as_rare_as_stated(name: str) -> None:
    """2,000 samples of 200 whose true mean is the limit: 5 % of passes and of fails, more passes of heavy tails."""
    draw, passes, fails = DRAWS[name]
    passed, failed = rates(draw, 200, 2000)
    assert passed <= passes
    assert failed <= fails


def test_a_line_at_the_limit_passes_and_fails_no_more_often_than_stated() -> None:
    """25 correlated means, all exactly at the limit: a wrong fail is as rare as the multiplicity makes it."""
    rng = np.random.default_rng(0)
    fails = passes = 0
    for _ in range(400):
        common = rng.normal(size=(200, 1))
        found = judged([Claim("x", (Sample.of(v),)) for v in (common + rng.normal(size=(200, 25))).T], 0.95)
        fails += found.verdict == "fail"
        passes += found.verdict == "pass"
    assert fails / 400 <= 0.05
    assert passes / 400 <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_more_samples_bring_every_rate_to_the_one_stated(name: str) -> None:
    """With 5,000 samples a draw heavy-tailed losses are within 1.5 points of 5 %, too."""
    passed, failed = rates(DRAWS[name][0], 5000, 3000, seed=1)
    assert passed <= 0.065
    assert failed <= 0.06
