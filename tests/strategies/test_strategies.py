"""Strategies: what is drawn, to what it shrinks, and its loss, against networks built by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, find, given, seed, settings
from networks.planted import planted
from networks.small import perceptron, seeded, small_mlp
from networks.switches import hill, switches
from torch import Tensor

import lmccheck
from lmccheck import strategies
from lmccheck.errors import LmcError
from lmccheck.network.model_set import load_set
from lmccheck.strategies import DroppedUnits, PermutedUnits, Rows, WeightNoise, height, loss
from lmccheck.strategies.draws import drawn_coefficients
from lmccheck.strategies.dyadic import beside_half, simplicity
from lmccheck.strategies.losses import Measurements

QUIET = settings(max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(QUIET, max_examples=10)


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(40, 4), torch.randint(0, 3, (40,))


@pytest.fixture(scope="module")
def pair() -> lmccheck.ModelPair:
    return lmccheck.load_pair(*(seeded(small_mlp, k) for k in (0, 1)), model=small_mlp, data=rows(), name="p")


@pytest.fixture(scope="module")
def models() -> Any:
    return load_set([seeded(small_mlp, k) for k in range(3)], model=small_mlp, data=rows(), name="three")


def plain_loss(weights: dict[str, Tensor]) -> float:
    network = small_mlp()
    network.load_state_dict(weights)
    return F.cross_entropy(network(rows()[0]), rows()[1]).item()


def smallest(strategy: Any, condition: Callable[[Any], bool] = lambda value: True) -> Any:
    return find(strategy, condition, settings=QUIET)


def test_t_is_a_neighbour_on_every_level() -> None:
    """The multiples of 2^−level on either side of a number, of which one is the number where it is such a multiple."""
    for level, distance, below in product(range(1, 7), range(33), (False, True)):
        t = Fraction(1, 2) + Fraction(distance, 64) * (-1 if below else 1)
        near, far = (Fraction(beside_half(distance, 6, level, away=away, below=below)) for away in (False, True))
        step = Fraction(1, 2**level)
        assert near % step == far % step == 0
        assert min(near, far) <= t <= max(near, far)
        assert abs(far - near) == (0 if t % step == 0 else step)
        assert 0 <= far <= 1


def test_a_half_is_the_simplest_number() -> None:
    """Then whole numbers, then by the denominator."""
    assert sorted([0.75, 0.125, 1.0, 0.0, 0.5, 0.25], key=simplicity) == [0.5, 0.0, 1.0, 0.25, 0.75, 0.125]


def test_t_shrinks_to_a_half_and_then_to_the_simplest() -> None:
    """By its denominator, the smaller of two."""
    assert smallest(strategies.ts()) == 0.5
    assert smallest(strategies.ts(), lambda t: t > 0.6) == 1.0
    assert smallest(strategies.ts(), lambda t: 0.1 < t < 0.45) == 0.25
    assert smallest(strategies.ts(), lambda t: 0.55 < t < 0.7) == 0.625


def test_coefficients_shrink_to_the_fewest_layers(pair: lmccheck.ModelPair) -> None:
    """What does no harm is left out; nothing at all is the simplest."""
    drawn = strategies.coefficients(pair)
    assert smallest(drawn) == {}
    assert smallest(drawn, lambda c: c.get("0", 0) > 0.3 and c.get("4", 0) > 0.6) == {"0": 0.5, "4": 1.0}
    assert smallest(strategies.coefficients(pair, layers=["2"]), bool) == {"2": 0.5}


@settings(QUIET, max_examples=50)
@given(c=strategies.coefficients(switches(4, lambda c: 1e-3 + c.sum())))
def test_coefficients_are_fine_dyadic_numbers(c: dict[str, float]) -> None:
    """Of layers that differ, each above 0."""
    assert set(c) <= {f"layers.{k}" for k in range(4)}
    assert all(0 < value <= 1 and (value * 1024).is_integer() for value in c.values())


def test_zeros_are_dropped() -> None:
    """A layer that stays θ_A's is not named, be it out or in with a coefficient of 0."""
    choices = iter((False, True, 0.0, True, 0.5))
    assert drawn_coefficients(lambda _: next(choices), ["a", "b", "c"]) == {"c": 0.5}


@pytest.mark.parametrize("number", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))])
def test_a_shrunk_example_is_minimal(number: int) -> None:
    """Of what Hypothesis shrinks to, no layer can be left out, and none of its numbers be simpler: all are tried."""
    generator = torch.Generator().manual_seed(number)
    chosen = torch.randperm(5, generator=generator)[:2].tolist()
    places = (0.3 + 0.4 * torch.rand(5, generator=generator)).tolist()

    def formula(c: Tensor) -> Tensor:
        return 1e-3 + hill(c[chosen[0]], places[chosen[0]], 0.4) * hill(c[chosen[1]], places[chosen[1]], 0.4)

    on = switches(5, formula)
    found = smallest(strategies.coefficients(on), lambda c: height(on, c) > 0.4)
    assert sorted(found) == sorted(f"layers.{k}" for k in chosen)
    eighths = [k / 8 for k in range(9)]
    simpler = ([x for x in eighths if not x or simplicity(x)[0] < simplicity(own)[0]] for own in found.values())
    for values in product(*([*options, own] for options, own in zip(simpler, found.values(), strict=True))):
        point = dict(zip(found, values, strict=True))
        assert point == found or height(on, point) <= 0.4


def test_permutations_are_members_and_shrink_to_the_identity(pair: lmccheck.ModelPair) -> None:
    """The loss of b permuted is b's; of those that move a unit one swap is the simplest."""
    assert smallest(strategies.permutations(pair)) == PermutedUnits()
    moved = smallest(strategies.permutations(pair), lambda p: bool(p.swaps))
    assert moved == PermutedUnits((("0", 0, 1),))
    own = plain_loss(pair.theta_b)

    @FEW
    @given(strategies.permutations(pair))
    def look(drawn: PermutedUnits) -> None:
        assert loss(pair, drawn, end="b") == pytest.approx(own, abs=1e-6)

    look()


def test_permutations_of_heads_are_members_too() -> None:
    """Units inside of units: each copy by itself."""
    on = planted("transformer")[0]

    @settings(FEW, max_examples=10)
    @given(strategies.permutations(on))
    def look(drawn: PermutedUnits) -> None:
        assert abs(height(on, drawn)) <= 1e-9 * (1 + loss(on, PermutedUnits()))

    look()
    within = next(group.name for group in on.network.spec.groups if group.within)
    found = smallest(strategies.permutations(on, groups=[within]), lambda p: bool(p.swaps))
    assert found.swaps == ((within, 0, 0, 1),)


def test_dropped_units_lose_what_a_network_without_them_loses(pair: lmccheck.ModelPair) -> None:
    """Their outgoing weights are zero, the others' are divided by the kept share."""
    weights = {name: value.clone() for name, value in pair.theta_a.items()}
    weights["2.weight"] *= 6 / 4
    weights["2.weight"][:, [1, 3]] = 0
    assert loss(pair, DroppedUnits({"0": (1, 3)})) == pytest.approx(plain_loss(weights), abs=1e-6)
    for end, theta in (("b", pair.theta_b), ("a", pair.theta_a)):
        assert loss(pair, DroppedUnits(), end=end) == pytest.approx(plain_loss(theta), abs=1e-6)


@pytest.mark.slow
def test_dropped_units_shrink_to_the_fewest(pair: lmccheck.ModelPair) -> None:
    """To those that do the harm, wherever they are."""
    drawn = strategies.dropout_masks(pair)
    assert smallest(drawn) == DroppedUnits({})
    found = smallest(drawn, lambda d: 3 in d.units.get("0", ()) and 1 in d.units.get("2", ()))
    assert found == DroppedUnits({"0": (3,), "2": (1,)})


def test_one_unit_of_a_group_always_stays(pair: lmccheck.ModelPair) -> None:
    """However many are dropped."""
    counts = set()

    @settings(QUIET, max_examples=40)
    @given(strategies.dropout_masks(pair, groups=["2"], rate=15 / 16))
    def look(drawn: DroppedUnits) -> None:
        counts.add(len(drawn.units.get("2", ())))

    look()
    assert max(counts) == 4


def test_many_units_are_dropped_in_blocks() -> None:
    """So that a wide network can be drawn for; about half of its units go."""
    build = lambda: perceptron(4, 900, 3)  # noqa: E731 - a builder
    on = lmccheck.load_pair(*(seeded(build, k) for k in (0, 1)), model=build, data=rows())
    shares = []

    @FEW
    @given(strategies.dropout_masks(on))
    def look(drawn: DroppedUnits) -> None:
        shares.append(len(drawn.units.get("0", ())) / 900)

    look()
    assert any(0.3 < share < 0.7 for share in shares)


def test_rows_shrink_to_the_fewest(pair: lmccheck.ModelPair) -> None:
    """And to the first; their loss is the mean over them."""
    assert smallest(strategies.batches(pair)) == Rows((0,))
    assert smallest(strategies.batches(pair), lambda r: 7 in r.rows and len(r.rows) > 1) == Rows((0, 7))
    network = small_mlp()
    network.load_state_dict(pair.theta_b)
    x, y = rows()
    expected = F.cross_entropy(network(x[[0, 7]]), y[[0, 7]]).item()
    assert loss(pair, Rows((0, 7)), end="b") == pytest.approx(expected, abs=1e-6)
    assert smallest(strategies.batches(pair, most=2), lambda r: len(r.rows) == 2) == Rows((0, 1))


def test_noise_has_the_size_that_is_said(pair: lmccheck.ModelPair) -> None:
    """Relative to each parameter's norm, by its seed; the smallest that does harm is the simplest."""
    from lmccheck.strategies.losses import noisy

    names = {name: name for name in pair.theta_a}
    found, again = (noisy(pair.theta_a, WeightNoise(0.25, seed), names, set(names)) for seed in (1, 2))
    for name, value in pair.theta_a.items():
        assert float((found[name] - value).norm() / value.norm()) == pytest.approx(0.25, rel=1e-5)
        assert not torch.equal(found[name], again[name])
    assert loss(pair, WeightNoise(0.25, 1)) == pytest.approx(
        plain_loss({n: v.float() for n, v in found.items()}), abs=1e-6
    )
    assert smallest(strategies.noise(pair)) == WeightNoise(0.0, 0)
    assert smallest(strategies.noise(pair, most=1.0), lambda n: n.size >= 0.3) == WeightNoise(20 / 64, 0)


def test_merge_weights_shrink_to_equal_ones(models: Any) -> None:
    """They sum to 1; the loss is that of the weighted mean."""
    drawn = strategies.merge_weights(models)
    names = list(models.names)
    assert smallest(drawn) == dict.fromkeys(names, 1 / 3)
    without = smallest(drawn, lambda w: names[0] not in w)
    assert without == dict.fromkeys(names[1:], 0.5)
    mean = {n: 0.25 * v + 0.75 * models.thetas[2][n] for n, v in models.thetas[0].items()}
    assert loss(models, {names[0]: 0.25, names[2]: 0.75}) == pytest.approx(plain_loss(mean), abs=1e-6)

    @FEW
    @given(drawn)
    def look(weights: dict[str, float]) -> None:
        assert math.isclose(sum(weights.values()), 1.0)
        assert all(weight > 0 for weight in weights.values())

    look()


NAMES = ("ts", "coefficients", "permutations", "dropout_masks", "batches", "noise", "merge_weights")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_shows_itself_as_code_on_one_line(name: str, pair: lmccheck.ModelPair) -> None:
    """Pasted, it is the same value, and has the same loss, which is measured once."""
    passes = []

    @FEW
    @given(getattr(strategies, name)(pair))
    def look(drawn: Any) -> None:
        text = repr(drawn)
        assert "\n" not in text
        pasted = eval(text, vars(strategies))
        assert pasted == drawn
        first = loss(pair, drawn)
        evaluator = pair.once(Measurements).evaluator
        before = evaluator.evaluations
        assert loss(pair, pasted) == first
        passes.append(evaluator.evaluations - before)

    look()
    assert set(passes) == {0}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p, m: strategies.coefficients(m), "coefficients: got set three, expected a pair, or the name of"),
        (lambda p, m: strategies.ts(m), "ts: got set three, expected a pair"),
        (lambda p, m: strategies.merge_weights(3), "merge_weights: got int, expected a pair or a set or a merge"),
        (lambda p, m: strategies.coefficients(p, per="tensor"), "coefficients: per = 'tensor'; expected 'layer'"),
        (lambda p, m: strategies.ts(bits=0), "ts: bits = 0; expected a whole number from 1 to 20"),
        (lambda p, m: strategies.dropout_masks(p, rate=1), "dropout_masks: rate = 1; expected a number from 1/16"),
        (lambda p, m: strategies.batches(p, most=0), "batches: most = 0; expected a whole number above 0"),
        (lambda p, m: strategies.noise(p, most=-1), "noise: most = -1; expected a number above 0"),
        (lambda p, m: strategies.coefficients("lmc_pair").example(), "a fixture's name is known in a pytest test only"),
        (lambda p, m: strategies.coefficients(p, layers=["9"]).example(), r"pair p: layer '9'; expected some of \['0'"),
        (lambda p, m: strategies.permutations(p, groups=["9"]).example(), "unit group '9'; expected some of"),
        (lambda p, m: loss(m, 0.5), "set three: t = 0.5, but there is no one line in it; mend: name a pair"),
        (lambda p, m: loss(p, 1.5), "pair p: t = 1.5; expected a number from 0 to 1"),
        (lambda p, m: loss(p, "x"), "pair p: got str, expected a number"),
        (lambda p, m: loss(m, {"x": 1.0}), "set three: got {'x': 1.0}, expected weights that sum to 1"),
        (lambda p, m: loss(p, Rows(), end="c"), r"pair p: end = 'c'; expected one of \['a', 'b'\]"),
        (lambda p, m: loss(3, 0.5), "loss: got int, expected a pair, a single model, a set or a merge"),
        (lambda p, m: height(p, Rows()), "pair p: rows have no loss to be above"),
        (lambda p, m: loss(p, DroppedUnits({"7": (0,)})), "pair p: unit group '7'; expected one of"),
        (lambda p, m: loss(p, DroppedUnits({"2": tuple(range(5))})), "expected some of 0 to 4, not all"),
        (lambda p, m: loss(p, PermutedUnits((("7", 0, 1),))), "permutation: unit group '7'; expected one of"),
    ],
)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_what_means_nothing_is_refused(call: Any, said: str, pair: lmccheck.ModelPair, models: Any) -> None:
    """In one line: what, got, expected."""
    with pytest.raises(LmcError, match=said) as caught:
        call(pair, models)
    assert "\n" not in str(caught.value)


def worst_t(on: lmccheck.ModelPair, number: int) -> tuple[float, float]:
    seen: dict[float, float] = {}

    @settings(QUIET, max_examples=100)
    @seed(number)
    @given(strategies.ts(on))
    def look(t: float) -> None:
        seen[t] = strategies.toward_worst(height(on, t))

    look()
    place = max(seen, key=lambda t: seen[t])
    return place, seen[place]


def trained(number: int) -> lmccheck.ModelPair:
    """Two perceptrons that were trained from different starts on one teacher's labels."""
    torch.manual_seed(number)
    x = torch.randn(200, 4)
    y = (x @ torch.randn(4, 3)).argmax(1)
    states = []
    for start in (0, 1):
        torch.manual_seed(1000 + 2 * number + start)
        network = perceptron(4, 12, 10, 3)
        steps = torch.optim.Adam(network.parameters(), 0.03)
        for _ in range(60):
            steps.zero_grad()
            F.cross_entropy(network(x), y).backward()
            steps.step()
        states.append({name: value.detach().clone() for name, value in network.state_dict().items()})
    return lmccheck.load_pair(*states, model=lambda: perceptron(4, 12, 10, 3), data=(x, y))


@pytest.mark.parametrize("numbers", [range(1), pytest.param(range(20), marks=pytest.mark.slow)])
def test_the_worst_t_is_that_of_a_dense_grid(numbers: range) -> None:
    """In height and place to 1e-2, in 19 of 20 pairs."""
    near = 0
    for number in numbers:
        on = trained(number)
        place, found = worst_t(on, number)
        grid = {k / 200: height(on, k / 200) for k in range(201)}
        dense = max(grid, key=lambda t: grid[t])
        near += found >= grid[dense] - 1e-2 and abs(place - dense) <= 1e-2
    assert near >= 0.95 * len(numbers)
