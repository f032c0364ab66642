"""Maps fitted in turn with the order of other units."""

from __future__ import annotations

import pytest
import torch
from networks.beyond import found_in, pair_of, turn
from networks.planted import problem_of

import lmccheck
from lmccheck.alignment.beyond import api, learn
from lmccheck.alignment.beyond.fit import fit
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.beyond.turns import fit_in_turn
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe
from lmccheck.alignment.methods import learned
from lmccheck.alignment.methods.learned import train
from lmccheck.data.batches import targets_each
from lmccheck.data.load import Batch, Data
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.spec import Permutation


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


def test_head_maps_are_fitted_to_weights_that_are_turned() -> None:
    """Without data, of a copy that is turned only: the heads stay as they are, and all weights come back."""
    module, derived, freedoms, streams, _ = found_in("llama")
    theta = randomised(module, 1)
    other = streams[0].rotated(derived.spec, theta, randomised(module, 2), turn(streams[0]))
    heads = [freedom for freedom in freedoms if freedom.kind == "head-maps"]
    maps = Maps(derived.spec, heads, list(streams))
    fit(maps, theta, other, None, None)
    eyes = [torch.eye(matrix.shape[-1], dtype=torch.float64) for matrix in maps.mixes]
    assert eyes
    assert all(float((m - eye).abs().max()) <= 1e-6 for m, eye in zip(maps.mixes, eyes, strict=True))
    result = maps.apply(other, theta)
    assert max(float((result[name].detach() - theta[name]).abs().max()) for name in theta) <= 1e-6


@pytest.mark.parametrize("better", ["first", "in turn"])
def test_of_two_fits_the_lower_calibration_barrier_is_kept(better: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turned copy comes back by either fit alone, while the other leaves the stream where it is."""
    module, derived, _, streams, _ = found_in("llama")
    theta = randomised(module, 1)
    other = streams[0].rotated(derived.spec, theta, randomised(module, 2), turn(streams[0]))

    def left(maps: Maps, *_: object) -> Permutation:
        maps.rotations[0] = torch.eye(len(maps.rotations[0]), dtype=torch.float64)
        return derived.spec.identity()

    monkeypatch.setattr(api, "fit" if better == "in turn" else "fit_in_turn", left)
    monkeypatch.setattr(learn, "STEPS", 0)
    facts = lmccheck.align(pair_of("llama", theta, other), beyond="stream-rotation").facts["maps"]
    barriers = facts["calibration_barriers"]
    assert abs(barriers["fitted"]) <= 1e-6 < 1e-3 < barriers["permutation"]
    assert len(facts["losses_half_way"]) == 1  # of no step: maps that mix units are learned by ``learn_maps``


def test_batches_and_comparisons_hold_as_many_targets_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 samples with targets of E numbers each: 60 // E in a batch, 300 // E compared, whole batches of them."""
    module, derived, _, _, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    target = pair.calibration.batches[0].targets
    each = target[0].numel()
    assert 1 < each <= 60
    monkeypatch.setattr(learned, "TARGETS", 60)
    monkeypatch.setattr(learned, "HELD_OUT_TARGETS", 300)
    judged = train(problem_of(pair), derived.spec.identity(), steps=0).judged
    assert judged == 300 // each // (60 // each) * (60 // each)


@pytest.mark.parametrize(("shape", "each"), [((8,), 1), ((8, 64), 64), ((8, 3, 5), 15)])
def test_a_text_has_as_many_targets_as_tokens(shape: tuple[int, ...], each: int) -> None:
    """One for a class, T for T tokens."""
    assert targets_each(Data((Batch(torch.zeros(8, 2), torch.zeros(shape)),), "x", True)) == each
