"""Activation matching: moments, the units seen, their similarity, against numpy, hooks and explicit loops."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, registry
from networks.observed import captured, problem_of
from networks.quick import each
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.matching.activations import ActivationSimilarity, Moments, assign_once, observe
from lmccheck.alignment.methods.activation_matching import match_activations
from lmccheck.alignment.methods.best import solve
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import UnitGroup

# similarity


def by_hand(derived: Traced, tables: dict[Site, Tensor], group: UnitGroup, child: UnitGroup | None) -> Tensor:
    """Return units or blocks by explicit loops over every unit of every group of every site, θ_B unpermuted."""
    spec = derived.spec
    inside = {
        g.name
        for g in spec.groups
        if not group.within and g.within == (group.name,) and not any(g.name in other.within for other in spec.groups)
    }
    target = child or group
    sites = [s for s in derived.sites[target.name] if child is not None or not inside & set(s.groups)]
    shape = (group.size, group.size, child.size, child.size) if child else (group.copies, group.size, group.size)
    total = torch.zeros(shape, dtype=torch.float64)
    for site in sites:
        table = tables[site]
        places = list(itertools.product(*(range(spec.by_name[name].size) for name in site.groups)))
        for i, left in enumerate(places):
            for j, right in enumerate(places):
                x, y = dict(zip(site.groups, left, strict=True)), dict(zip(site.groups, right, strict=True))
                crossed = {group.name, child.name} if child else {group.name}
                if any(x[name] != y[name] for name in site.groups if name not in crossed):
                    continue
                if child:
                    at = x[group.name], y[group.name], x[child.name], y[child.name]
                else:
                    copy = 0
                    for name in group.within:
                        copy = copy * spec.by_name[name].size + x[name]
                    at = copy, x[group.name], y[group.name]
                total[at] += table[i, j] / len(sites)
    return total


NESTED = ["mlp", "encoder_separate", "encoder_chunk", "llama", "llama_without_rotary", "vgg"]


@pytest.mark.parametrize("name", NESTED)
def test_units_and_blocks_are_sums_over_the_sites_units(name: str) -> None:
    """With random tables, for every group, also of heads in heads: equal to loops over single units."""
    derived = registry.derived(name)
    generator = torch.Generator().manual_seed(1)
    tables = {}
    for site in {site for several in derived.sites.values() for site in several}:
        width = np.prod([derived.spec.by_name[n].size for n in site.groups])
        tables[site] = torch.randn(int(width), int(width), generator=generator, dtype=torch.float64)
    alike = ActivationSimilarity(derived.spec, derived.sites, tables)
    nested = 0
    for group in derived.spec.groups:
        found = alike.units(group, derived.spec.identity())
        assert torch.allclose(found, by_hand(derived, tables, group, None), atol=1e-12)
        for child, block in alike.blocks(group, derived.spec.identity()).items():
            nested += 1
            assert torch.allclose(block, by_hand(derived, tables, group, derived.spec.by_name[child]), atol=1e-12)
    assert nested == {"encoder_separate": 4, "encoder_chunk": 4, "llama": 2, "llama_without_rotary": 3}.get(name, 0)


@pytest.mark.parametrize("name", ["mlp", "vgg", "encoder_chunk", "llama_without_rotary", "resnet"])
def test_similarity_under_a_permutation_is_that_of_permuted_weights(name: str) -> None:
    """Moving θ_B's units in the tables equals observing the permuted network: head by head, exactly."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    problem = problem_of(module, inputs, 12)
    spec, derived = problem.spec, problem.traced("test")
    permutation = spec.random(5)
    moved = problem.pair.with_weights(problem.pair.theta_a, spec.apply(problem.pair.theta_b, permutation))
    tables = [
        {site: moments.similarity("cross-moment") for site, moments in observe(p, "test").items()}
        for p in (problem, replace(problem, pair=moved))
    ]
    changed: list[bool] = []
    here, there = (ActivationSimilarity(spec, derived.sites, table) for table in tables)
    for group in spec.groups:
        expected = there.units(group, spec.identity())
        assert torch.allclose(here.units(group, permutation), expected, atol=1e-6)  # Llama's norm is in float32
        changed.append(not torch.allclose(here.units(group, spec.identity()), expected, atol=1e-3))
        for child, block in there.blocks(group, spec.identity()).items():
            assert torch.allclose(here.blocks(group, permutation)[child], block, atol=1e-6)
            changed.append(not torch.allclose(here.blocks(group, spec.identity())[child], block, atol=1e-3))
    assert sum(changed) >= len(spec.groups) // 2  # the permutation was no trifle


# matching


@pytest.mark.parametrize("kind", ["correlation", "cross-moment"])
def test_a_layer_is_assigned_optimally(kind: str) -> None:
    """For every hidden layer of 5 to 7 units no other permutation has a larger summed similarity: all are tried."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    problem = problem_of(module, (torch.randn(2, 4),))
    found = match_activations(problem, kind)
    x = problem.pair.calibration.batches[0].inputs
    best = 0.0
    for name, layer in (("0", module[1]), ("2", module[3])):
        a, b = (captured(module, w, x, layer, False).T for w in (problem.pair.theta_a, problem.pair.theta_b))
        if kind == "correlation":
            a, b = (F.normalize(value - value.mean(1, keepdim=True), dim=1) for value in (a, b))
            table = a @ b.T
        else:
            table = a @ b.T / a.shape[1]
        rows = torch.arange(len(table))
        sums = {p: float(table[rows, torch.tensor(p)].sum()) for p in itertools.permutations(range(len(table)))}
        assert tuple(found.permutation[name].tolist()) == max(sums, key=lambda p: sums[p])
        best += max(sums.values())
        mean = found.facts["mean_correlation" if kind == "correlation" else "mean_cross_moment"][name]
        assert mean == pytest.approx(max(sums.values()) / len(table), rel=1e-9)
    assert found.objective == pytest.approx(best, rel=1e-9)
    assert found.facts["similarity"] == kind
    assert found.facts["not_observed"] == []


def test_the_kinds_of_similarity_differ() -> None:
    """Correlations see neither scales nor shifts of θ_B's units, cross-moments both."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 200, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    plain, scaled, shifted = Moments(3), Moments(3), Moments(3)
    factors, shift = torch.tensor([[2.0], [0.5], [7.0]]).double(), torch.tensor([[1.0], [-2.0], [4.0]]).double()
    plain.add(a, b)
    scaled.add(a, factors * b)
    shifted.add(a, b + shift)
    same = torch.allclose
    assert same(plain.similarity("correlation"), scaled.similarity("correlation"), atol=1e-12)
    assert same(plain.similarity("correlation"), shifted.similarity("correlation"), atol=1e-12)
    assert same(plain.similarity("cross-moment") * factors.T, scaled.similarity("cross-moment"), atol=1e-12)
    expected = plain.similarity("cross-moment") + a.mean(1, keepdim=True) @ shift.T
    assert same(expected, shifted.similarity("cross-moment"), atol=1e-12)


@pytest.mark.parametrize("name", each(sorted(NETWORKS)))
def test_every_network_can_be_matched(name: str) -> None:
    """On any network the result is a permutation of the spec; where every unit is most like itself nothing moves."""
    derived = registry.derived(name)
    generator = torch.Generator().manual_seed(1)
    tables = {}
    for site in {site for several in derived.sites.values() for site in several}:
        width = int(np.prod([derived.spec.by_name[n].size for n in site.groups]))
        noise = torch.randn(width, 4 * width, generator=generator, dtype=torch.float64)
        tables[site] = torch.corrcoef(noise).reshape(width, width)
    alike = ActivationSimilarity(derived.spec, derived.sites, tables)
    found, _ = assign_once(derived.spec, alike)
    derived.spec.check(found)
    seen = {name for name, several in derived.sites.items() if several}
    for group in derived.spec.groups:
        if group.name in seen:
            still = torch.arange(group.size).expand(group.shape)
            assert torch.equal(found[group.name], still), group.name


def test_without_calibration_data_it_says_so() -> None:
    """One line that names the pair, the method and the mend."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["mlp"]()
    problem = problem_of(module, inputs)
    bare = problem.pair.measured_on(problem.pair.data, None)
    with pytest.raises(lmccheck.SourceError, match=r"align = 'activation-matching' needs calibration data") as raised:
        lmccheck.align(bare, "activation-matching")
    assert "\n" not in str(raised.value)
    assert "mend: give `calibration`" in str(raised.value)


def test_a_given_symmetry_has_no_graph_to_look_into() -> None:
    """UnsupportedArchitecture, in one line, and weight matching works."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["mlp"]()
    problem = problem_of(module, inputs)
    pair = problem.pair
    given = lmccheck.load_pair(
        pair.theta_a, pair.theta_b, model=module, data=pair.data, calibration=pair.calibration, loss="mse",
        symmetry=problem.spec,
    )  # fmt: skip
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"symmetry is given, not traced; mend: ") as raised:
        lmccheck.align(given, "activation-matching")
    assert "\n" not in str(raised.value)
    assert lmccheck.align(given, "weight-matching").function_deviation <= 1e-9


def test_samples_bounds_what_is_looked_at() -> None:
    """The first so many samples, and no others, enter the moments."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["mlp"]()
    problem = problem_of(module, inputs, 48)
    x, y = problem.pair.calibration.batches[0].inputs, problem.pair.calibration.batches[0].targets
    few = lmccheck.load_pair(
        problem.pair.theta_a, problem.pair.theta_b, model=module, data=(x, y), calibration=(x[:20], y[:20]), loss="mse"
    )
    some = observe(problem, "test", 20)
    alone = observe(replace(problem, pair=few), "test")
    for site, moments in some.items():
        assert moments.count == 20
        assert torch.allclose(moments.cross, alone[site].cross, rtol=1e-12)
    assert solve(problem, "activation-matching").permutation.keys() == problem.spec.by_name.keys()
