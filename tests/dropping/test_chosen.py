"""Which candidate is taken, what dropping a level costs, and which units stand in for others: all by plain passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks.dropping import case, mlp
from networks.paths import bare_structure, random_state
from torch import Tensor, nn

from lmccheck.dropping import refit
from lmccheck.dropping.candidates import Candidates
from lmccheck.dropping.choose_units import SearchSettings, Spanning, scales
from lmccheck.dropping.costs import level_costs
from lmccheck.dropping.edit import keep_factors, multiplied
from lmccheck.dropping.refit import Refit
from lmccheck.dropping.search import find_dropped
from lmccheck.dropping.stability import fingerprint
from lmccheck.evaluate.regression import Moments
from lmccheck.evaluate.split import split
from lmccheck.symmetry.discover import derive


def losses_of(pair, weights: dict[str, Tensor], batches) -> Tensor:
    """Return per-sample losses by the module itself."""
    pair.module.load_state_dict(weights)
    pair.module.eval()
    with torch.no_grad():
        return torch.cat([F.cross_entropy(pair.module(b.inputs), b.targets, reduction="none") for b in batches])


def test_the_nearest_on_held_out_samples_is_taken() -> None:
    """Distances are means of |ℓ_i − ℓ| over them: the least of all, and the least of what is not refitted."""
    pair, structure = case("tanh")
    found = Candidates(pair.b, structure, SearchSettings(profile="dev"))
    data, held = found.parts.first(10**6)
    assert len(found.held) == len(held)
    assert torch.equal(found.held, held)
    own = losses_of(pair, pair.theta_b, data.batches)
    best, plain, facts = found.search(1)
    rows = facts["candidates"]
    assert facts["loss_full"] == pytest.approx(float(own[held].mean()), abs=1e-12)
    assert any(row["refitted"] for row in rows)
    for dropped, among in ((best, rows), (plain, [row for row in rows if not row["refitted"]])):
        losses = losses_of(pair, structure.stored(dropped.weights), data.batches)
        distance = float((losses - own)[held].abs().mean())
        assert dropped.facts["distance"] == pytest.approx(distance, abs=1e-12)
        assert dropped.facts["distance"] == min(row["distance"] for row in among)
        assert dropped.loss == pytest.approx(float(losses[held].mean()), abs=1e-12)
        assert abs(dropped.loss - facts["loss_full"]) <= distance + 1e-12
    assert len({row["distance"] for row in rows}) > 3  # there was something to choose from
    assert best.keep.keys() == plain.keep.keys() == {group for level in structure.levels[1:] for group in level}


def test_a_search_is_remembered_by_its_side_and_all_its_settings() -> None:
    """Another endpoint, share, profile, seed or way of fitting is searched for anew; the same is not."""
    pair, structure = case("relu")
    settings = [{}, {"keep": 0.3}, {"refit": False}, {"seed": 4}]
    searches = [
        find_dropped(pair.named_endpoints[side], structure, [2], SearchSettings(**{"profile": "dev", **some})).best[2]
        for side in "ab"
        for some in settings
    ]
    assert len({id(found) for found in searches}) == len(searches)
    assert [len(found.keep[structure.levels[2][0]]) for found in searches] == [4, 2, 4, 4] * 2
    assert [found.refitted for found in searches[2::4]] == [False, False]
    again = find_dropped(pair.a, structure, [2], SearchSettings(profile="dev")).best[2]
    assert again is searches[0]
    for found, theta in ((searches[2], pair.theta_a), (searches[6], pair.theta_b)):
        assert torch.equal(found.weights["0.weight"], theta["0.weight"])


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_level_costs_what_dropping_it_alone_adds(side: str) -> None:
    """Its units times units over kept ones or 0, all other levels as they are, over the loss of nothing dropped."""
    pair, structure = case("gelu")
    dropped = find_dropped(
        pair.named_endpoints[side], structure, [1], SearchSettings(refit=False, profile="dev")
    ).plain[1]
    theta = pair.theta_a if side == "a" else pair.theta_b
    assert pair.calibration is not None
    whole = float(losses_of(pair, theta, pair.calibration.batches).mean())
    expected = {}
    for (group,) in structure.levels[1:]:
        keep = {group: dropped.keep[group]}
        alone = multiplied(structure, theta, keep_factors(structure, keep, scales(structure, keep)))
        expected[group] = float(losses_of(pair, alone, pair.calibration.batches).mean()) - whole
    assert level_costs(pair.named_endpoints[side], structure, dropped) == pytest.approx(expected, abs=1e-6)
    assert len({round(cost, 6) for cost in expected.values()}) == 2
    assert level_costs(pair.measured_on(pair.data, None).named_endpoints[side], structure, dropped) == {}


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_no_common_scale_is_much_nearer_than_the_one_that_is_found(name: str) -> None:
    """Of 90 scales from 0.5 to 5, each tried by hand, none makes losses much nearer to those of θ."""
    pair, structure = case(name)
    assert pair.calibration is not None
    own = losses_of(pair, pair.theta_a, pair.calibration.batches)

    def distance(keep: Mapping[str, Tensor], scale: float) -> float:
        scaled = multiplied(structure, structure.canonical(pair.theta_a), keep_factors(structure, keep, scale))
        return float((losses_of(pair, scaled, pair.calibration.batches) - own).abs().mean())

    searches = (find_dropped(pair.a, structure, range(3), SearchSettings(refit=False, seed=s)) for s in range(2))
    every = [dropped for search in searches for dropped in search.plain.values()]
    found = [dropped for dropped in every if "one scale" in dropped.how]
    assert found
    for dropped in found:
        least = min(distance(dropped.keep, 0.5 + 4.5 * k / 89) for k in range(90))
        assert distance(dropped.keep, dropped.facts["scale"]) <= 1.02 * least + 0.01


def greedy(hidden: Tensor, read: Tensor, count: int) -> list[int]:
    """Return the units, one by one, whose addition with a constant leaves least of what is read; sorted."""

    def left(units: list[int]) -> float:
        columns = torch.cat([hidden[:, units], torch.ones(len(hidden), 1, dtype=torch.float64)], 1)
        return float((read - columns @ torch.linalg.lstsq(columns, read).solution).square().sum())

    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(min((u for u in range(hidden.shape[1]) if u not in chosen), key=lambda u: left([*chosen, u])))
    return sorted(chosen)


def test_spanning_units_are_those_of_greedy_least_squares() -> None:
    """At each step the unit whose addition, with a constant, leaves least of what the next layer reads."""
    net = mlp(nn.ReLU, [4, 9, 3])
    theta, structure = random_state(net, 5), bare_structure(net, 4)
    (group,) = structure.groups
    inputs = torch.randn(80, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hidden = torch.relu(inputs @ theta["0.weight"].T + theta["0.bias"]) + 3.0  # means far from zero say nothing
    read = hidden @ theta["2.weight"].T

    def seen(weight: str, of: str) -> Moments:
        moments = Moments()
        moments.add(hidden, hidden)
        return moments

    for count in range(1, 7):
        assert Spanning(structure, theta, seen)({group: count})[group].tolist() == greedy(hidden, read, count)


class TwoReaders(nn.Module):
    """Six hidden units that two layers read, of as many outputs together as are asked for."""

    def __init__(self, outputs: tuple[int, int]) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.one, self.other = (nn.Linear(6, count) for count in outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return torch.cat([self.one(h), self.other(h)], 1)


@pytest.mark.parametrize("outputs", [(1, 2), (5, 4)])
def test_spanning_units_are_those_for_all_that_read_them(outputs: tuple[int, int]) -> None:
    """Whether the layers that read a group give fewer numbers than it has or more: their outputs count together."""
    torch.manual_seed(1)
    net = TwoReaders(outputs).double().eval()
    structure = derive(net, (torch.randn(2, 4, dtype=torch.float64),)).droppable
    theta = structure.canonical(net.state_dict())
    (group,) = structure.groups
    hidden = net.up(torch.randn(80, 4, dtype=torch.float64)).relu().detach()
    read = hidden @ torch.cat([theta["one.weight"], theta["other.weight"]]).T
    moments = Moments()
    moments.add(hidden, hidden)
    for count in range(1, 5):
        found = Spanning(structure, theta, lambda weight, of: moments)({group: count})
        assert found[group].tolist() == greedy(hidden, read, count)


def test_a_layer_too_wide_to_refit_keeps_its_weights_times_one_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads over what of that is kept; its bias stays."""
    monkeypatch.setattr(refit, "REGRESSORS", 0)
    pair, structure = case("tanh")
    theta = structure.canonical(pair.theta_a)
    found = Refit(pair.network, structure, theta, split(pair.network, "tests", 200), torch.float64)
    first, second, third = structure.groups
    keep = {first: torch.tensor([0, 4, 8]), second: torch.arange(5), third: torch.arange(6)}
    state, facts = found(0, keep, polish=False)
    for name, group, factor in (("2", first, 9 / 3), ("4", second, 7 / 5), ("6", third, 8 / 6)):
        units = keep[group]
        assert torch.allclose(state[f"{name}.weight"][:, units], factor * theta[f"{name}.weight"][:, units], atol=1e-12)
        assert torch.equal(state[f"{name}.bias"], theta[f"{name}.bias"])
        assert "only: it reads" in facts["layers"][f"{name}.weight"]


def test_layers_that_read_all_their_units_are_left_alone() -> None:
    """From the last level on only the head is fitted; its fit is nearer in class probabilities, bias included."""
    pair, structure = case("relu")
    theta = structure.canonical(pair.theta_a)
    found = Refit(pair.network, structure, theta, split(pair.network, "tests", 200), torch.float64)
    keep = {structure.groups[2]: torch.arange(4)}
    plain, facts = found(2, keep, polish=False)
    assert set(facts["layers"]) == {"6.weight"}
    polished, facts = found(2, keep)
    for state in (plain, polished):
        assert {name for name in theta if not torch.equal(state[name], theta[name])} == {"6.weight", "6.bias"}
    assert facts["polished"]
    assert not torch.equal(polished["6.bias"], plain["6.bias"])


def test_all_calibration_samples_that_are_asked_for_are_used() -> None:
    """200 of 240: 150 to fit on and 50 held out."""
    pair, _ = case("relu")
    parts = split(pair.network, "tests", 200)
    assert [sum(batch.samples for batch in part) for part in (parts.fit, parts.held)] == [150, 50]


def test_a_refit_that_is_farther_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was fitted: the nearest of all wins."""
    pair, structure = case("relu")
    found = Candidates(pair.a, structure, SearchSettings(profile="dev"))
    far = found.search(2)[1]
    far = replace(far, how="far", refitted=True, facts={**far.facts, "distance": 1e9})
    monkeypatch.setattr(found, "_refits", lambda *_: [far])
    best, plain, _ = found.search(2)
    assert best is plain
    assert best.how != "far"


def test_a_fingerprint_knows_names() -> None:
    """The same numbers under another name, or under two names swapped, are another state."""
    one, two = torch.ones(2), torch.zeros(2)
    known = fingerprint({"a": one, "b": two})
    assert known == fingerprint({"b": two.clone(), "a": one.clone()})
    assert known != fingerprint({"a": one, "c": two})
    assert fingerprint({"a": one}) != fingerprint({"b": one})


@pytest.mark.parametrize(("read", "expected"), [([3, 6], [0, 1, 3, 6]), ([3], [0, 1, 2, 3]), ([], [0, 1, 2, 3])])
def test_units_that_explain_nothing_are_taken_in_their_order(read: list[int], expected: list[int]) -> None:
    """Two of eight vary: those of them that are read are taken, then the others as they stand."""
    hidden = torch.zeros(20, 8, dtype=torch.float64)
    hidden[:, [3, 6]] = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = mlp(nn.ReLU, [4, 8, 3])
    theta, structure = random_state(net, 5), bare_structure(net, 4)
    theta["2.weight"][:, [k for k in range(8) if k not in read]] = 0.0
    moments = Moments()
    moments.add(hidden, hidden)
    (group,) = structure.groups
    chosen = Spanning(structure, theta, lambda weight, of: moments)({group: 4})
    assert chosen[group].tolist() == expected


@pytest.mark.parametrize("scale", [1e3, 3e7])
def test_a_unit_of_far_larger_outputs_hides_no_others(scale: float) -> None:
    """One unit feeds an output of its own, a thousand or thirty million times the others: those are chosen as alone."""
    torch.manual_seed(3)
    hidden = torch.relu(torch.randn(90, 5, dtype=torch.float64) @ torch.randn(5, 8, dtype=torch.float64))
    own = torch.relu(torch.randn(90, dtype=torch.float64))
    out = torch.randn(2, 8, dtype=torch.float64)

    def chosen(with_own: bool, count: int) -> set[int]:
        net = mlp(nn.ReLU, [4, 8 + with_own, 2 + with_own])
        theta, structure = random_state(net, 5), bare_structure(net, 4)
        theta["2.weight"].zero_()
        theta["2.weight"][:2, :8] = out
        if with_own:
            theta["2.weight"][2, 8] = scale
        rows = torch.cat([hidden, own[:, None]], 1)[:, : 8 + with_own]
        moments = Moments()
        moments.add(rows, rows)
        (group,) = structure.groups
        return set(Spanning(structure, theta, lambda weight, of: moments)({group: count})[group].tolist())

    assert chosen(True, 5) == chosen(False, 4) | {8}
