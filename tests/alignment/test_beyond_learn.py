"""Maps learned by gradients with the order of units held, chosen on calibration data that is held out."""

from __future__ import annotations

import copy

import pytest
import torch
from networks.beyond import found_in, pair_of, turn
from networks.planted import problem_of
from torch import Tensor, nn
from torch.func import functional_call

import lmccheck
from lmccheck.alignment.beyond import learn
from lmccheck.alignment.beyond.learn import learn_maps
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.data.batches import first_samples
from lmccheck.evaluate.split import split
from lmccheck.modules.random_weights import randomised
from lmccheck.properties.remarks import calibration_remarks

Weights = dict[str, Tensor]


def rotations(pair: lmccheck.ModelPair) -> Maps:
    """Return maps that turn the stream of the small Llama, the identity at first."""
    return Maps(pair.network.spec, [], list(found_in("llama")[3]))


def loss_half_way(module: nn.Module, theta: Weights, other: Weights, x: Tensor, y: Tensor) -> float:
    """Return the mean squared error of (θ_A + θ_B)/2."""
    merged = {k: (v.double() + other[k].double()) / 2 for k, v in theta.items()}
    with torch.no_grad():
        return float(((functional_call(copy.deepcopy(module).double(), merged, (x,)) - y.double()) ** 2).mean())


def test_maps_are_learned_with_the_order_of_units_held() -> None:
    """A turn of the stream is learned back in part: the loss half-way on samples of no part in it falls by half."""
    module, derived, _, streams, _ = found_in("llama")
    theta = randomised(module, 1)
    small = torch.matrix_exp(0.1 * (turn(streams[0]) - turn(streams[0]).T))
    other = streams[0].rotated(derived.spec, theta, theta, small)
    pair = pair_of("llama", theta, other)
    maps = rotations(pair)
    trained = learn_maps(problem_of(pair), derived.spec.identity(), maps, steps=30)
    assert all(torch.equal(trained.permutation[k], v) for k, v in derived.spec.identity().items())
    found = {k: v.detach() for k, v in maps.apply(other, theta).items()}
    x, y = pair.data.batches[0].inputs, pair.data.batches[0].targets
    before, after = (loss_half_way(module, theta, w, x, y) for w in (other, found))
    assert 0 < after < 0.5 * before
    assert min(trained.losses) == trained.losses[-1] < trained.losses[0]


def test_steps_are_chosen_by_samples_that_are_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out samples with targets of their own: no step helps them, so the maps stay as they were."""
    module, derived, _, _, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    maps = rotations(pair)
    mapped = maps.apply(pair.theta_b, pair.theta_a)
    merged = {k: (v + mapped[k].detach()) / 2 for k, v in pair.theta_a.items()}

    def odd(*args: object, **how: object) -> object:
        parts = split(*args, **how)
        with torch.no_grad():
            for batch in parts.held:
                batch.targets.copy_(functional_call(copy.deepcopy(module).double(), merged, (batch.inputs,)))
        return parts

    monkeypatch.setattr(learn, "split", odd)
    trained = learn_maps(problem_of(pair), derived.spec.identity(), maps, steps=3)
    assert trained.best_step == 0
    assert all(torch.equal(rotation, torch.eye(len(rotation), dtype=torch.float64)) for rotation in maps.matrices()[1])
    assert trained.losses[0] <= 1e-9 < min(trained.losses[1:])


def test_what_is_said_of_both_parts_is_what_the_maps_lose() -> None:
    """Losses half-way above the mean of the ends, on held-out samples and as many others: those of a forward pass."""
    module, derived, _, _, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    maps = rotations(pair)
    trained = learn_maps(problem_of(pair), derived.spec.identity(), maps, steps=2)
    found = {k: v.detach() for k, v in maps.apply(pair.theta_b, pair.theta_a).items()}
    each = pair.calibration.batches[0].targets[0].numel()
    parts = split(pair.network, "maps", learn.SAMPLES, 0, most=learn.TARGETS // each)
    assert trained.judged == sum(batch.samples for batch in parts.held)
    for part, key in ((parts.held, "held_out"), (parts.fit[: len(parts.held)], "fitted_to")):
        x, y = (torch.cat([getattr(batch, what) for batch in part]) for what in ("inputs", "targets"))
        ends = [loss_half_way(module, w, w, x, y) for w in (pair.theta_a, pair.theta_b)]
        expected = loss_half_way(module, pair.theta_a, found, x, y) - sum(ends) / 2
        assert trained.apart[key] == pytest.approx(expected, rel=1e-6)
        if key == "held_out":
            assert trained.apart["ends"] == pytest.approx(sum(ends) / 2, rel=1e-6)


def test_a_step_turns_all_planes_of_a_stream_by_one_angle() -> None:
    """Step by step, whatever the gradient: R' = exp(S)·R, and the eigenvalues of R'·Rᵀ are e^(±i·rate)."""
    pair = pair_of("llama", *(randomised(found_in("llama")[0], seed) for seed in (1, 2)))
    maps = rotations(pair)
    descent, generator = learn._Descent(maps), torch.Generator().manual_seed(0)
    for share in (1.0, 1.0, 0.5):
        goal = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        before = maps.matrices()[1][0].detach()
        descent.step((goal * maps.matrices()[1][0]).sum(), share)
        turned = maps.matrices()[1][0].detach() @ before.T
        angles = torch.linalg.eigvals(turned).angle().abs()
        assert torch.allclose(angles, torch.full((16,), share * learn.RATE, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize(("steps", "rounds", "longer", "taken"), [(7, 1, 5, 7), (2, 1, 5, 6), (2, 1, 2, 4)])
def test_more_data_is_learned_from_in_more_steps(
    monkeypatch: pytest.MonkeyPatch, steps: int, rounds: int, longer: int, taken: int
) -> None:
    """Of 512 samples in batches of 64 six are fitted to: a round over them, or what is least or most."""
    module, derived, _, _, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    for name, value in {"STEPS": steps, "ROUNDS": rounds, "LONGER": longer, "BATCH": 64, "TARGETS": 2**20}.items():
        monkeypatch.setattr(learn, name, value)
    shares: list[float] = []
    monkeypatch.setattr(learn._Descent, "step", lambda self, loss, share: shares.append(share) or True)
    learn_maps(problem_of(pair), derived.spec.identity(), rotations(pair))
    assert len(shares) == taken


def test_a_gradient_that_is_no_number_ends_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of √ at 0 the loss is a number and its slope none: maps stay as they were, and nothing is raised."""
    module, derived, _, _, _ = found_in("llama")
    pair = pair_of("llama", randomised(module, 1), randomised(module, 2))
    maps = rotations(pair)
    far = learn.Imitation.__call__
    monkeypatch.setattr(learn.Imitation, "__call__", lambda *given: (far(*given) * 0).sqrt())
    assert learn_maps(problem_of(pair), derived.spec.identity(), maps, steps=3).best_step == 0
    assert all(torch.equal(rotation, torch.eye(len(rotation), dtype=torch.float64)) for rotation in maps.matrices()[1])


def test_of_one_sample_nothing_is_learned() -> None:
    """None could be held out: the maps stay as they were fitted."""
    theta = randomised(found_in("llama")[0], 1)
    pair = pair_of("llama", theta, randomised(found_in("llama")[0], 2))
    problem = problem_of(pair.measured_on(pair.data, first_samples(pair.calibration, 1)))
    maps = rotations(pair)
    trained = learn_maps(problem, pair.network.spec.identity(), maps)
    assert (trained.best_step, trained.losses) == (0, ())
    assert all(torch.equal(rotation, torch.eye(len(rotation), dtype=torch.float64)) for rotation in maps.matrices()[1])


def test_maps_learned_by_heart_are_said_to_be() -> None:
    """0.05 more on data held out, of losses of 2: said; 0.01 more, or maps that were not kept: nothing to be said."""
    apart = {"held_out": 0.07, "fitted_to": 0.02, "ends": 2.0}
    maps = {"kept": "learned", "half_way_excess": apart}
    (said,) = calibration_remarks("best", {"maps": maps})
    assert said == (
        "half-way, held-out calibration data loses 0.07 more than the ends, that the maps were learned on 0.02: more "
        "calibration data would help"
    )
    assert calibration_remarks("best", {"maps": {**maps, "half_way_excess": {**apart, "fitted_to": 0.06}}}) == []
    assert calibration_remarks("best", {"maps": {**maps, "kept": "fitted"}}) == []
