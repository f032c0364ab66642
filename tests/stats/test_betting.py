"""Bets on a mean: never wrong more often than they say, whatever is drawn, and as strong as an exact slow one."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from lmccheck.stats import at_least, settled_after

Draw = Callable[[np.random.Generator, int], np.ndarray]
LOSSES: dict[str, Draw] = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 2.0, n),
    "pareto": lambda rng, n: rng.pareto(1.1, n),  # of which not even the variance exists
    "errors": lambda rng, n: (rng.random(n) < 0.05).astype(float),
    "one": lambda rng, n: np.eye(1, n)[0],  # a single sample has it all
    "mostly-none": lambda rng, n: rng.lognormal(0.0, 1.0, n) * (rng.random(n) < 0.02),
}


def slowly(drawn: list[int], count: int, mean: Fraction, error: Fraction) -> int | None:
    """The same bet in exact fractions, a draw after the other: capital in eleven shares, a stake fixed before each."""
    capital = [Fraction(1, 11)] * 11
    rest = mean * count  # what H0 allows all that is not drawn yet to sum to
    for number, value in enumerate(drawn):
        expected = rest / (count - number)
        if expected > 0:
            stakes = [Fraction(1, 2**k) / expected for k in range(11)]
            capital = [share * (1 + stake * (value - expected)) for share, stake in zip(capital, stakes, strict=True)]
        rest -= value
        if rest < 0 or sum(capital) * error >= 1:
            return number + 1
    return None


@pytest.mark.parametrize("seed", range(40))
def test_bets_settle_where_exact_fractions_do(seed: int) -> None:
    """For small and large barriers, with zeros, up to the last draw."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, 12, 60) * (rng.random(60) < rng.random())).tolist()
    for tested in (Fraction(1, 3), Fraction(sum(drawn), 60) * Fraction(9, 10), Fraction(sum(drawn), 60)):
        for error in (Fraction(1, 1000), Fraction(1, 7)):
            assert settled_after(drawn, 60, float(tested), float(error)) == slowly(drawn, 60, tested, error)


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0, 7], [1, 1, 1, 1, 1, 2], [0, 0, 3, 4, 0, 0], [5, 0, 0, 1, 2, 6]])
@pytest.mark.parametrize("error", [0.5, 0.2, 0.05])
def test_of_all_orders_of_a_true_null_few_enough_settle(values: list[float], error: float) -> None:
    """Ville's inequality, counted: all 720 orders of six numbers whose mean is the one tested."""
    wrong = [settled_after(order, 6, sum(values) / 6, error) is not None for order in permutations(values)]
    assert sum(wrong) <= error * len(wrong)


def wrong_rate(draw: Draw, gates: int, samples: int, error: float) -> float:
    """Share of gates whose mean is exactly at the boundary that settle nevertheless."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(gates):
        values = draw(rng, samples)
        wrong += settled_after(rng.permutation(values), samples, float(values.mean()), error) is not None
    return wrong / gates


@pytest.mark.parametrize("kind", LOSSES)
def test_a_few_hundred_nulls_at_the_boundary_are_wrong_at_most_at_the_nominal_rate(kind: str) -> None:
    """At 10 %, heavy tails and all: more than 4 standard errors above are not seen."""
    assert wrong_rate(LOSSES[kind], 400, 300, 0.1) <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 400)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
def test_ten_thousand_nulls_at_the_boundary_are_wrong_at_most_at_one_percent(kind: str) -> None:
    """The count itself is at most that of the nominal rate."""
    assert wrong_rate(LOSSES[kind], 10_000, 1000, 0.01) <= 0.01


def test_a_null_that_is_drawn_to_the_end_does_not_settle_by_rounding() -> None:
    """Sums of floats that are equal but for rounding: the mean itself is no fail."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.lognormal(0, 3, 500)
        assert settled_after(values, 500, float(np.sort(values).mean()), 1e-12) is None


def test_a_larger_mean_settles_at_the_last_draw_whatever_the_error() -> None:
    """Where all is known, nothing is bet on."""
    values = np.linspace(0, 1, 101)
    assert settled_after(values, 101, 0.5 - 1e-6, 1e-12) == 101


def test_what_is_no_number_settles_at_once_and_a_negative_one_is_refused() -> None:
    assert settled_after([0.1, math.nan], 1000, 1.0, 1e-6) == settled_after([0.1, math.inf], 1000, 1.0, 1e-6) == 2
    with pytest.raises(ValueError, match=r"expected at most 1000 numbers ≥ 0, got 2, from -0\.5"):
        settled_after([0.1, -0.5], 1000, 1.0, 1e-6)


def test_a_mean_of_zero_allows_nothing_at_all() -> None:
    assert settled_after([0.0, 0.0, 1e-9], 1000, 0.0, 1e-6) == 3
    assert settled_after([0.0] * 1000, 1000, 0.0, 1e-6) is None


def test_the_lower_bound_is_the_largest_mean_that_is_refused() -> None:
    """Within rounding, what is a little smaller settles, what is a little larger does not."""
    drawn = np.random.default_rng(0).exponential(size=200)
    bound = at_least(drawn, 10_000, 0.05)
    assert 0.5 < bound < drawn.mean()
    assert settled_after(drawn, 10_000, bound * (1 - 1e-6), 0.05) is not None
    assert settled_after(drawn, 10_000, bound * (1 + 1e-6), 0.05) is None


def test_lower_bounds_cover_the_mean_as_often_as_they_say() -> None:
    """Of 60 samples of a heavy tail, each asked at its own time."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(60):
        values = rng.lognormal(0, 1.5, 200)
        drawn = rng.permutation(values)[: rng.integers(5, 200)]
        wrong += at_least(drawn, 200, 0.1) > values.mean()
    assert wrong <= 6 + 4 * math.sqrt(60 * 0.1 * 0.9)
