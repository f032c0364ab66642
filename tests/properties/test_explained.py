"""Why a line fails: the layers that are enough, what goes with each unit group, at what cost, and in what words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks.barriers import loss_of, plant
from networks.small import seeded, small_batchnorm, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.diagnose.delta import Budget
from lmccheck.diagnose.explanation import Case, Lost, explanation
from lmccheck.evaluate.box import Box
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.segment import Segment
from lmccheck.properties.explained import LAYERS, AtWorst, told

DEPTHS = (8, 16, 32, 64)


ORDERS = torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([4, 2, 0, 1, 3])


def permuted() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """4-6-5-3 and a copy with both hidden layers' units in another order, and samples that both answer right."""
    a = {name: 4 * tensor for name, tensor in seeded(small_mlp, 2).items()}
    first, second = ORDERS
    b = {"0.weight": a["0.weight"][first], "0.bias": a["0.bias"][first], "2.weight": a["2.weight"][second][:, first]}
    b |= {"2.bias": a["2.bias"][second], "4.weight": a["4.weight"][:, second], "4.bias": a["4.bias"]}
    x = draw(3, 90, 4)
    module = small_mlp()
    module.load_state_dict(a)
    return a, b, x, module(x).argmax(1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def require_named(depth: int, seed: int, explain: bool | None) -> None:
    """Two planted layers are named, as minimal, within the budget."""
    planted = plant(depth, seed)
    found = lmccheck.linear_connectivity(planted.pair, align="none", limit=planted.limit, explain=explain)
    why = found.details["explanation"]
    assert found.verdict == "fail"
    assert why["minimal_layers"] == planted.planted
    assert why["layers"] == depth
    first = f"enough to fail: {', '.join(planted.planted)} alone, the other {depth - 2} layers as in a"
    assert any(line.startswith(first) for line in found.lines)


@pytest.mark.parametrize("depth", [DEPTHS[0], DEPTHS[-1]])
def test_the_two_planted_layers_are_named(depth: int) -> None:
    """By what a failure may cost by default, in nets of 8 and of 64 layers."""
    require_named(depth, 1, None)


@pytest.mark.slow
@pytest.mark.parametrize("explain", [None, True])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("seed", range(20))
def test_the_two_planted_layers_are_named_in_every_network(depth: int, seed: int, explain: bool | None) -> None:
    """Twenty of twenty of each depth."""
    require_named(depth, seed, explain)


def at_half(pair: lmccheck.ModelPair) -> AtWorst:
    """The unaligned line at t = 1/2."""
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    ends = [evaluator.endpoint(theta, "end", "end").losses for theta in (pair.theta_a, pair.theta_b)]
    return AtWorst(Segment(evaluator, pair.theta_a, pair.theta_b, "bn"), 0.5, (ends[0], ends[1]))


def test_no_budget_names_wrong_layers() -> None:
    """What is called minimal is what was planted, whatever the budget; text and data say where it ran out."""
    planted = plant(16, 2)
    at = at_half(planted.pair)
    outcomes = set()
    for most in range(24):
        budget = Budget(most)
        exchange = at.exchange(99.0, budget)
        lost = Lost(planted.pair.data, at.ends[0], {"a": at.ends[0]})
        found = explanation(Case(exchange, "a", planted.limit, (), {}, budget), lost)
        assert budget.used == found["evaluations"] <= most
        assert found["minimal_layers"] in ([], planted.planted)
        assert set(planted.planted) <= set(found["breaking_layers"]) or not found["breaking_layers"]
        if found["breaking_layers"] and not found["minimal_layers"]:
            assert "not measured: whether fewer layers are enough" in found["budget"]
            assert told(found)[0].endswith("explain = true measures more")
        outcomes.add(bool(found["minimal_layers"]))
    assert outcomes == {False, True}


def each_loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The cross entropy of each sample, (n,) float64, by a pass of its own."""
    module = small_mlp()
    module.load_state_dict(weights)
    with torch.no_grad():
        return nn.functional.cross_entropy(module(x), y, reduction="none").double()


def test_units_are_put_back_and_moved_as_by_hand() -> None:
    """4-6-5-3: the first group owns 0.weight, 0.bias and 2.weight, the second 2.weight, 2.bias and 4.weight."""
    a, b, x, y = permuted()
    b = {name: 0.8 * tensor for name, tensor in b.items()}  # so that the ends' losses differ
    pair = lmccheck.load_pair(a, b, model=small_mlp, data=(x, y), device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", limit=0.01, explain=True)
    t, value, base = found.details["worst_t"], found.value, found.details["explanation"]["from"]
    start = {"a": a, "b": b}[base]
    point = {n: (1 - t) * a[n] + t * b[n] for n in a}
    own, high = (loss_of(small_mlp, weights, x, y) for weights in (start, point))
    owned = [["0.weight", "0.bias", "2.weight"], ["2.weight", "2.bias", "4.weight"]]
    expected = []
    for names in owned:
        back = loss_of(small_mlp, {**point, **{n: start[n] for n in names}}, x, y)
        alone = loss_of(small_mlp, {**start, **{n: point[n] for n in names}}, x, y)
        expected.append(((high - back) / value, (alone - own) / value))
    groups = found.details["explanation"]["groups"]
    assert {group["kind"] for group in groups} == {"units"}
    assert sorted((g["share"], g["alone"]) for g in groups) == [pytest.approx(e, abs=1e-5) for e in sorted(expected)]
    assert [group["share"] for group in groups] == sorted((g["share"] for g in groups), reverse=True)
    assert any(line.lstrip().startswith("put back: with the units of ") for line in found.lines)
    at_t, at_a, at_b = (each_loss(weights, x, y) for weights in (point, a, b))
    lost = (at_t - (1 - t) * at_a - t * at_b).sort(descending=True)
    few = int((lost.values.cumsum(0) < lost.values.sum() / 2).sum()) + 1
    assert found.details["explanation"]["samples"]["indices"] == lost.indices[:few].tolist()


class Tied(nn.Module):
    """An embedding whose weight is also the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x)).relu() + self.embed(x))


def test_tied_tensors_are_moved_together() -> None:
    """An embedding and the head that has its weight are one layer; units of both are put back in both."""
    a = {name: 3 * tensor for name, tensor in seeded(Tied, 1).items()}
    b = {name: tensor[:, [3, 2, 1, 0]] if "inner" not in name else tensor for name, tensor in a.items()}
    b |= {"inner.weight": a["inner.weight"][[3, 2, 1, 0]][:, [3, 2, 1, 0]], "inner.bias": a["inner.bias"].flip(0)}
    x, module = torch.arange(40) % 5, Tied()
    module.load_state_dict(a)
    y = module(x).argmax(1)
    pair = lmccheck.load_pair(a, b, model=Tied, data=(x, y), device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", limit=0.01, explain=True)
    why, t = found.details["explanation"], found.details["worst_t"]
    assert why["layers"] == 2
    (group,) = why["groups"]  # the stream, which all weights hold units of
    point = {n: (1 - t) * a[n] + t * b[n] for n in a}
    high, own = (loss_of(Tied, weights, x, y) for weights in (point, a))
    assert group["share"] == pytest.approx((high - own) / found.value, abs=1e-5)
    assert group["alone"] == pytest.approx((high - own) / found.value, abs=1e-5)


def test_layers_with_batchnorm_are_moved_as_in_the_box() -> None:
    """Statistics are taken afresh where one layer is moved, as in the box between the endpoints; counters are none."""
    a, b = seeded(small_batchnorm, 1), seeded(small_batchnorm, 2)
    x, y = draw(4, 60, 1, 4, 4), torch.arange(60) % 3
    pair = lmccheck.load_pair(a, b, model=small_batchnorm, data=(x, y), calibration=(x[:40], y[:40]), device="cpu")
    at = at_half(pair)
    box, exchange = Box(pair), at.exchange(1.0, Budget(100))
    assert tuple(exchange.layers) == box.layers
    start = {layer: float(at.base) for layer in box.layers}  # at the better end
    for layer in box.layers:
        alone, without = {**start, layer: 0.5}, {**dict.fromkeys(start, 0.5), layer: start[layer]}
        assert exchange.with_layers([layer]) == pytest.approx(box.loss(alone) - at.chord, abs=1e-9)
        assert exchange.without_layers([layer]) == pytest.approx(box.loss(without) - at.chord, abs=1e-9)


def failing(**settings: Any) -> lmccheck.Result:
    a, b, x, y = permuted()
    return lmccheck.linear_connectivity(
        lmccheck.load_pair(a, b, model=small_mlp, data=(x, y), device="cpu"),
        **{"align": "none", "limit": 0.01, "points": 5, **settings},
    )


def test_what_explaining_costs() -> None:
    """Nothing of a pass; of a failure half of what it cost with its layers, and eight at least; in dev nothing more."""
    green, off = failing(limit=99), failing(explain=False)
    assert "explanation" not in green.details
    own = off.evaluations - 3  # three layers, each moved once
    assert green.evaluations == own
    assert failing(profile="dev").evaluations <= own
    red = failing(points=101)
    base = failing(points=101, explain=False).evaluations
    assert red.evaluations <= base + (base + LAYERS) // 2
    found = failing()
    why = found.details["explanation"]
    assert why["evaluations"] == found.evaluations - own
    assert why["budget"].startswith(f"{why['evaluations']} of at most {LAYERS + (own + LAYERS) // 2} evaluations")


def test_a_pass_is_explained_where_that_is_asked() -> None:
    """What carries most stands in the notes; no layers break anything."""
    found = failing(limit=99, explain=True)
    why = found.details["explanation"]
    assert found.verdict == "pass"
    assert why["minimal_layers"] == why["breaking_layers"] == []
    assert len(why["groups"]) == 2
    assert any(note.startswith("put back: with the units of ") for note in found.notes)
    assert any(note.startswith("samples:") for note in found.notes)


def test_the_worst_part_of_the_samples_is_explained() -> None:
    """Told apart by class, what is measured is the worst class's: samples are of it, and shares of its barrier."""
    found = failing(by="class")
    worst = found.details["worst_data"].removeprefix("class ")
    samples = found.details["explanation"]["samples"]
    a, b, x, y = permuted()
    t, own = found.details["worst_t"], y == int(worst)
    moved = {n: (1 - t) * a[n] + t * b[n] if n.startswith("4") else a[n] for n in a}
    cost = float((each_loss(moved, x, y) - each_loss(a, x, y))[own].mean())
    assert found.details["layers"]["costs"]["4"] == pytest.approx(cost, abs=1e-6)
    assert samples["of"] == int((y == int(worst)).sum()) < 90
    assert set(samples["classes"]) == {worst}
    assert all(int(y[index]) == int(worst) for index in samples["indices"])
    assert found.details["explanation"]["minimal_layers"]


def test_the_worst_pair_of_a_set_is_explained() -> None:
    """As the line of its two models is, by name; of the mean of all nothing is."""
    a, b, x, y = permuted()
    near = {name: tensor + 0.001 for name, tensor in a.items()}
    group = lmccheck.load_set([a, near, b], model=small_mlp, data=(x, y), device="cpu")
    found = lmccheck.set_connectivity(group, align="none", limit=0.01)
    why, names = found.details["explanation"], found.details["worst_pair"]
    i, j = (group.names.index(name) for name in names)
    alone = lmccheck.linear_connectivity(group.pair(i, j), align="none", limit=0.01, points=5, profile="ci")
    assert why["from"] in names
    assert why["samples"]["of"] == 90
    assert why["parent"] in (*names, None)
    assert len(why["groups"]) == 2
    assert alone.details["explanation"]["layers"] == why["layers"] == 3
    assert any(line.lstrip().startswith("samples:") for line in found.lines)
    with pytest.raises(lmccheck.LmcError, match="explain = true with over = 'mean'"):
        lmccheck.set_connectivity(group, align="none", over="mean", explain=True)
