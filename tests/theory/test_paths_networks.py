"""T17: the theory holds on every architecture it is said to hold on, and is refused on all others."""

from __future__ import annotations

import warnings

import pytest
import torch
from networks import NETWORKS
from networks.paths import all_levels, masked, random_pair, random_state, structure_for
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.network.pair import ModelPair
from lmccheck.paths.certify import certify
from lmccheck.paths.moves import immovable
from lmccheck.paths.theorems import dropout_path_between, ten_segments

REFUSED = {
    "argmax_is_read": "no hidden units",
    "autoencoder_tied": "output comes from",
    "cross_attention": "outgoing weights are computed",
    "decoder_causal": "layer_norm",
    "einsum_bilinear": "no linear layer or convolution",
    "encoder_chunk": "layer_norm",
    "encoder_per_head": "layer_norm",
    "encoder_separate": "layer_norm",
    "encoder_unbind": "layer_norm",
    "gram_matrix": "products of units",
    "group_norm": "group_norm",
    "head_mixing": "products of units",
    "language_model_tied": "layer_norm",
    "llama": "reduced over",
    "llama_without_rotary": "reduced over",
    "lstm": "read 4 times",
    "mlp_mixer": "layer_norm",
    "mlp_weight_shared": "read 2 times",
    "order_matters": "no hidden units",
    "query_key_norm": "layer_norm",
    "softmax_gating": "log_softmax",
    "torch_encoder_post_norm": "layer_norm",
    "torch_encoder_pre_norm": "layer_norm",
    "transposed_convolution": "no linear layer or convolution",
    "vision_transformer": "layer_norm",
    "weight_normalised": "output comes from",
}


def network_pair(name: str) -> ModelPair:
    """Two random networks of one architecture, with random values to predict."""
    module, inputs = NETWORKS[name]()
    module = module.double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        like = module(*inputs)
    if not isinstance(like, Tensor) or len(inputs) != 1:
        pytest.skip("takes or returns several tensors")  # the structure is checked before
    targets = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return lmccheck.load_pair(
        random_state(module, 1, 0.7), random_state(module, 2, 0.7), model=module, data=(inputs[0], targets),
        calibration=(inputs[0], targets), loss="mse", device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_its_reason(name: str) -> None:
    """What the theory does not cover is an UnsupportedArchitecture that names the op or tensor."""
    from lmccheck.symmetry.discover import derive, structure_of

    module, inputs = NETWORKS[name]()
    with pytest.raises(UnsupportedArchitecture, match=REFUSED[name]):
        structure_of(derive(module.eval(), inputs))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(REFUSED)))
def test_ten_segments_on_every_other_network(name: str) -> None:
    """Both forms of the ten-segment path hold their claims; where layers are in sequence, Theorem 1's do too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = network_pair(name)
        structure = structure_for(pair)
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    stuck = immovable(structure, theta_a, theta_b)
    if stuck is not None:
        for tensor in theta_b:
            if tensor not in structure.rows and tensor not in structure.head and tensor not in structure.inert:
                theta_b[tensor] = theta_a[tensor]
        if immovable(structure, theta_a, theta_b) is not None:
            return
        pair.theta_b.update(structure.stored(theta_b))
    for form in ("paper", "short"):
        path = ten_segments(
            structure, theta_a, theta_b, masked(structure, theta_a, 0, 1), masked(structure, theta_b, 0, 2), form
        )
        found = certify(pair, structure, path, profile="dev")
        assert found.deviation <= 1e-12
        if structure.sequential:
            a, b = all_levels(structure, theta_a, 1), all_levels(structure, theta_b, 2)
            first = certify(pair, structure, dropout_path_between(structure, theta_a, theta_b, a, b, form))
            assert first.exact
            between = max(float(segment.largest) for segment in first.segments)
            assert first.largest == between


def test_batch_statistics_at_every_point() -> None:
    """T17: BatchNorm that takes the batch's own statistics holds every claim too: dead units do not influence them."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), nn.Conv2d(6, 7, 3),
        nn.BatchNorm2d(7, track_running_stats=False), nn.Tanh(), nn.Flatten(), nn.Linear(7 * 36, 5),
    ).double()  # fmt: skip
    pair = random_pair(net, torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double(), 5)
    structure = structure_for(pair)
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    for form in ("paper", "short"):
        path = ten_segments(
            structure, theta_a, theta_b, masked(structure, theta_a, 0, 1), masked(structure, theta_b, 0, 2), form
        )
        assert certify(pair, structure, path).deviation <= 1e-12
        a, b = all_levels(structure, theta_a, 1), all_levels(structure, theta_b, 2)
        assert certify(pair, structure, dropout_path_between(structure, theta_a, theta_b, a, b, form)).exact
