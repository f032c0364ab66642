"""Dropout stability: dropped networks against forward passes written by hand, refits against dense least squares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from path_cases import SwiGLU, stream
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.choose_units import counts, factors, merged_twins, random_keep, scales, spanning_keep
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import keep_factors, multiplied
from lmccheck.dropping.refit import Refit
from lmccheck.dropping.search import find_dropped
from lmccheck.dropping.stability import excesses, load_dropped, save_dropped
from lmccheck.errors import CheckpointError, LmcError, SourceError, UnsupportedArchitecture
from lmccheck.evaluate.convex import polished_head
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.layer_data import unrolled
from lmccheck.evaluate.regression import Moments, chosen_ridge, ridge
from lmccheck.evaluate.split import split
from lmccheck.properties.dropout_stability import dropout_stability
from lmccheck.properties.low_loss_path import structure_for
from lmccheck.symmetry.structure import Structure

FIXTURES = Path(__file__).parents[2] / "fixtures"
WIDTHS = [5, 9, 7, 8, 3]


def mlp(activation: type[nn.Module] = nn.ReLU, widths: list[int] | None = None) -> nn.Module:
    """Linear layers with biases and an activation between them."""
    widths = widths or WIDTHS
    layers: list[nn.Module] = []
    for read, made in pairwise(widths):
        layers += [nn.Linear(read, made), activation()]
    return nn.Sequential(*layers[:-1]).double()


def cnn() -> nn.Module:
    """Convolutions without bias before BatchNorm, one with, stride, pooling, flatten, linear."""
    layers = [nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()]
    layers += [nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


Build = Callable[[], nn.Module]
CASES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "relu": (mlp, (5,)),
    "tanh": (lambda: mlp(nn.Tanh), (5,)),
    "gelu": (lambda: mlp(nn.GELU), (5,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (5,)),
    "width_one": (lambda: mlp(widths=[5, 7, 1, 5, 3]), (5,)),
    "cnn": (cnn, (2, 8, 8)),
    "swiglu": (lambda: SwiGLU().double(), (5,)),
    "stream": (lambda: stream().double(), (3, 6, 6)),
}


def state(build: Build, seed: int) -> dict[str, Tensor]:
    """Return seeded weights, larger than fresh ones, with statistics of BatchNorm perturbed."""
    torch.manual_seed(seed)
    found = {}
    for name, tensor in build().state_dict().items():
        moved = tensor + 0.3 * torch.rand_like(tensor) if "running" in name else tensor * 1.7
        found[name] = moved if tensor.is_floating_point() else tensor
    return found


def pair_of(build: Build, shape: tuple[int, ...], a: Mapping[str, Tensor] | None = None) -> lmccheck.ModelPair:
    """Return a pair of two seeds; targets are what θ_A finds most likely, mostly."""
    theta_a = dict(a) if a is not None else state(build, 0)
    module = build()
    module.load_state_dict(theta_a)
    module.eval()
    torch.manual_seed(3)
    data = {}
    for name, samples in (("data", 60), ("calibration", 240)):
        inputs = torch.randn(samples, *shape, dtype=torch.float64)
        noise = torch.randn(samples, 3, dtype=torch.float64)
        data[name] = (inputs, (module(inputs).detach() + 0.3 * noise).argmax(1))
    return lmccheck.load_pair(theta_a, state(build, 1), model=module, **data)


_PAIRS: dict[str, lmccheck.ModelPair] = {}


def case(name: str) -> tuple[lmccheck.ModelPair, Structure]:
    """Return a pair of CASES, made once, and its structure."""
    if name not in _PAIRS:
        _PAIRS[name] = pair_of(*CASES[name])
    return _PAIRS[name], structure_for(_PAIRS[name], "tests")


def loss_of(pair: lmccheck.ModelPair, structure: Structure, weights: Mapping[str, Tensor]) -> float:
    """Return the loss on the evaluation data by the module itself."""
    pair.module.load_state_dict(structure.stored(weights))
    pair.module.eval()
    (batch,) = pair.data.batches
    return float(F.cross_entropy(pair.module(batch.inputs).detach(), batch.targets))


def dropped_columns(structure: Structure, dropped: Dropped) -> list[Tensor]:
    """Return the outgoing weights of all units that were dropped."""
    return [
        dropped.weights[name].index_select(
            block.dim, block.of(structure.others(block.group, dropped.keep[block.group]))
        )
        for name, blocks in structure.columns.items()
        for block in blocks
        if block.group in dropped.keep
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("refit", [True, False])
def test_what_is_found_is_a_dropped_network(name: str, refit: bool) -> None:
    """Exactly ⌊keep·h⌋ units per group are read, other columns are 0, rows up to the level are those of θ."""
    pair, structure = case(name)
    levels = range(len(structure.levels))
    search = find_dropped(pair, structure, "a", levels, refit=refit, profile="dev")
    theta = structure.canonical(pair.theta_a)
    for level in levels:
        for dropped in (search.best[level], search.plain[level]):
            groups = [group for several in structure.levels[level:] for group in several]
            assert list(dropped.keep) == groups
            for group, units in dropped.keep.items():
                assert len(units) == structure.sizes[group] // 2
                assert units.dtype == torch.int64
                assert torch.equal(units, units.unique())
            assert all(int(column.count_nonzero()) == 0 for column in dropped_columns(structure, dropped))
            assert all(tensor.isfinite().all() for tensor in dropped.weights.values())
            assert dropped.weights.keys() == theta.keys()
            if structure.sequential:
                kept = {group for several in structure.levels[: level + 1] for group in several}
                for tensor, blocks in structure.rows.items():
                    for block in blocks:
                        if block.group in kept and tensor not in structure.columns:
                            assert torch.equal(dropped.weights[tensor], theta[tensor]), tensor
        assert not search.plain[level].refitted
        assert search.best[level].facts["distance"] <= search.plain[level].facts["distance"]
    json.dumps(search.facts)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "sigmoid", "width_one"])
def test_dropping_equals_a_masked_forward_pass(name: str) -> None:
    """L(θ_i) of columns times m is that of hidden values times m, biases and rows as they were (T5)."""
    pair, structure = case(name)
    (batch,) = pair.data.batches
    search = find_dropped(pair, structure, "a", range(3), refit=False, profile="dev")
    for level, dropped in search.plain.items():
        scale = dropped.facts["scale"]
        multipliers = factors(structure, [(dropped.keep, scale)])
        x, hidden = batch.inputs, 0
        pair.module.load_state_dict(pair.theta_a)
        for layer in pair.module:
            x = layer(x)
            if not isinstance(layer, nn.Linear):
                if hidden >= level:
                    x = x * multipliers[structure.levels[hidden][0]][0]
                hidden += 1
        assert float(F.cross_entropy(x.detach(), batch.targets)) == pytest.approx(
            loss_of(pair, structure, dropped.weights), abs=1e-12
        )


@pytest.mark.parametrize(("activation", "zero", "homogeneous"), [
    (nn.ReLU, True, True), (nn.Tanh, True, False), (nn.GELU, True, False), (nn.Sigmoid, False, False),
])  # fmt: skip
def test_other_ways_to_drop_units(activation: type[nn.Module], zero: bool, homogeneous: bool) -> None:
    """Rows and biases at zero do the same iff φ(0) = 0, rows and biases scaled iff φ is homogeneous; never without
    biases, which are two bugs of published code (T18)."""
    net = mlp(activation)
    pair = pair_of(lambda: mlp(activation), (5,))
    structure, theta = structure_for(pair, "tests"), pair.theta_a
    keep = {group: torch.arange(structure.sizes[group] // 2) for group in structure.groups}
    x = torch.randn(50, 5, dtype=torch.float64)

    def outputs(weights: Mapping[str, Tensor]) -> Tensor:
        net.load_state_dict(weights)
        return net(x).detach()

    def rows(factor: float, dropped: float, biases: bool) -> dict[str, Tensor]:
        """Rows of kept units times ``factor``, of others times ``dropped``; biases too or as they are."""
        changed = dict(theta)
        for k, group in enumerate(structure.groups):
            line = torch.full((structure.sizes[group],), dropped, dtype=torch.float64)
            line[keep[group]] = factor
            changed[f"{2 * k}.weight"] = theta[f"{2 * k}.weight"] * line[:, None]
            if biases:
                changed[f"{2 * k}.bias"] = theta[f"{2 * k}.bias"] * line
        return changed

    columns = outputs(multiplied(structure, theta, keep_factors(structure, keep)))
    assert bool(torch.allclose(outputs(rows(1.0, 0.0, True)), columns, atol=1e-12)) == zero
    assert not torch.allclose(outputs(rows(1.0, 0.0, False)), columns, atol=1e-3)
    scaled = outputs(multiplied(structure, theta, keep_factors(structure, keep, 1.5)))
    both = multiplied(structure, rows(1.5, 1.5, True), keep_factors(structure, keep))
    assert bool(torch.allclose(outputs(both), scaled, atol=1e-12)) == homogeneous
    bug = multiplied(structure, rows(1.5, 1.5, False), keep_factors(structure, keep))
    assert not torch.allclose(outputs(bug), scaled, atol=1e-3)


def doubled(theta: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return an MLP's weights with every hidden unit twice, outgoing weights halved, units shuffled."""
    generator = torch.Generator().manual_seed(seed)
    result, before = {}, None
    for k in range(len(theta) // 2):
        weight, bias = theta[f"{2 * k}.weight"], theta[f"{2 * k}.bias"]
        if before is not None:
            weight = torch.cat([weight, weight], 1)[:, before] / 2
        if k < len(theta) // 2 - 1:
            before = torch.randperm(2 * len(weight), generator=generator)
            weight, bias = torch.cat([weight, weight])[before], torch.cat([bias, bias])[before]
        result[f"{2 * k}.weight"], result[f"{2 * k}.bias"] = weight.contiguous(), bias.contiguous()
    return result


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_a_network_of_twins_is_exactly_stable(activation: type[nn.Module]) -> None:
    """Every unit twice, outgoing weights halved: half of the units do what all did, and are found (T9)."""
    small, large = mlp(activation), [5, 18, 14, 16, 3]
    torch.manual_seed(0)
    twins = doubled({name: tensor * 1.7 for name, tensor in small.state_dict().items()}, 4)
    others = doubled({name: tensor * 1.3 for name, tensor in mlp(activation).state_dict().items()}, 5)
    pair = replace(pair_of(lambda: mlp(activation, large), (5,), twins), theta_b=others)
    result = dropout_stability(pair, epsilon=1e-12, profile="dev")
    assert result.passed
    assert max(abs(x) for row in result.details["epsilon"].values() for x in row) <= 1e-12
    assert any("twins" in note for note in result.details["notes"])
    for side in "ab":
        theta = pair.theta_a if side == "a" else pair.theta_b
        for dropped in result.witness.found[side].values():
            for group, units in dropped.keep.items():
                rows = torch.cat([theta[f"{group}.weight"], theta[f"{group}.bias"][:, None]], 1)
                assert len(rows[units].unique(dim=0)) == len(units) == len(rows) // 2


def test_twins_that_are_too_many_kinds_are_left_alone() -> None:
    """Where units are all different nothing is merged, and a share of 1 keeps everything exactly."""
    pair, structure = case("relu")
    theta = structure.canonical(pair.theta_a)
    assert merged_twins(structure, theta, counts(structure, 0.5)) is None
    whole = find_dropped(pair, structure, "a", [0], keep=1.0, profile="dev").best[0]
    assert loss_of(pair, structure, whole.weights) == pytest.approx(loss_of(pair, structure, theta), abs=1e-13)


def test_counts_of_kept_units() -> None:
    """⌊keep·h⌋ for odd widths and width 1, one share per group if wanted; random subsets hold exactly so many."""
    _, structure = case("width_one")
    groups = [group for several in structure.levels for group in several]
    assert [structure.sizes[group] for group in groups] == [7, 1, 5]
    assert [counts(structure, 0.5)[group] for group in groups] == [3, 0, 2]
    assert [counts(structure, {groups[0]: 0.3})[group] for group in groups] == [2, 1, 5]
    drawn = random_keep(structure, counts(structure, 0.5), torch.Generator().manual_seed(1))
    assert [len(drawn[group]) for group in groups] == [3, 0, 2]
    assert scales(structure, drawn)[groups[0]] == pytest.approx(7 / 3)
    for wrong in (1.5, -0.1, True, {"nothing": 0.5}):
        with pytest.raises(LmcError, match="keep"):
            counts(structure, wrong)


@pytest.mark.parametrize("constant", [True, False])
def test_ridge_is_dense_least_squares(constant: bool) -> None:
    """min ‖X·V + c − Z‖² + λ‖V − V₀‖² equals least squares on extended rows; residuals are those of the rows."""
    torch.manual_seed(0)
    x, z = torch.randn(40, 6).double() + 1, torch.randn(40, 3).double() - 2
    start, share = torch.randn(6, 3).double(), 0.03
    moments = Moments()
    for part in range(0, 40, 9):
        moments.add(x[part : part + 9], z[part : part + 9])
    weight, bias = ridge(moments, start, share, constant=constant)
    centred = x - x.mean(0) if constant else x
    level = share * float(centred.square().sum()) / 6
    one = torch.full((40, 1), float(constant), dtype=torch.float64)
    rows = torch.cat([torch.cat([x, one], 1), torch.cat([level**0.5 * torch.eye(6), torch.zeros(6, 1)], 1).double()])
    oracle = torch.linalg.lstsq(rows, torch.cat([z, level**0.5 * start]), driver="gelsd").solution
    assert torch.allclose(weight, oracle[:6], atol=1e-10)
    assert torch.allclose(bias, oracle[6], atol=1e-10)
    measured = (x @ weight + bias - z).square().sum(1).mean()
    assert moments.residual(weight, bias) == pytest.approx(float(measured), rel=1e-10)
    assert chosen_ridge(moments, moments, start, constant=constant, shares=(1.0, 1e-6))[2] == 1e-6


def test_ridge_of_regressors_that_say_nothing() -> None:
    """No regressors, or only zeros: the constant is the mean of the targets, and weights stay where they started."""
    z = torch.randn(20, 3).double()
    for width in (0, 4):
        moments, start = Moments(), torch.ones(width, 3).double()
        moments.add(torch.zeros(20, width), z)
        weight, bias = ridge(moments, start, 1e-6)
        assert torch.equal(weight, start)
        assert torch.allclose(bias, z.mean(0), atol=1e-14)


def test_a_refit_is_least_squares_layer_by_layer() -> None:
    """Each layer is fitted to what it gave in θ, on what it reads in the network that is already refitted."""
    pair, structure = case("tanh")
    theta, parts = structure.canonical(pair.theta_a), split(pair, "tests", 200)
    refit = Refit(pair, structure, theta, parts, torch.float64)
    keep = random_keep(structure, counts(structure, 0.5), torch.Generator().manual_seed(0))
    state, facts = refit(0, keep, polish=False)
    fit = torch.cat([batch.inputs for batch in parts.fit])
    now, original = fit, fit
    for k, group in enumerate([*structure.groups, None]):
        name = f"{2 * k}"
        given = original @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]
        if k:
            before = keep[structure.groups[k - 1]]
            outs = keep[group] if group is not None else torch.arange(3)
            x, start = now[:, before], theta[f"{name}.weight"][outs][:, before].T
            moments = Moments()
            moments.add(x, given[:, outs])
            weight, bias = ridge(moments, start, facts["layers"][f"{name}.weight"])
            assert torch.allclose(state[f"{name}.weight"][outs][:, before].T, weight, atol=1e-9)
            assert torch.allclose(state[f"{name}.bias"][outs], bias, atol=1e-9)
        now = (now @ state[f"{name}.weight"].T + state[f"{name}.bias"]).tanh()
        original = given.tanh()


@pytest.mark.parametrize("window", [(1, 0, 1), ([2, 1], [1, 2], [1, 1]), (2, 3, 2)])
def test_unrolled_windows_are_those_of_the_convolution(window: tuple[object, object, object]) -> None:
    """Windows times the flat kernel are the convolution, for strides, paddings and dilations, in 1 to 3 dimensions."""
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 9, 8).double(), torch.randn(4, 3, 3, 2).double()
    stride, padding, dilation = window
    rows = unrolled(x, kernel.shape[2:], window)
    flat = torch.einsum("nabckl,ockl->noab", rows, kernel)
    assert torch.allclose(flat, F.conv2d(x, kernel, None, stride, padding, dilation), atol=1e-12)
    if isinstance(padding, int):
        cube, solid = torch.randn(2, 3, 7, 8, 6).double(), torch.randn(4, 3, 3, 2, 1).double()
        deep = torch.einsum("nabcdklm,odklm->noabc", unrolled(cube, solid.shape[2:], window), solid)
        assert torch.allclose(deep, F.conv3d(cube, solid, None, stride, padding, dilation), atol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "swiglu", "stream", "relu"])
def test_a_refit_of_units_that_span_the_others_changes_nothing(name: str) -> None:
    """With all units kept a refit finds θ's function again: convolutions, norms, gates and streams are read rightly."""
    pair, structure = case(name)
    theta = structure.canonical(pair.theta_a)
    refit = Refit(pair, structure, theta, split(pair, "tests", 200), torch.float64)
    away = {n: t + (0.5 if n in structure.columns else 0.0) for n, t in theta.items() if t.is_floating_point()}
    refit.theta = {**theta, **away}  # where the fit starts, and what it writes into, are wrong
    state, facts = refit(0, structure.keep_all(), polish=False)
    assert set(facts["layers"]) == set(structure.columns)
    assert loss_of(pair, structure, state) == pytest.approx(loss_of(pair, structure, theta), abs=2e-3)


def test_a_constant_goes_into_the_norm_where_there_is_no_bias() -> None:
    """A convolution without bias before a BatchNorm: only the running mean takes it, and only of later levels."""
    pair, structure = case("cnn")
    theta = structure.canonical(pair.theta_a)
    refit = Refit(pair, structure, theta, split(pair, "tests", 200), torch.float64)
    keep = random_keep(structure, counts(structure, 0.5), torch.Generator().manual_seed(0))
    state, _ = refit(0, keep, polish=False)
    changed = {name for name in theta if not torch.equal(state[name], theta[name])}
    assert changed == {
        "4.weight", "5.running_mean", "7.weight", "7.bias", "10.weight", "10.bias", "12.weight", "12.bias"
    }  # fmt: skip
    dead = structure.others(structure.levels[1][0], keep[structure.levels[1][0]])
    assert torch.equal(state["5.running_mean"][dead], theta["5.running_mean"][dead])


def test_a_polished_head_is_nearer_to_the_original() -> None:
    """The head's KL to the original's class probabilities falls on held out rows; a perfect head is left alone."""
    torch.manual_seed(0)
    x, right = torch.randn(300, 6).double(), torch.randn(6, 4).double()
    rows = [(part, part @ right, k != 2) for k, part in enumerate(x.split(100))]
    zero = torch.zeros(4).double()
    found = polished_head(rows, 0.6 * right, zero)
    assert found is not None

    def divergence(weight: Tensor, bias: Tensor) -> float:
        seen, logits, _ = rows[2]
        said = (seen @ weight + bias).log_softmax(1)
        return float((logits.softmax(1) * (logits.log_softmax(1) - said)).sum(1).mean())

    assert divergence(*found) < divergence(0.6 * right, zero)
    assert polished_head(rows, right, zero) is None
    held = polished_head(rows, 0.6 * right, zero, free=False)
    assert held is not None
    assert torch.equal(held[1], zero)


def test_units_are_chosen_for_what_they_can_stand_in_for() -> None:
    """Of units that are combinations of a few, the few are kept: their refit loses nothing, a random one's does."""
    torch.manual_seed(0)
    build = lambda: mlp(nn.Identity, [6, 8, 3])  # noqa: E731  # linear: units are combinations of one another
    theta = build().state_dict()
    theta["0.weight"][4:] = torch.randn(4, 4).double() @ theta["0.weight"][:4]
    theta["0.weight"][[1, 6]] = theta["0.weight"][[6, 1]]
    pair = pair_of(build, (6,), theta)
    structure = structure_for(pair, "tests")
    canonical = structure.canonical(theta)
    refit = Refit(pair, structure, canonical, split(pair, "tests", 200), torch.float64)
    keep = spanning_keep(structure, canonical, {structure.groups[0]: 4}, refit.seen)
    rows = theta["0.weight"][keep[structure.groups[0]]]
    assert int(torch.linalg.matrix_rank(rows)) == 4
    state, _ = refit(0, keep, polish=False)
    assert loss_of(pair, structure, state) == pytest.approx(loss_of(pair, structure, canonical), abs=1e-4)


def test_a_search_repeats_itself() -> None:
    """The same seed finds the same weights, and a level's result does not depend on which others are asked for."""
    pair, structure = case("gelu")
    first = find_dropped(pair, structure, "b", [0, 1, 2], profile="dev")
    again = find_dropped(replace(pair, cache={}), structure, "b", [1], profile="dev")
    assert all(torch.equal(first.best[1].weights[n], t) for n, t in again.best[1].weights.items())
    assert first.facts["levels"][1] == again.facts["levels"][1]
    other = find_dropped(pair, structure, "b", [1], seed=1, profile="dev")
    assert other.facts["levels"][1]["random_losses"] != first.facts["levels"][1]["random_losses"]


@pytest.mark.parametrize(("net", "limit"), [("mlp", 0.005), ("cnn", 0.02)])
def test_fixtures_are_stable_at_half_their_width(net: str, limit: float, tmp_path: Path) -> None:
    """The shipped digits networks pass with refit, on images that nothing was fitted to; the witness says so again."""
    files = [FIXTURES / f"{net}-seed{k}.safetensors" for k in (0, 1)]
    data = {name: str(FIXTURES / f"digits-{part}.safetensors") for name, part in
            (("data", "test"), ("calibration", "train"))}  # fmt: skip
    pair = lmccheck.load_pair(*files, model=f"models:{net}", base=FIXTURES, **data)
    result = dropout_stability(pair, epsilon=limit, profile="dev")
    assert result.passed
    assert result.value == max(x for row in result.details["epsilon"].values() for x in row)
    assert result.value < max(x for row in result.details["epsilon_plain"].values() for x in row)
    json.dumps(result.details)
    structure = structure_for(pair, "tests")
    saved = save_dropped(result.witness, tmp_path / "witness.safetensors")
    assert result.witness.save(tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    fresh = replace(pair, cache={})
    again = excesses(Evaluator(fresh), structure, load_dropped(saved, fresh, structure))
    for side, levels in again.items():
        assert [levels[i] for i in range(len(levels))] == pytest.approx(result.details["epsilon"][side], abs=1e-6)


def test_a_witness_of_another_pair_is_refused(tmp_path: Path) -> None:
    """A witness belongs to the numbers it was made from; other files are no witness."""
    pair, structure = case("relu")
    path = dropout_stability(pair, profile="dev").witness.save(tmp_path / "w.safetensors")
    other = replace(pair, theta_b=pair.theta_a, cache={})
    with pytest.raises(CheckpointError, match="another b"):
        load_dropped(path, other, structure)
    with pytest.raises(CheckpointError, match="no witness"):
        load_dropped(FIXTURES / "mlp-seed0.safetensors", pair, structure)


def test_a_failure_says_what_was_searched() -> None:
    """Five lines: what, measured, where, worst and smallest, endpoints; and that a fail proves nothing."""
    pair, _ = case("cnn")
    result = dropout_stability(pair, epsilon=0.0, keep=0.2, profile="dev")
    assert result.verdict == "fail"
    lines = result.details["failure"]
    assert len(lines) == 5
    assert "not found within this budget (10 subsets, seed 0), which does not prove that there are none" in lines[0]
    worst = result.details["worst"]
    assert result.details["epsilon"][worst["side"]][worst["level"]] == worst["epsilon"] == result.value
    assert dropout_stability(pair, epsilon="10000%", keep=0.2, profile="dev").passed
    assert result.evaluations == 2 + sum(
        1 + (f["how"] != f["plain_how"]) for found in result.details["found"].values() for f in found
    )


def test_what_cannot_be_searched_is_refused() -> None:
    """No calibration data, norms across units, and options that make no sense are errors, never a verdict."""
    pair, structure = case("relu")
    with pytest.raises(SourceError, match="calibration"):
        dropout_stability(replace(pair, calibration=None, cache={}))
    with pytest.raises(SourceError, match="calibration"):
        find_dropped(replace(pair, calibration=None, cache={}), structure, "a", [0])
    for wrong in ({"epsilon": -1.0}, {"profile": "fast"}, {"seed": 0.5}, {"keep": 2.0}):
        with pytest.raises(LmcError, match=next(iter(wrong))):
            dropout_stability(pair, **wrong)
    with pytest.raises(LmcError, match="levels 0 to 2"):
        find_dropped(pair, structure, "a", [3])
    normed = lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()  # noqa: E731
    with pytest.raises(UnsupportedArchitecture, match=r"layer_norm|norm"):
        dropout_stability(pair_of(normed, (5,)))


def test_parts_of_the_calibration_data_share_no_sample() -> None:
    """A quarter is held out, all batches are of one size; a user's own batches are taken as they are."""
    pair, _ = case("relu")
    parts = split(pair, "tests", 200, seed=3)
    sizes = {batch.samples for batch in (*parts.fit, *parts.held)}
    assert len(sizes) == 1
    fit, held = (torch.cat([batch.inputs for batch in part]) for part in (parts.fit, parts.held))
    assert len(held) * 3 == len(fit)
    assert len(torch.cat([fit, held]).unique(dim=0)) == len(fit) + len(held) <= 200
    data, mask = parts.first(100)
    assert data.samples == len(mask)
    assert torch.equal(data.batches[0].inputs, parts.held[0].inputs)
    assert int(mask.sum()) == sum(b.samples for b in data.batches if any(b is h for h in parts.held))


@pytest.mark.parametrize("between", ["scaled", "cumulated"])
def test_every_hidden_layer_counts(between: str) -> None:
    """A hidden layer whose outputs are no units is an UnsupportedArchitecture, never left out without a word."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 1), nn.Linear(1, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x)
            hidden = hidden * 1.5 if between == "scaled" else hidden.cumsum(1)
            return self.head(torch.relu(self.second(hidden)))

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 6, generator=generator), torch.arange(32) % 3
    pair = lmccheck.load_pair(Net().state_dict(), Net().state_dict(), model=Net, data=data, calibration=data)
    for measured in (lmccheck.dropout_stability, lmccheck.noise_stability):
        with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"outputs of tensor 'first.weight' belong"):
            measured(pair)


@pytest.mark.parametrize("ending", ["log_softmax", "scaled", "two heads"])
def test_no_last_layer_is_needed(ending: str) -> None:
    """Dropout and noise stability speak of units and losses: the output need not be a linear layer's."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.first(x))
            if ending == "two heads":
                return torch.cat([self.head(hidden), self.other(hidden)], 1)
            logits = self.head(hidden)
            return torch.log_softmax(logits, 1) if ending == "log_softmax" else torch.tanh(logits)

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 6, generator=generator), torch.arange(64) % 3
    pair = lmccheck.load_pair(Net().state_dict(), Net().state_dict(), model=Net, data=data, calibration=data)
    assert lmccheck.dropout_stability(pair, epsilon=100.0).passed
    assert lmccheck.noise_stability(pair, epsilon=100.0).passed
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="the network's output comes from"):
        lmccheck.ten_segment_path(pair)


def test_a_saved_witness_is_measured_and_checked_anew(tmp_path: Path) -> None:
    """verify_dropout gives the same ε_i without searching, and refuses a network that is no dropped version."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(64, 6, generator=generator), torch.arange(64) % 3
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    states = [{n: torch.randn(t.shape, generator=generator) for n, t in net.state_dict().items()} for _ in range(2)]
    pair = lmccheck.load_pair(*states, model=net, data=data, calibration=data)
    found = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev")
    file = found.witness.save(tmp_path / "half.safetensors")
    again = lmccheck.verify_dropout(pair, file, epsilon=100.0)
    assert again.value == pytest.approx(found.value, abs=1e-12)
    for side in "ab":
        assert again.details["epsilon"][side] == pytest.approx(found.details["epsilon"][side], abs=1e-12)
    with pytest.raises(lmccheck.SymmetryError, match="4 of 9 units are kept in 0, expected at most 2"):
        lmccheck.verify_dropout(pair, file, keep=0.3)
    from lmccheck.dropping.stability import StabilityWitness

    for name, why in (("0.weight", "incoming weights of 0"), ("2.weight", "reads units of 0 that are not kept")):
        dropped = found.witness.found["a"][0]
        other = {**dropped.weights, name: dropped.weights[name] + 0.1}
        tampered = {**found.witness.found, "a": {**found.witness.found["a"], 0: replace(dropped, weights=other)}}
        with pytest.raises(lmccheck.SymmetryError, match=why):
            lmccheck.verify_dropout(pair, StabilityWitness(tampered, found.witness.theta))
