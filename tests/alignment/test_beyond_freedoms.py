"""Which maps beyond permutations exist: found where they do, refused with a reason elsewhere."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS
from networks.beyond import BUILD, Weights, found_in, groups_with, turn
from torch import nn

from lmccheck.alignment.beyond.freedoms import Trial, find_freedoms
from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.symmetry.discover import derive

# which are found

EXPECTED: dict[str, dict[str, set[str]]] = {
    "relu deep": {"rescaling": {"0", "2", "4"}, "sign-flips": set()},
    "leaky": {"rescaling": {"0", "2"}, "sign-flips": set()},
    "tanh deep": {"rescaling": set(), "sign-flips": {"0", "2", "4"}},
    "gelu": {"rescaling": set(), "sign-flips": set()},
    "sigmoid": {"rescaling": set(), "sign-flips": set()},
    "linear": {"rescaling": {"0"}, "sign-flips": {"0"}},
    "mlp": {"rescaling": set(), "sign-flips": {"0"}},
    "glu": {"rescaling": {"0"}, "sign-flips": {"0"}},
    "vgg": {"rescaling": {"0", "3", "8"}, "sign-flips": set()},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rescaling_and_flips_exist_as_the_activation_says(name: str) -> None:
    """ReLU is positively homogeneous, tanh odd, the identity both, GELU and sigmoid neither; no heads, no stream."""
    for kind, groups in EXPECTED[name].items():
        assert groups_with(name, kind) == groups
    assert not groups_with(name, "head-maps")
    assert not found_in(name)[3]


def test_a_gated_unit_is_scaled_by_its_linear_half_alone() -> None:
    """SwiGLU: up and down, never the gate, whose SiLU is neither odd nor homogeneous."""
    for name in ("llama", "llama_without_rotary"):
        for freedom in found_in(name)[2]:
            if freedom.group == "gate":
                assert {slot.tensor for slot in freedom.forward} == {"up.weight", "up.bias"}
                assert {slot.tensor for slot in freedom.backward} == {"down.weight"}
        assert {f.kind for f in found_in(name)[2] if f.group == "gate"} == {"rescaling", "sign-flips"}


def test_head_maps_exist_where_nothing_lies_between_the_two_sides() -> None:
    """Queries and keys, values and output map, with biases or without; under rotary positions values alone."""
    for name in ("attention", "attention without biases", "final norm"):
        heads = {group.name for group in found_in(name)[1].spec.groups if group.within}
        assert len(heads) == 2
        assert groups_with(name, "head-maps") == heads
    assert groups_with("llama", "head-maps") == {"v/1"}
    assert groups_with("llama_without_rotary", "head-maps") == {"v/1", "q/2"}
    kept = groups_with("query_key_norm", "head-maps")  # queries and keys are normalised: their maps are not free
    assert kept == {"1.part0/1#2"}


def test_streams_are_found_behind_norms_and_elsewhere_refused_with_a_reason() -> None:
    """Behind LayerNorm, with a final one or not: centred; RMSNorm: not; post-norm or tied: why not is said."""
    for name, readers in (("final norm", 3), ("no final norm", 3), ("encoder_chunk", 5)):
        (stream,) = found_in(name)[3]
        assert stream.centred
        assert stream.group.name == "0"
        assert len(stream.readers) == readers
    for name in ("llama", "llama_without_rotary"):
        (stream,) = found_in(name)[3]
        assert not stream.centred
        assert stream.group.name == "embed"
        assert {reader.gain for reader in stream.readers} == {"norm1.weight", "norm2.weight", None}
    for name in ("post norm", "torch_encoder_post_norm", "language_model_tied"):
        _, _, _, streams, refused = found_in(name)
        assert streams == ()
        assert refused
        assert all(len(why) > 10 and "\n" not in why for why in refused.values())
    assert any("tied" in why for why in found_in("language_model_tied")[4].values())
    assert found_in("gelu")[4] == {}


@pytest.mark.parametrize("name", [*sorted(BUILD.keys() - NETWORKS.keys()), "llama", "llama_without_rotary", "glu"])
def test_what_is_found_keeps_the_function_of_any_weights(name: str) -> None:
    """Every map of every group, with matrices and weights of other seeds than it was verified with, to 1e-9."""
    module, derived, freedoms, streams, _ = found_in(name)
    spec, weights, like = derived.spec, randomised(module, 77), randomised(module, 78)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    inputs = BUILD[name]()[1]
    before = outputs_of(module, weights, inputs, torch.float64)[0]

    def check(changed: Weights) -> None:
        after = outputs_of(module, changed, inputs, torch.float64)[0]
        assert float((after - before).abs().max() / (1 + before.abs().max())) <= 1e-9
        assert any(not torch.allclose(changed[k], weights[k], atol=1e-3) for k in weights)

    for freedom in freedoms:
        group = freedom.units
        if freedom.planes is not None:
            several = torch.randn(2, group.copies, freedom.planes.count, generator=generator, dtype=torch.float64)
            check(freedom.mix(spec, weights, torch.complex(*several)))
            continue
        noise = torch.randn(group.copies, group.size, generator=generator, dtype=torch.float64)
        matrix = {"rescaling": noise.exp(), "sign-flips": noise.sign()}.get(freedom.kind)
        if matrix is None:
            matrix = torch.randn(group.copies, group.size, group.size, generator=generator, dtype=torch.float64)
        elif freedom.kind == "sign-flips":
            matrix[:, 0] = -1
        check(mix_group(spec, group, weights, freedom.forward, freedom.backward, matrix))
    for stream in streams:
        check(stream.rotated(spec, weights, like, turn(stream)))


def test_a_rotated_stream_has_the_gains_of_the_other_network() -> None:
    """rotated(): its norms' gains are those handed in; R is orthogonal and, where LayerNorm centres, keeps all ones."""
    for name in ("final norm", "llama"):
        module, derived, _, (stream,), _ = found_in(name)
        weights, like = randomised(module, 1), randomised(module, 2)
        rotation = turn(stream)
        assert torch.allclose(rotation @ rotation.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
        if stream.centred:
            assert torch.allclose(rotation.sum(0), torch.ones(16, dtype=torch.float64), atol=1e-12)
        rotated = stream.rotated(derived.spec, weights, like, rotation)
        gains = [reader.gain for reader in stream.readers if reader.gain]
        assert gains
        assert all(torch.equal(rotated[gain], like[gain]) for gain in gains)


class Decided(nn.Module):
    """A network whose outputs are classes, which hardly any change of weights changes."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.layers(x).argmax(1), 3).to(x.dtype)


@pytest.mark.parametrize(("activation", "flipped"), [(nn.ReLU(), set()), (nn.Tanh(), {"layers.0", "layers.2"})])
def test_outputs_that_are_classes_verify_no_flip_by_chance(activation: nn.Module, flipped: set[str]) -> None:
    """Of many draws no ReLU unit can be flipped; tanh is odd, and its units still can."""
    for seed in range(8):
        torch.manual_seed(seed)
        module, inputs = Decided(activation), (torch.randn(2, 5),)
        trial = Trial(module, inputs)
        assert len(trial.draws) == 16
        assert {freedom.group for freedom in find_freedoms(derive(module, inputs), trial, ("sign-flips",))} == flipped
    assert len(Trial(module.layers, inputs).draws) == 2
