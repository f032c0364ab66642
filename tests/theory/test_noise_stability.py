"""Noise stability: the loss with units dropped at random, against plain loops, closed forms and dense Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from networks.noise import cnn, mlp, pair_of
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError, UnsupportedArchitecture
from lmccheck.properties.noise_stability import noise_stability

# What is measured


def test_masks_that_drop_nothing_are_no_test() -> None:
    """p so small that every mask is the network itself: no q_k would be other than 0, and nothing be shown."""
    pair = pair_of(mlp, (5,))
    with pytest.raises(LmcError, match=r"p = 1e-06: 20 masks of \d+ units will hardly drop one.*mend: a larger p"):
        noise_stability(pair, p=1e-6, epsilon=0.0)
    with pytest.raises(LmcError, match="p = 0; expected a number between 0 and 1"):
        noise_stability(pair, p=0, epsilon=0.0)


@pytest.mark.parametrize(
    ("build", "shape", "outgoing"),
    [
        (mlp, (5,), {"0": ("2.weight", 1), "2": ("4.weight", 1), "4": ("6.weight", 1)}),
        (cnn, (2, 8, 8), {"0": ("4.weight", 1), "4": ("7.weight", 4), "7": ("9.weight", 1)}),
    ],
)
def test_q_equals_a_plain_loop(
    build: Callable[[], nn.Module], shape: tuple[int, ...], outgoing: Mapping[str, tuple[str, int]]
) -> None:
    """Every loss equals the module's own with columns multiplied by 1 + t·(m − 1), and q and quantile follow."""
    pair = pair_of(build, shape)
    result = noise_stability(pair, p=0.4, masks=9)
    module = build().eval()
    inputs, targets = pair.data.batches[0].inputs, pair.data.batches[0].targets

    def loss(weights: Mapping[str, Tensor]) -> float:
        return float(F.cross_entropy(torch.func.functional_call(module, dict(weights), (inputs,)), targets))

    values = []
    for end, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        own, costs = loss(theta), []
        for k in range(9):
            mask = result.witness.multipliers(k)
            assert set(mask) == set(outgoing)
            row = []
            for t in (0.25, 0.5, 0.75, 1.0):
                weights = dict(theta)
                for group, (name, block) in outgoing.items():
                    factors = 1 + t * (mask[group] - 1)
                    line = torch.tensor([factors[u] for u in range(len(factors)) for _ in range(block)])
                    weights[name] = weights[name] * line.reshape(1, -1, *[1] * (weights[name].ndim - 2))
                row.append(loss(weights))
            assert result.witness.losses[end][k] == pytest.approx(row, abs=1e-10)
            costs.append(max(0.0, max(row) - own))
        assert result.details[end]["q"] == pytest.approx(costs, abs=1e-10)
        values.append(sorted(costs)[2])  # the third of nine: at least a quarter of them are no larger
    assert result.value == pytest.approx(max(values), abs=1e-10)
    assert result.evaluations == 2 + 2 * 9 * 4


def test_a_single_unit_has_two_outcomes() -> None:
    """y = a·w·x with targets y: the loss at t is (a·w)²·E[x²]·t²·(m−1)², and m is 0 or 1/(1−p)."""
    build = lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()  # noqa: E731  # a builder
    x = torch.linspace(-1, 1, 11).double()[:, None]
    weights = {"0.weight": torch.tensor([[2.0]]).double(), "1.weight": torch.tensor([[1.5]]).double()}
    pair = lmccheck.load_pair(weights, weights, model=build, data=(x, 3.0 * x), loss="mse")
    result = noise_stability(pair, p=0.2, epsilon=1.0, masks=400)
    size = 9 * float((x**2).mean())
    dropped, kept = size, size * 0.25**2
    q = result.details["a"]["q"]
    assert sum(abs(v - dropped) < 1e-9 or abs(v - kept) < 1e-9 for v in q) == 400
    assert result.value == pytest.approx(kept)
    assert kept < 1.0 < dropped
    low, high = result.details["a"]["interval"]
    assert low < 0.8 < high  # the true share of masks that keep the unit
    assert result.passed


def one_unit(scale: float) -> dict[str, Tensor]:
    """y = scale·x by one hidden unit."""
    return {"0.weight": torch.tensor([[scale]]).double(), "1.weight": torch.tensor([[1.0]]).double()}


def pair_of_units(a: float, b: float, target: float) -> lmccheck.ModelPair:
    """Two networks y = a·x and y = b·x, and targets y = target·x, with E[x²] = 0.4."""
    build = lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()  # noqa: E731  # a builder
    x = torch.linspace(-1, 1, 11).double()[:, None]
    return lmccheck.load_pair(one_unit(a), one_unit(b), model=build, data=(x, target * x), loss="mse")


def test_a_mask_that_helps_costs_nothing() -> None:
    """y = x with targets 0: dropping the unit ends at loss 0, below the network's own; q counts t = 0 and is 0 there.

    A kept unit, times 1/(1−p) = 2, costs (2² − 1)·E[x²] = 1.2.
    """
    for masks in (1, 40):
        result = noise_stability(pair_of_units(1.0, 1.0, 0.0), p=0.5, masks=masks, epsilon=0.5)
        facts = result.details["a"]
        assert {round(q, 6) for q in facts["q"]} <= {0.0, 1.2}
        for q, t, losses in zip(facts["q"], facts["worst_t"], facts["losses"], strict=True):
            assert (t, losses[-1] == 0.0) == ((0.0, True) if q == 0.0 else (1.0, False))
    assert facts["q"].count(0.0) == facts["hits"] >= 10
    assert (result.value, result.verdict) == (0.0, "pass")
    ones = (noise_stability(pair_of_units(1, 1, 0), p=0.5, masks=1, seed=seed) for seed in range(9))
    helped = next(one for one in ones if one.value == 0)
    assert "t = 0 of θ_t" in helped.details["failure"][2]  # one mask settles nothing: its worst point is the start
    assert "loss 0.4" in helped.details["failure"][2]


@pytest.mark.parametrize("worse", ["a", "b"])
def test_value_and_interval_are_those_of_the_worse_endpoint(worse: str) -> None:
    """y = 3x at its target, p = 0.5: every mask costs 9·E[x²] at t = 1; at y = 0 none costs anything."""
    result = noise_stability(pair_of_units(*((3.0, 0.0) if worse == "a" else (0.0, 3.0)), 3.0), p=0.5, masks=40)
    assert result.details["worse"] == result.details["worst_side"] == worse
    assert result.value == pytest.approx(9 * 0.4)
    assert result.interval == pytest.approx((9 * 0.4, 9 * 0.4))


def test_of_equal_quantiles_the_unsettled_endpoint_is_shown() -> None:
    """y = 0 loses nothing with any mask; y = x with targets 0 loses 1.2 with half of them: both quantiles are 0."""
    result = noise_stability(pair_of_units(0.0, 1.0, 0.0), p=0.5, masks=8, epsilon=0.5)
    assert [result.details[end]["quantile"] for end in "ab"] == [0.0, 0.0]
    assert [result.details[end]["verdict"] for end in "ab"] == ["pass", "inconclusive"]
    assert (result.verdict, result.details["worse"], result.details["worst_side"]) == ("inconclusive", "b", "b")
    assert result.interval == result.details["b"]["quantile_interval"]


# Verdicts


def fragile() -> nn.Module:
    """2-24-2 ReLU."""
    return nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 2)).double()


def test_a_fragile_network_fails() -> None:
    """Large outgoing weights that cancel in pairs of equal units: dropping one of a pair ruins the output."""
    torch.manual_seed(0)
    rows = torch.randn(12, 2).double()
    out = 300 * torch.randn(2, 12).double()
    weights = {"0.weight": torch.cat([rows, rows]), "0.bias": torch.ones(24).double()}
    weights |= {"2.weight": torch.cat([out, -out], 1), "2.bias": torch.zeros(2).double()}
    data = torch.randn(50, 2).double(), torch.randint(0, 2, (50,))
    pair = lmccheck.load_pair(weights, weights, model=fragile, data=data)
    result = noise_stability(pair, p=0.5)
    assert result.verdict == "fail"
    assert result.details["loss_a"] == pytest.approx(math.log(2))
    assert result.value > 10
    lines = result.details["failure"]
    assert len(lines) == 5
    assert "not noise stable" in lines[0]
    assert "limit 0.05 nats" in lines[1]
    assert "of 20 masks hold, 95 % interval" in lines[1]
    assert lines[2].startswith("where: endpoint a, mask ")
    assert lines[4].startswith("endpoint losses: a 0.6931, b 0.6931 nats")


def test_in_between_it_is_not_settled_and_says_what_would_settle_it() -> None:
    """A limit between the masks' costs: neither a quarter of all masks nor fewer are shown to hold."""
    pair = pair_of(mlp, (5,))
    costs = noise_stability(pair).details
    limit = max(0.0, sorted(costs["a"]["q"])[5], sorted(costs["b"]["q"])[5])
    result = noise_stability(pair, epsilon=limit)
    assert result.verdict == "inconclusive"
    assert "of 20 masks hold, 95 % interval [" in result.details["failure"][0]
    assert "need ≥ 0.25: " in result.details["failure"][0]
    assert not result.passed


def test_profile_dev_can_pass_and_cannot_fail() -> None:
    """Of 8 masks none may hold: the interval still reaches over a quarter. Nothing is explained unasked."""
    pair = pair_of(mlp, (5,))
    assert noise_stability(pair, epsilon=1e6, profile="dev").verdict == "pass"
    none = noise_stability(pair, epsilon=0.0, p=0.9, profile="dev")
    assert none.verdict in ("inconclusive", "pass")
    assert len(none.details["a"]["q"]) == 8
    assert (none.details["gaussian"], list(none.details["diagnostics"])) == (None, ["why"])


def test_seeds_are_repeatable() -> None:
    """One seed gives the same masks and numbers again, another one others."""
    pair = pair_of(mlp, (5,))
    first, again, other = (noise_stability(pair, seed=s).details["a"]["q"] for s in (3, 3, 4))
    assert first == again
    assert first != other


# Refusals


def test_a_network_without_units_to_drop_is_refused() -> None:
    """A norm across units sees the dropped ones: one clear line names the group, and what needs no units."""
    build = lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()  # noqa: E731  # a builder
    with pytest.raises(UnsupportedArchitecture, match=r"noise_stability: '0' is left whole: .*noise = 'gaussian'"):
        noise_stability(pair_of(build, (5,)))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epsilon": -1}, "epsilon = -1; expected a number"),
        ({"p": 1.0}, "p = 1.0"),
        ({"quantile": 0.0}, "quantile = 0.0"),
        ({"masks": 0}, "masks = 0"),
        ({"noise": "a lot"}, "noise = 'a lot'"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"profile": "nightly"}, "profile = 'nightly'"),
    ],
)
def test_settings_are_checked(setting: dict[str, object], said: str) -> None:
    """Each wrong setting is named with its value."""
    with pytest.raises(LmcError, match=said):
        noise_stability(pair_of(mlp, (5,)), **setting)  # type: ignore[arg-type]  # wrong on purpose
