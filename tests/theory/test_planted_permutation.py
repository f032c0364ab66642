"""A network and a permuted copy of itself: matching finds the permutation and the barrier vanishes (math: T11, T12)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from networks.quick import slowly
from networks.registry import discovered
from torch import nn

import lmccheck
from lmccheck.alignment.methods.weight_matching import match
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of

CHAINS = [
    "mlp",
    "vgg",
    "resnet",
    "mobilenet",
    "densenet",
    "encoder_separate",
    "encoder_chunk",
    "encoder_unbind",
    "llama_without_rotary",
]


def pair_of(name: str, seed: int) -> tuple[lmccheck.ModelPair, lmccheck.PermutationSpec]:
    """Return a pair (θ, π·θ) of a random network in float64, with random data."""
    module, inputs, spec = discovered(name)
    torch.manual_seed(seed)
    theta = randomised(module, seed)
    shape = (24, *inputs[0].shape[1:])
    samples = torch.randn(shape) if inputs[0].is_floating_point() else torch.randint(0, 11, shape)
    targets = outputs_of(module, theta, (samples,), torch.float64)[0]  # θ's own outputs: both endpoints have loss zero
    pair = lmccheck.load_pair(
        theta,
        spec.apply(theta, spec.random(seed + 1)),
        model=module,
        data=(samples, targets),
        calibration=(samples, targets),
        loss="mse",
    )
    return pair, spec


@pytest.mark.parametrize("name", [slowly(n) if n in ("encoder_separate", "encoder_unbind") else n for n in CHAINS])
@pytest.mark.parametrize("seed", [0, slowly(1)])
def test_a_planted_permutation_is_recovered_exactly(name: str, seed: int) -> None:
    """After matching, π(θ_B) equals θ_A bit for bit, whatever the architecture."""
    pair, _ = pair_of(name, seed)
    alignment = lmccheck.align(pair, seed=seed)
    assert all(torch.equal(alignment.weights[k], pair.theta_a[k]) for k in pair.theta_a)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "encoder_chunk"])
def test_the_barrier_vanishes_after_alignment_and_not_before(name: str) -> None:
    """Barrier of (θ, π·θ): zero aligned, positive naive; with BatchNorm every aligned point is the same network."""
    pair, _ = pair_of(name, 5)
    result = lmccheck.linear_connectivity(pair, limit=1e-9, points=9)
    losses = result.details["losses"]
    assert max(losses) - min(losses) <= 1e-9
    assert result.details["barrier_naive"] > 1e-3
    assert result.details["loss_a"] == pytest.approx(result.details["loss_b"], abs=1e-9)
    if not result.details["batchnorm"]:
        assert result.passed
        assert result.value <= 1e-9


@pytest.mark.parametrize("name", ["mlp", "resnet", "encoder_chunk"])
def test_recovery_survives_noise(name: str) -> None:
    """Weight noise of 10 % of each tensor's spread does not hide the planted permutation."""
    module, _, spec = discovered(name)
    theta = randomised(module, 3)
    planted = spec.random(4)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        k: v + 0.1 * v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype)
        if v.is_floating_point() and v.numel() > 1
        else v
        for k, v in theta.items()
    }
    found = match(spec, theta, spec.apply(noisy, planted))
    back = spec.apply(spec.apply(noisy, planted), found.permutation)
    assert all(torch.equal(back[k], noisy[k]) for k in noisy)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10_000))
def test_any_permutation_keeps_the_function(name: str, seed: int) -> None:
    """f(π·θ_B) = f(θ_B) for permutations drawn by Hypothesis, to 1e-9 relative in float64."""
    module, inputs, spec = discovered(name)
    assert spec.verify(module, inputs, trials=1, seed=seed) <= 1e-9


@pytest.mark.parametrize(
    "name", ["mlp", "vgg", "encoder_chunk", "query_key_norm", "head_mixing", "grouped_convolution"]
)
def test_matching_never_lowers_its_objective(name: str) -> None:
    """⟨θ_A, π·θ_B⟩ is at least that of the identity, and equals what is reported."""
    module, _, spec = discovered(name)
    seed = len(name)
    a, b = randomised(module, seed), randomised(module, seed + 1)
    found = match(spec, a, b, seed=seed)
    learned = {s.tensor for g in spec.groups for s in g.slots if s.learned}
    moved = spec.apply(b, found.permutation)
    assert found.objective >= found.objective_before
    assert found.objective == pytest.approx(float(sum((a[k] * moved[k]).sum() for k in learned)), rel=1e-12)
    if name in ("mlp", "head_mixing"):
        assert match(spec, a, b, seed=seed).objective == found.objective


def test_a_wide_residual_stream_is_placed_before_what_hangs_on_it() -> None:
    """From the identity wide groups lock onto noise; the anchored start still recovers the planted permutation."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True)
    module = nn.Sequential(
        nn.Linear(8, 128), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(128, 4)
    )
    spec = lmccheck.discover_symmetry(module, (torch.randn(2, 5, 8),))
    theta = randomised(module, 1)
    planted = spec.apply(theta, spec.random(2))
    found = match(spec, theta, planted, seed=0, starts=2)
    missed = next(descent for descent in found.descents if descent.start == "identity")
    back = spec.apply(planted, found.permutation)
    assert all(torch.equal(back[k], theta[k]) for k in theta)
    assert missed.objective < found.objective / 2
