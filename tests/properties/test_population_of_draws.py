"""Verdicts about new data of random draws: both draws and samples are random; beside numpy and scipy by themselves."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, ttest_1samp
from torch import nn

import lmccheck
from lmccheck.stats.drawn import judged_share, to_fail, to_pass
from lmccheck.stats.means import Claim, Sample

UNITS, DIM, SAMPLES, MASKS = 6, 3, 150, 20
SHARE = 0.25
stability = partial(lmccheck.noise_stability, p=0.5, masks=MASKS)  # so many that hardly two are the same


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, UNITS), nn.ReLU(), nn.Linear(UNITS, 1))


def pair() -> Any:
    """Two networks of one hidden layer on normal inputs, with their targets a's outputs and some noise."""
    rng = torch.Generator().manual_seed(4)
    ends = [{n: torch.randn(t.shape, generator=rng) for n, t in model().state_dict().items()} for _ in "ab"]
    x = torch.randn(SAMPLES, DIM, generator=rng)
    y = torch.func.functional_call(model(), ends[0], (x,)) + 0.3 * torch.randn(SAMPLES, 1, generator=rng)
    return lmccheck.load_pair(*ends, model=model, data=(x, y.detach()), loss="mse", device="cpu")


def lost(given: Any, weights: Any, factors: np.ndarray) -> np.ndarray:
    """What samples lose with hidden units multiplied, by numpy."""
    w, b, v, c = (weights[name].double().numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    x, y = (part.double().numpy() for part in (given.data.batches[0].inputs, given.data.batches[0].targets))
    return np.asarray((np.maximum(x @ w.T + b, 0) * factors @ v.T + c - y)[:, 0] ** 2)


def heights(given: Any, found: Any) -> dict[str, np.ndarray]:
    """What every mask of the witness costs every sample at the four t, (masks, 4, n) of each endpoint."""
    costs = {}
    for name, end in given.named_endpoints.items():
        rows = []
        for k in range(MASKS):
            (mask,) = (part.numpy() for part in found.witness.multipliers(k).values())
            rows.append([lost(given, end.theta, 1 + t * (mask - 1)) for t in (0.25, 0.5, 0.75, 1.0)])
        costs[name] = np.array(rows) - lost(given, end.theta, np.ones(UNITS))
    return costs


def upper(values: np.ndarray, error: float) -> float:
    return float(ttest_1samp(values, 0.0).confidence_interval(1 - 2 * error).high)


def test_bounds_of_a_quantile_over_masks_are_order_statistics_of_students_t() -> None:
    """m by the binomial's tail at 1.25 or 2.5 %, and each mask at what is left over, by scipy."""
    given = pair()
    found = stability(given, epsilon=3.0, decide="population")
    costs, told = heights(given, found), found.details["population"]
    need = next(m for m in range(MASKS) if binom.sf(m - 1, MASKS, SHARE) <= 0.025)
    may = max(m for m in range(MASKS) if binom.cdf(m, MASKS, SHARE) <= 0.0125)
    highs, lows = [], []
    for masks in costs.values():
        each = 0.025 / (MASKS - need + 1)
        highs.append(sorted(max(upper(t, each) for t in mask) for mask in masks)[need - 1])
        each = 0.0125 / (may + 1) / 4
        lows.append(sorted(max(-upper(-t, each) for t in mask) for mask in masks)[may])
    assert told["student_t"] == pytest.approx([max(lows), max(highs)], rel=1e-4)
    assert (told["draws"], told["comparisons"]) == (MASKS, 2 * MASKS * 4)
    assert told["multiplicity"] == 2 * 2 * (may + 1) * 4
    low, high = told["interval"]
    assert low <= max(lows) * (1 + 1e-4)
    assert high >= max(highs) * (1 - 1e-4)
    for limit, verdict in ((1.01 * high, "pass"), (0.99 * high, "inconclusive"), (0.99 * low, "fail")):
        again = stability(given, epsilon=limit, decide="population")
        assert again.verdict == verdict
        assert again.interval == pytest.approx((low, high))


def test_a_limit_in_percent_is_a_share_of_every_samples_loss() -> None:
    """Of two endpoints one has to allow it: each at half the level, p times its losses inside of the mean."""
    given = pair()
    found = stability(given, epsilon="40%", decide="population")
    costs, need = heights(given, found), 10
    owns = [lost(given, end.theta, np.ones(UNITS)) for end in given.named_endpoints.values()]
    each = 0.025 / (MASKS - need + 1) / 2
    highs = [
        sorted(max(min(upper(t - 0.4 * own, each) for own in owns) for t in mask) for mask in masks)[need - 1]
        for masks in costs.values()
    ]
    assert found.details["population"]["student_t"][1] - found.limit == pytest.approx(max(highs), rel=1e-4)


def test_samples_and_draws_that_would_settle_it_are_named() -> None:
    """With as many samples as it names it is settled; where masks are too few no samples are named."""
    given = pair()
    sure = stability(given, epsilon=3.0, decide="population")
    _, high = sure.interval or (0.0, 0.0)
    found = stability(given, epsilon=0.9 * high, decide="population")
    needed = found.details["population"]["needed"]
    assert found.verdict == "inconclusive"
    assert needed > SAMPLES
    assert f"20 draws and {SAMPLES} samples do not decide about new data" in found.lines[0]
    assert f"about {needed:,} samples like these would settle it" in "\n".join(found.lines)
    few = stability(given, epsilon=100.0, decide="population", masks=2)
    assert few.verdict == "inconclusive"
    assert few.details["population"]["needed"] is None
    assert "masks" in "\n".join(few.lines)


def test_gaussian_noise_is_judged_by_its_mean_over_draws() -> None:
    """Each sample has noise of its own: the mean of 20 draws is one number a sample, whose mean scipy bounds."""
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.noisy import Noise, NoisyRuns

    given = pair()
    ask = partial(lmccheck.noise_stability, given, noise="gaussian", size=0.2)
    found = ask(epsilon=1.0, decide="population")
    told, bounds = found.details["population"], []
    for end in given.named_endpoints.values():
        runs = NoisyRuns(given.network, Evaluator(given.network, end.theta).dtype)
        runs.load(end.theta)
        own, losses, _ = runs.each([Noise(0.2, 0, k) for k in range(20)])
        bounds.append([upper((losses.mean(0) - own).numpy(), 0.05), -upper((own - losses.mean(0)).numpy(), 0.025)])
    assert told["student_t"] == pytest.approx([max(low for _, low in bounds), max(high for high, _ in bounds)])
    low, high = found.interval or (0.0, 0.0)
    middle = ask(epsilon=(low + high) / 2, decide="population")
    assert (ask(epsilon=1.001 * high, decide="population").verdict, middle.verdict) == ("pass", "inconclusive")
    assert "samples like these would settle it" in "\n".join(middle.lines)
    assert told["draws"] == 0


def test_few_draws_and_how_many_have_to_hold_are_the_binomials() -> None:
    """Exactly: as many as make a share of ¼ unlikely."""
    for count in (2, 8, 20, 50):
        passes = [m for m in range(count + 1) if binom.sf(m - 1, count, SHARE) <= 0.025]
        fails = [m for m in range(count + 1) if binom.cdf(m, count, SHARE) < 0.025]
        assert to_pass(count, SHARE, 0.025) == min(passes, default=None)
        assert to_fail(count, SHARE, 0.025) == max(fails, default=None)


def test_wrong_verdicts_at_the_limit_are_as_rare_as_stated() -> None:
    """120 gates of each kind at 5 %, draws that share their samples: a share that is a hair too small, or just met."""
    rng = np.random.default_rng(0)

    def verdicts(holding: float, good: float, bad: float) -> list[str]:
        found = []
        for _ in range(120):
            q = np.where(rng.random(20) < holding, good, bad)
            x = q[:, None] + 0.7 * rng.standard_normal(100) + 0.7 * rng.standard_normal((20, 100))
            draws = [[Claim("", (Sample(100, float(r.mean()), float(r.std(ddof=1))),))] for r in x]
            found.append(judged_share([draws], SHARE, 0.95).verdict)
        return found

    most = 120 * 0.05 + 3 * math.sqrt(120 * 0.05 * 0.95)
    for bad in (1e-9, 9.0):
        assert verdicts(0.2499, -9.0, bad).count("pass") <= most
    for good in (-9.0, 0.0):
        assert verdicts(0.25, good, 9.0).count("fail") <= most
