"""What activation matching sees: moments are numpy's, units are those of the modules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import NETWORKS
from networks.observed import captured, problem_of, transformer
from torch import Tensor, nn

from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching import activations
from lmccheck.alignment.matching.activations import Moments, matrix, observe
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Part, Piece

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
