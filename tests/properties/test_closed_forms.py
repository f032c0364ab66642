"""Lines, sets, masks and dropped networks whose numbers can be said by hand: y = a·w·x with two units alike."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.evaluate.line import Point
from lmccheck.explain import failure_lines
from lmccheck.finding import End, Failure, Finding, Seen, bound_of, read_limit
from lmccheck.properties.draws import share_that_holds
from lmccheck.properties.dropout_stability import excess, worst_of
from lmccheck.properties.measured_line import Line

X = torch.tensor([[1.0], [2.0], [0.3]], dtype=torch.float64)
SQUARE = float((X**2).mean())


def product() -> nn.Module:
    """1-2-1, linear and without biases."""
    return nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))


def weights(w: float, a: float) -> dict[str, Tensor]:
    """Return y = a·w·x; with targets y = x its loss is (a·w − 1)²·E[x²]."""
    shapes = {"0.weight": ((2, 1), w), "1.weight": ((1, 2), a / 2)}
    return {name: torch.full(shape, number, dtype=torch.float64) for name, (shape, number) in shapes.items()}


GIVEN = {"model": product, "data": (X, X), "loss": "mse", "device": "cpu"}


# lines


def line(losses: list[float], errors: list[float | None], a: End, b: End) -> Line:
    """Return a line of equally spaced points."""
    last = len(losses) - 1
    return Line(
        [Point(k / last, loss, error) for k, (loss, error) in enumerate(zip(losses, errors, strict=True))], a, b
    )


def test_a_line_is_measured_against_its_originals_and_against_its_own_ends() -> None:
    """Losses 1 and 5 of the originals, 2 and 4 of the ends; errors 0.1 and 0.5."""
    found = line([2.0, 6.0, 5.5, 4.0, 4.0], [0.1, 0.1, 0.2, 0.6, 0.5], End("a", 1.0, 0.1), End("b", 5.0, 0.5))
    assert found.highest == (4.0, 0.25)  # 6 − 2
    assert found.over_ends == 3.5  # 6 − 2.5
    assert found.excess == 1.0  # 6 − 5
    assert found.error_barrier == pytest.approx(0.2)  # 0.6 − 0.4
    curve = found.curve(line([9.0] * 5, [None] * 5, *(End(name, 1.0) for name in "ab")))
    assert (curve.t, curve.losses, curve.errors) == (
        [0, 0.25, 0.5, 0.75, 1],
        [2, 6, 5.5, 4, 4],
        [0.1, 0.1, 0.2, 0.6, 0.5],
    )
    assert (curve.naive_losses, curve.naive_errors) == ([9.0] * 5, None)


def test_a_loss_that_is_no_number_is_infinitely_high() -> None:
    """Also above the worse endpoint."""
    found = line([1.0, math.nan, 1.0], [None] * 3, End("a", 1.0), End("b", 1.0))
    assert found.highest == (math.inf, 0.5)
    assert found.excess == math.inf
    assert found.error_barrier is None
    assert math.isinf(line([1.0, math.inf, 1.0], [None] * 3, End("a", 1.0), End("b", 1.0)).excess)


def test_naive_barriers_are_those_of_nothing_moved() -> None:
    """b is a with its units swapped: aligned nothing is left; unaligned half of the hidden units cancel half-way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    a = {"0.weight": torch.eye(2).double() * 4, "2.weight": torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).double()}
    b = {"0.weight": a["0.weight"].flip(0), "2.weight": a["2.weight"].flip(1)}
    x = torch.rand(40, 2).double()
    labels = (x[:, 1] > x[:, 0]).long()
    pair = lmccheck.load_pair(a, b, model=net, data=(x, labels), device="cpu")
    details = lmccheck.linear_connectivity(pair, points=3, profile="dev").details
    assert details["barrier"] == pytest.approx(0.0, abs=1e-12)
    assert details["error_barrier"] == 0.0
    # half-way both hidden units are 2·(x₀ + x₁) and both logits cancel: log 2, and the first class everywhere
    middle = math.log(2) - details["loss_a"]
    assert details["barrier_naive"] == pytest.approx(middle, abs=1e-12)
    assert details["error_barrier_naive"] == pytest.approx(float(labels.double().mean()), abs=1e-12)
    assert details["naive_losses"][1] == pytest.approx(math.log(2), abs=1e-12)
    assert lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev").value == details["barrier_naive"]


def test_a_seed_and_maps_reach_the_alignment() -> None:
    """What is said of the alignment is what was asked for."""
    pair = lmccheck.load_pair(weights(1, 1), weights(1, 2), calibration=(X, X), **GIVEN)
    details = lmccheck.linear_connectivity(pair, points=3, seed=17, beyond="all").details
    assert details["alignment"]["seed"] == 17
    kinds = {"rescaling", "sign-flips", "head-maps", "rotary-planes", "stream-rotation"}
    assert set(details["alignment"]["beyond"]) == kinds


# sets


def test_each_pair_of_a_set_has_a_limit_of_its_own() -> None:
    """1500 % of a pair's worse loss: next to nothing between two good models, whose barrier is small, and the worst."""
    states = [weights(1, 1.02), weights(0.2, 5.1), weights(-1, -0.5)]
    result = lmccheck.set_connectivity(states, limit="1500%", points=5, **GIVEN)
    details = result.details
    assert details["losses"] == pytest.approx([0.0004 * SQUARE, 0.0004 * SQUARE, 0.25 * SQUARE], abs=1e-14)
    small = (0.836**2 - 0.0004) * SQUARE  # (1 − 0.8·t)·(1.02 + 4.08·t) is 1.836 half-way
    assert details["matrix"][0][1] == pytest.approx(small, abs=1e-12)
    assert small < max(details["matrix"][0][2], details["matrix"][1][2]) < 3.75 * SQUARE
    assert (result.verdict, details["worst_pair"]) == ("fail", ["model 0", "model 1"])
    assert (result.value, result.limit) == (pytest.approx(small), pytest.approx(0.006 * SQUARE))
    assert details["above_limit"] == [["model 0", "model 1"]]
    assert details["barrier_naive"] == pytest.approx(small, abs=1e-12)
    largest = lmccheck.set_connectivity(states, limit=10.0, points=5, **GIVEN)
    assert largest.details["worst_pair"] == ["model 1", "model 2"]
    assert (largest.passed, largest.details["above_limit"]) == (True, [])
    equal = lmccheck.set_connectivity(states, limit=largest.value, points=5, **GIVEN)
    assert (equal.value, equal.passed, equal.details["above_limit"]) == (largest.value, True, [])


# masks


def test_the_worse_endpoint_decides_of_masks() -> None:
    """y = x with one unit: dropped, the loss is E[x²], kept and scaled by ten 81·E[x²]; y = 0 stays as it is."""
    single = lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()  # noqa: E731  # a builder
    states = [{"0.weight": torch.full((1, 1), w).double(), "1.weight": torch.ones(1, 1).double()} for w in (1.0, 0.0)]
    given = {"model": single, "loss": "mse", "device": "cpu"}
    for order in (states, states[::-1]):
        pair = lmccheck.load_pair(*order, data=(X, X), **given)
        result = lmccheck.noise_stability(pair, p=0.9, masks=60, epsilon=0.5 * SQUARE, quantile=0.25)
        side = "a" if order is states else "b"
        other = "b" if side == "a" else "a"
        assert (result.verdict, result.details["worst_side"]) == ("fail", side)
        assert result.details[other]["verdict"] == "pass"
        assert result.details[other]["q"] == [0.0] * 60
        assert result.value == result.details[side]["quantile"] == pytest.approx(SQUARE, abs=1e-12)
        assert result.interval == result.details[side]["quantile_interval"]


def test_masks_at_the_limit_hold() -> None:
    """Three of three hold: the exact interval of their share begins at the third root of 2.5 %, about .292."""
    found = share_that_holds([0.1, 0.25, 0.25], 0.25, 0.29)
    assert (found["hits"], found["verdict"]) == (3, "pass")
    assert found["interval"] == pytest.approx([0.025 ** (1 / 3), 1.0], abs=1e-12)


# dropped networks


def test_an_epsilon_is_over_its_own_endpoint_and_the_largest_counts() -> None:
    """A loss that is no number costs infinitely much."""
    assert excess(SimpleNamespace(loss=3.0), 1.0) == 2.0  # type: ignore[arg-type]  # all that is asked of it
    assert excess(SimpleNamespace(loss=math.nan), 1.0) == math.inf  # type: ignore[arg-type]
    assert worst_of({"a": [0.1, 0.3], "b": [0.2, 0.25]}) == (0.3, "a", 1)
    assert worst_of({"a": [0.1, 0.3], "b": [0.4, 0.4]}) == (0.4, "b", 0)


# limits


@pytest.mark.parametrize("limit", [-0.1, "-5%", True, math.nan, math.inf, "5", "5 %", None, "nan%"])
def test_what_is_no_limit_is_refused(limit: object) -> None:
    """Numbers from 0 on, and percentages."""
    with pytest.raises(ValueError, match="a number ≥ 0"):
        read_limit(limit)
    with pytest.raises(LmcError, match="expected a number ≥ 0"):
        bound_of(limit, 1.0)  # type: ignore[arg-type]  # the point of the test


def test_a_percentage_is_a_hundredth_of_the_worse_endpoint() -> None:
    """2 % of 4 is 0.08; nothing else passes for a value than a number at or below it."""
    ends = End("a", 4.0), End("b", 1.0)
    assert Finding(0.08, "2%", endpoints=ends).judged == "pass"
    for value in (0.0800001, math.nan, math.inf):
        assert Finding(value, "2%", endpoints=ends).judged == "fail"
        assert Finding(value, "2%", endpoints=ends, verdict="pass").judged == "fail"
    assert Finding(0.0, "2%", endpoints=ends, verdict="fail").judged == "fail"


def test_only_a_pass_passes() -> None:
    """Of the four verdicts one."""
    results = [lmccheck.Result("p", verdict, 0.1, 0.2, "") for verdict in ("pass", "fail", "inconclusive", "error")]
    assert [result.passed for result in results] == [True, False, False, False]
    for result in results[1:]:
        with pytest.raises(lmccheck.VerdictError):
            result.raise_for_verdict()


def test_what_equals_its_limit_is_not_above_it() -> None:
    """Of three measurements one is above, and it is the smallest counterexample as well."""
    seen = [Seen(0.25, "at its limit"), Seen(0.5, "above"), Seen(1.0, "at its own", bound=1.0)]
    failure = Failure("p", "too high", "height", "there", "data", seen, "places")
    found = Finding(0.5, 0.25, "nats", endpoints=(End("a", 0.1), End("b", 0.1)), failure=failure)
    assert (
        failure_lines(found)[3] == "worst 0.5 above; smallest counterexample 0.5 above; 1 of 3 places above the limit"
    )
