"""Maps beyond permutations: found where they exist and nowhere else, undone where they were planted, never a change."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from networks.beyond import Weights, found_in, pair_of, turn
from networks.quick import slowly

import lmccheck
from lmccheck.alignment.beyond import api, learn
from lmccheck.alignment.beyond.freedoms import KINDS, random_matrix
from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.alignment.methods.learned import train
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of

# planted


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted in closed form has to do: learning is cut short."""
    monkeypatch.setattr(api, "train", partial(train, steps=10))
    monkeypatch.setattr(learn, "STEPS", 10)


def plant(
    name: str, kind: str, *, orthogonal: bool = True, only: str = "", strength: float = 0.0
) -> tuple[Weights, Weights]:
    """Return θ and a copy of it under random maps of one kind, then a random permutation: one function, both."""
    module, derived, freedoms, streams, _ = found_in(name)
    theta = randomised(module, 1)
    other = dict(theta)
    for freedom in freedoms:
        if freedom.kind != kind or (only and freedom.group != only):
            continue
        group = derived.spec.by_name[freedom.group]
        matrix = random_matrix(group, kind)
        if kind == "head-maps" and orthogonal:
            matrix = torch.linalg.qr(matrix).Q
        if kind == "rescaling" and strength:
            matrix = (strength * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(3))).double().exp()
        other = mix_group(derived.spec, group, other, freedom.forward, freedom.backward, matrix)
    for stream in streams:
        if kind == "stream-rotation":
            other = stream.rotated(derived.spec, other, randomised(module, 2), turn(stream))
    return theta, derived.spec.apply(other, derived.spec.moving(7))


def barrier(pair: lmccheck.ModelPair, weights: Weights) -> float:
    """Return the largest mean squared error on the way from θ_A; both ends have none."""
    batch = pair.data.batches[0]
    worst = 0.0
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        merged = {k: torch.lerp(v.double(), weights[k].double(), t) for k, v in pair.theta_a.items()}
        output = outputs_of(pair.module, merged, (batch.inputs,), torch.float64)[0]
        worst = max(worst, float(((output - batch.targets) ** 2).mean()))
    return worst


def undone(name: str, kind: str, method: str, calibrated: bool = True, **how: object) -> float:
    """Align a planted pair with maps of its kind, check what always holds, and return how far θ_B is from θ_A."""
    theta, other = plant(name, kind, **how)
    pair = pair_of(name, theta, other, calibrated)
    alignment = lmccheck.align(pair, method, beyond=kind)
    assert alignment.function_deviation <= 1e-9
    assert alignment.beyond == (kind,)
    assert all(value.dtype == torch.float64 for value in alignment.weights.values() if value.is_floating_point())
    plain = lmccheck.align(pair, method)
    assert barrier(pair, plain.weights) > 1e-5  # a permutation alone does not do it
    assert barrier(pair, alignment.weights) <= 1e-6
    return max(float((alignment.weights[k] - theta[k]).abs().max()) for k in theta)


METHOD = pytest.mark.parametrize("method", ["weight-matching", "activation-matching"])


CASES = {"weights": ("weight-matching", True), "weights, no data": ("weight-matching", False)}
CASES["activations"] = ("activation-matching", True)
CALIBRATED = pytest.mark.parametrize(
    ("method", "calibrated"),
    [slowly(*case) if name == "weights" else case for name, case in CASES.items()],
    ids=CASES,
)


@pytest.mark.parametrize(("method", "calibrated"), CASES.values(), ids=CASES)
def test_planted_scales_of_one_layer_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """θ_B = π(D·θ_A): the barrier vanishes and the weights come back to 1e-6, also for scales from 0.1 to 10."""
    assert undone("relu", "rescaling", method, calibrated) <= 1e-6
    assert undone("relu", "rescaling", method, calibrated, strength=0.8) <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", [slowly("relu deep"), "leaky"])
def test_planted_scales_of_several_layers_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """Scales of neighbouring layers are fitted together: weights back to 1e-6."""
    assert undone(name, "rescaling", method, calibrated, strength=0.8) <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", ["tanh", slowly("tanh deep")])
def test_planted_flips_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """θ_B = π(±θ_A): the weights come back to 1e-6, layer behind layer."""
    assert undone(name, "sign-flips", method, calibrated) <= 1e-6


@CALIBRATED
def test_planted_flips_of_gated_units_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """Of a gated unit only the linear half flips: its sign is found from activations, and from weights."""
    assert undone("glu", "sign-flips", method, calibrated) <= 1e-6


def test_flips_inside_heads_do_not_hide_those_outside(few_steps: None) -> None:
    """θ_B flipped in its feed-forward units alone, heads moved: the flips are undone all the same."""
    assert undone("llama", "sign-flips", "weight-matching", only="gate") <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", ["attention", slowly("attention without biases")])
def test_planted_head_rotations_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """A random rotation of each head's queries and keys, and of its values: the barrier vanishes."""
    undone(name, "head-maps", method, calibrated)


@METHOD
def test_head_rotations_are_fitted_where_activations_span_little(method: str, few_steps: None) -> None:
    """Five inputs to heads of 8: Procrustes on second moments, means included, is exact on what the data shows."""
    undone("few inputs", "head-maps", method)


@pytest.mark.slow  # one of each kind is undone above
def test_any_planted_head_map_is_undone() -> None:
    """An invertible map that is no rotation is learned where it cannot be fitted: the barrier is 1e-6 at most."""
    undone("attention", "head-maps", "weight-matching", orthogonal=False)


@CALIBRATED
def test_planted_rotations_of_the_stream_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """Other gains and a random rotation behind LayerNorm: the barrier vanishes."""
    undone("final norm", "stream-rotation", method, calibrated)


@pytest.mark.parametrize("calibrated", [slowly(True), False])
def test_planted_rotations_behind_rms_norm_are_undone(calibrated: bool, few_steps: None) -> None:
    """No mean is subtracted, nothing is lost: the weights come back to 1e-6."""
    assert undone("llama", "stream-rotation", "weight-matching", calibrated) <= 1e-6


@pytest.mark.parametrize("name", ["relu deep", "tanh", "llama", "final norm", "vgg"])
@pytest.mark.parametrize("calibrated", [slowly(True), False])
def test_between_any_two_networks_the_function_is_kept(name: str, calibrated: bool, few_steps: None) -> None:
    """All kinds at once on unrelated weights: f(θ_B) to 1e-9, by plain forward passes too; the best on calibration."""
    module = found_in(name)[0]
    pair = pair_of(name, randomised(module, 1), randomised(module, 2), calibrated)
    alignment = lmccheck.align(pair, beyond="all")
    inputs = (pair.data.batches[0].inputs,)
    before, after = (outputs_of(module, w, inputs, torch.float64)[0] for w in (pair.theta_b, alignment.weights))
    assert float((after - before).abs().max() / (1 + before.abs().max())) <= 1e-9
    assert alignment.function_deviation <= 1e-9
    assert alignment.beyond == KINDS
    assert alignment.weights.keys() == pair.theta_b.keys()
    facts = alignment.facts["maps"]
    assert {kind for kind in KINDS if facts["groups"][kind]} >= {"relu deep": {"rescaling"}}.get(name, set())
    if "calibration_barriers" in facts:
        barriers = facts["calibration_barriers"]
        assert list(barriers) == ["permutation", "fitted", "learned"]
        assert barriers[facts["kept"]] == min(barriers.values())
