"""Maps fitted in turn with the order of other units, and learned with that order held."""

from __future__ import annotations

import pytest
import torch
from networks.beyond import found_in, pair_of, turn
from networks.planted import problem_of

from lmccheck.alignment.beyond.fit import fit
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.beyond.turns import fit_in_turn
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe
from lmccheck.alignment.methods.learned import targets_each, train
from lmccheck.data.load import Batch, Data
from lmccheck.modules.random_weights import randomised


def test_units_out_of_order_come_back_with_the_maps() -> None:
    """θ_B is θ_A turned, with feed-forward units in another order that nothing has matched: all weights come back."""
    module, derived, _, streams, _ = found_in("llama")
    spec, theta = derived.spec, randomised(module, 1)
    group = next(g for g in spec.groups if "gate" in g.name)
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(4))
    other = spec.apply(theta, {**spec.identity(), group.name: order})
    for stream in streams:
        other = stream.rotated(spec, other, randomised(module, 2), turn(stream))
    problem = problem_of(pair_of("llama", theta, other))
    maps = Maps(spec, [], list(streams))
    sites, moments = problem.traced("a test").sites, observe(problem, "a test")
    fit(maps, theta, other, moments, ActivationSimilarity.of(spec, sites, moments, "cross-moment"))
    found = fit_in_turn(maps, theta, other, sites, moments)
    assert torch.equal(order[found[group.name]], torch.arange(group.size))
    result = maps.apply(spec.apply(other, found), theta)
    assert max(float((result[name].detach() - theta[name]).abs().max()) for name in theta) <= 1e-6
    assert not any(matrix.requires_grad for matrix in (*maps.mixes, *maps.rotations))  # training begins from numbers


def test_what_is_left_out_of_maps_is_the_identity() -> None:
    """Of learned maps, head maps alone leave the stream as it is, rotations alone the heads, both are both."""
    _, derived, freedoms, streams, _ = found_in("final norm")
    heads = [freedom for freedom in freedoms if freedom.kind == "head-maps"]
    maps = Maps(derived.spec, heads, list(streams))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    mixes, rotations = maps.matrices()
    eye = [torch.eye(len(rotation), dtype=torch.float64) for rotation in rotations]
    for streams_too, heads_too in ((True, True), (True, False), (False, True)):
        alone = maps.alone(streams=streams_too, heads=heads_too).matrices()
        expected = [m if heads_too else torch.eye(m.shape[-1], dtype=m.dtype).expand_as(m) for m in mixes]
        assert all(torch.allclose(x, y) for x, y in zip(alone[0], expected, strict=True))
        turned = rotations if streams_too else eye
        assert all(torch.allclose(x, y) for x, y in zip(alone[1], turned, strict=True))


def test_maps_are_learned_with_the_order_of_units_held() -> None:
    """Rotations are learned from identity by gradients alone: the loss half-way falls, and no unit moves."""
    module, derived, _, streams, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    maps = Maps(derived.spec, [], list(streams))
    trained = train(problem_of(pair), derived.spec.identity(), maps, steps=20)
    assert all(torch.equal(trained.permutation[k], v) for k, v in derived.spec.identity().items())
    assert min(trained.losses) < trained.losses[0]
    assert any(float(turned.abs().max()) > 0 for turned in maps.copy()[1])


@pytest.mark.parametrize(("shape", "each"), [((8,), 1), ((8, 64), 64), ((8, 3, 5), 15)])
def test_a_text_has_as_many_targets_as_tokens(shape: tuple[int, ...], each: int) -> None:
    """One for a class, T for T tokens."""
    assert targets_each(Data((Batch(torch.zeros(8, 2), torch.zeros(shape)),), "x", True)) == each
