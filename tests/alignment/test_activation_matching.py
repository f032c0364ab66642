"""Activation matching: moments, the units seen, their similarity, against numpy, hooks and explicit loops."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Attention, residual
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment import activations
from lmccheck.alignment.api import verified_spec
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.methods.activation_matching import ActivationSimilarity, Moments, assign_once, matrix, observe
from lmccheck.alignment.methods.best import solve
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.symmetry.discover import Derived, derive
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Part, Piece, UnitGroup


def samples_for(inputs: tuple[Tensor, ...], count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *inputs[0].shape[1:])
    if not inputs[0].is_floating_point():
        return torch.randint(0, 11, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem_of(module: nn.Module, inputs: tuple[Tensor, ...], count: int = 48, seed: int = 1) -> Problem:
    """Return the problem of two independent random weights of a network, in float64, with random calibration data."""
    a, b = randomised(module, seed), randomised(module, seed + 1)
    x = samples_for(inputs, count)
    y = outputs_of(module, a, (x,), torch.float64)[0]
    pair = lmccheck.load_pair(a, b, model=module, data=(x[:4], y[:4]), calibration=(x, y), loss="mse", device="cpu")
    spec, _ = verified_spec(pair)
    return Problem(pair, spec, 0, pair.cache["derived"])


# moments


@pytest.mark.parametrize("chunk", [1 << 16, 7, 1])
@pytest.mark.parametrize("parts", [[500], [1, 499], [100, 250, 150]])
def test_moments_are_numpys(parts: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, correlation and cross-moment equal numpy's of all samples at once, however they came in."""
    monkeypatch.setattr(activations, "_COLUMNS", chunk)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 10))
    both = mixing @ rng.normal(size=(10, 500)) + rng.normal(size=(10, 1)) * 3
    a, b = both[:6][[0, 2, 4, 1, 3]], both[5:]
    moments = Moments(5)
    for left, right in zip(*(np.split(x, np.cumsum(parts)[:-1], 1) for x in (a, b)), strict=True):
        moments.add(torch.from_numpy(left.copy()), torch.from_numpy(right.copy()))
    assert moments.count == 500
    means = moments.sums / moments.count
    covariance = np.cov(a, b, bias=True)[:5, 5:]
    assert np.allclose(moments.cross / 500 - torch.outer(*means), covariance, rtol=1e-10, atol=1e-12)
    assert np.allclose(moments.squares / 500 - means**2, [a.var(1), b.var(1)], rtol=1e-9)
    assert np.allclose(moments.similarity("correlation"), np.corrcoef(a, b)[:5, 5:], rtol=1e-10, atol=1e-12)
    assert np.allclose(moments.similarity("cross-moment"), a @ b.T / 500, rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 1e8, 1e-30])
def test_a_unit_that_never_varies_correlates_with_nothing(constant: float) -> None:
    """Its row and column are exactly 0, not NaN, and the others' correlations are numpy's all the same."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 400)), rng.normal(size=(3, 400))
    b[0] += a[1]
    expected = np.corrcoef(a, b)[:3, 3:]
    a[2], b[1] = constant, constant
    expected[2], expected[:, 1] = 0, 0
    moments = Moments(3)
    moments.add(torch.from_numpy(a), torch.from_numpy(b))
    found = moments.similarity("correlation")
    assert np.allclose(found, expected, atol=1e-12)
    assert bool((found[2] == 0).all())
    assert bool((found[:, 1] == 0).all())


def test_moments_of_float32_are_added_up_in_float64() -> None:
    """Sums beyond 2²⁴, which float32 cannot count on from, are exact."""
    moments = Moments(1)
    for value, samples in [(64.0, 2048)] * 3 + [(1.0, 1)]:
        moments.add(torch.full((1, samples), value), torch.full((1, samples), value))
    assert float(moments.cross) == 3 * 64**2 * 2048 + 1
    assert moments.squares.tolist() == [[3 * 64**2 * 2048 + 1]] * 2
    assert moments.sums.tolist() == [[3 * 64 * 2048 + 1]] * 2


# the units seen


def captured(module: nn.Module, weights: dict[str, Tensor], inputs: Tensor, layer: nn.Module, read: bool) -> Tensor:
    """Return what a layer gives, or reads, in a plain forward pass of the module with ``weights``."""
    module.double().eval().load_state_dict(weights)
    kept: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        kept.append((given[0] if read else made).detach().clone())

    handle = layer.register_forward_hook(hook)
    with torch.no_grad():
        module(inputs)
    handle.remove()
    (value,) = kept
    return value


def expect(problem: Problem, group: str, of_a: Tensor, of_b: Tensor, at: int = 0) -> None:
    """Compare a site's moments with those of reference units (units, samples) of both networks."""
    site = problem.traced("test").sites[group][at]
    moments = observe(problem, "test")[site]
    assert moments.count == of_a.shape[1]
    reference = np.corrcoef(of_a.numpy(), of_b.numpy())[: len(of_a), len(of_a) :]
    assert np.allclose(moments.similarity("correlation"), np.nan_to_num(reference), atol=1e-9)
    assert np.allclose(moments.similarity("cross-moment"), of_a @ of_b.T / of_a.shape[1], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(("group", "layer"), [("0", 1), ("2", 3)])
def test_units_of_an_mlp_are_what_its_activations_give(group: str, layer: int) -> None:
    """A hidden unit is seen as the next layer reads it: behind the activation, sample by sample."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["mlp"]()
    problem = problem_of(module, inputs)
    x = problem.pair.calibration.batches[0].inputs
    a, b = (captured(module, w, x, module[layer], False).T for w in (problem.pair.theta_a, problem.pair.theta_b))
    expect(problem, group, a, b)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_channels_are_seen_at_every_position_also_behind_a_flatten() -> None:
    """Channel c of the second convolution: all positions and samples of it in what the flattened layer reads."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["vgg"]()
    problem = problem_of(module, inputs)
    x = problem.pair.calibration.batches[0].inputs
    pooled = [captured(module, w, x, module[7], True) for w in (problem.pair.theta_a, problem.pair.theta_b)]
    assert pooled[0].shape == (48, 6, 2, 2)
    a, b = (value.transpose(0, 1).reshape(6, -1) for value in pooled)
    expect(problem, "3", a, b)
    first = [captured(module, w, x, module[2], False) for w in (problem.pair.theta_a, problem.pair.theta_b)]
    expect(problem, "0", *(value.transpose(0, 1).reshape(4, -1) for value in first))


def transformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One pre-norm block: width 8, two heads of 4, a feed-forward layer of 10."""
    attention = residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2, "separate")))
    feed_forward = residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)))
    return nn.Sequential(nn.Linear(5, 8), attention, feed_forward, nn.Linear(8, 3)), (torch.randn(2, 6, 5),)


def test_units_of_a_transformer_block_are_those_of_its_modules() -> None:
    """Stream: what the norms give and the head reads; feed-forward: behind GELU; heads: what the output map reads."""
    torch.manual_seed(0)
    module, inputs = transformer()
    problem = problem_of(module, inputs, 32)
    x = problem.pair.calibration.batches[0].inputs
    norm1, attention = module[1].body
    norm2, _, gelu, _ = module[2].body
    weights = problem.pair.theta_a, problem.pair.theta_b

    def units(layer: nn.Module, read: bool) -> list[Tensor]:
        return [captured(module, w, x, layer, read).flatten(0, 1).T for w in weights]

    names = [group.name for group in problem.spec.groups]
    stream, heads, keys, values, inner = names
    sites = problem.traced("test").sites
    assert [len(sites[name]) for name in names] == [3, 1, 2, 1, 1]
    expect(problem, stream, *units(norm1, False), at=0)
    expect(problem, stream, *units(norm2, False), at=1)
    expect(problem, stream, *units(module[3], True), at=2)
    expect(problem, inner, *units(gelu, False))
    expect(problem, heads, *units(attention.out, True))
    assert sites[heads] == sites[values]
    expect(problem, keys, *units(attention.q, False), at=0)
    expect(problem, keys, *units(attention.k, False), at=1)


def test_a_site_that_is_part_of_a_dimension_shows_that_part_alone() -> None:
    """Of a fused projection the queries' site is the first third, the keys' the second; head by head."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["encoder_chunk"]()
    problem = problem_of(module, inputs, 16)
    x = problem.pair.calibration.batches[0].inputs
    fused = module[1][0].body[1].qkv
    a, b = (captured(module, w, x, fused, False).flatten(0, 1).T for w in (problem.pair.theta_a, problem.pair.theta_b))
    for at, part in enumerate((slice(0, 8), slice(8, 16))):
        expect(problem, "1.0.body.1.qkv/1", a[part], b[part], at=at)


def test_a_site_with_units_inside_a_product_is_read_in_the_groups_order() -> None:
    """matrix() against an explicit loop: a frozen factor outside, between and inside two groups."""
    piece = Piece(2, (Part(None, 2, 24), Part("outer", 3, 8), Part(None, 2, 4), Part("inner", 2, 2), Part(None, 2, 1)))
    value = torch.randn(5, 51, 3, dtype=torch.float64)
    found = matrix(Site("node", 1, piece, True), value)
    rows = []
    for outer, inner in itertools.product(range(3), range(2)):
        at = [2 + f * 24 + outer * 8 + g * 4 + inner * 2 + h for f in range(2) for g in range(2) for h in range(2)]
        rows.append(torch.stack([value[:, k] for k in at]).reshape(-1))
    assert torch.equal(found, torch.stack(rows))


# similarity


def by_hand(derived: Derived, tables: dict[Site, Tensor], group: UnitGroup, child: UnitGroup | None) -> Tensor:
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
    torch.manual_seed(0)
    derived = derive(*NETWORKS[name]())
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
    moved = replace(problem.pair, theta_b=spec.apply(problem.pair.theta_b, permutation), cache={})
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
    found = activations.match_activations(problem, kind)
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


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_can_be_matched(name: str) -> None:
    """On any network the result is a permutation of the spec; where every unit is most like itself nothing moves."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    derived = derive(module, inputs)
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
    bare = replace(problem.pair, calibration=None, cache={})
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
