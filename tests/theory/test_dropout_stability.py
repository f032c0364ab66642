"""Dropout stability: dropped networks against forward passes written by hand, refits against dense least squares."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from networks.dropping import CASES, case, loss_of, mlp, pair_of
from torch import Tensor, nn

from lmccheck.dropping.choose_units import SearchSettings, factors
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import keep_factors, multiplied
from lmccheck.dropping.search import find_dropped
from lmccheck.properties.dropout_stability import dropout_stability
from lmccheck.symmetry.structure import Structure


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
    search = find_dropped(pair.a, structure, levels, SearchSettings(refit=refit, profile="dev"))
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
    search = find_dropped(pair.a, structure, range(3), SearchSettings(refit=False, profile="dev"))
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
    structure, theta = pair.network.structure("tests"), pair.theta_a
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
    pair = pair_of(lambda: mlp(activation, large), (5,), twins)
    pair = pair.with_weights(pair.theta_a, others)
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
