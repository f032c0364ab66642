"""Symmetry discovery: sound on every family of networks, and complete where the graph allows it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Attention, Written, residual
from networks.registry import discovered, found_groups
from torch import nn

import lmccheck
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.analysis import RULE_FAILED


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_element_keeps_the_function(name: str) -> None:
    """f(π·θ) = f(θ) to 1e-9 in float64 for random weights and random permutations, on every family."""
    module, inputs, spec = discovered(name)
    assert spec.verify(module, inputs, trials=4) <= 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_no_rule_fails_on_a_known_family(name: str) -> None:
    """A rule that raises only costs freedom, which would go unnoticed here."""
    _, _, spec = discovered(name)
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert not spec.unruled


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].groups is not None])
def test_the_groups_that_exist_are_found(name: str) -> None:
    """Group sizes, and which groups lie inside the units of another, are those derived by hand."""
    _, _, spec = discovered(name)
    assert found_groups(spec) == NETWORKS[name].groups


@pytest.mark.parametrize(
    "name", ["resnet", "encoder_chunk", "torch_encoder_pre_norm", "llama_without_rotary", "grouped_convolution"]
)
def test_slots_cover_what_apply_moves(name: str) -> None:
    """Permuting by hand, slot by slot from ``Slot.positions``, equals ``spec.apply``."""
    module, _, spec = discovered(name)
    weights = randomised(module)
    permutation = spec.random(3)
    by_hand = {key: value.clone() for key, value in weights.items()}
    for group in spec.groups:
        for slot in group.slots if not group.within else ():
            positions = slot.positions()[0]  # (size, rest)
            source = by_hand[slot.tensor].movedim(slot.dim, 0)
            target = source.clone()
            target[positions.reshape(-1)] = source[positions[permutation[group.name]].reshape(-1)]
            by_hand[slot.tensor] = target.movedim(0, slot.dim)
    simple = {
        g.name: p if not g.within else spec.identity()[g.name]
        for g, p in zip(spec.groups, permutation.values(), strict=True)
    }
    moved = spec.apply(weights, simple)
    assert all(torch.equal(moved[key], by_hand[key]) for key in weights if spec.tied[key] == key)


def test_an_op_without_a_rule_freezes_and_is_named() -> None:
    """A matrix exponential has no rule: nothing it touches is free, and the spec names it."""

    def exponential(s: Written, x: torch.Tensor) -> torch.Tensor:
        return s.b(torch.linalg.matrix_exp(s.a(x).view(-1, 4, 4)).mean(1))

    module, inputs = Written(exponential, a=nn.Linear(3, 16), b=nn.Linear(4, 2)), (torch.randn(2, 3),)
    spec = lmccheck.discover_symmetry(module, inputs)
    assert spec.unruled == {"aten.linalg_matrix_exp": 1}
    assert any("matrix_exp" in frozen.reason for frozen in spec.frozen)
    assert not [group for group in spec.groups if any(slot.tensor == "a.weight" for slot in group.slots)]


def test_an_order_that_matters_is_frozen_with_its_op() -> None:
    """A cumulative sum tells its positions apart, and says where."""
    _, _, spec = discovered("order_matters")
    assert not spec.groups
    assert any("cumsum" in frozen.reason and ".py:" in frozen.reason for frozen in spec.frozen)


def test_every_frozen_axis_says_why() -> None:
    """Inputs, outputs, kernels and constants are frozen with a reason in words."""
    _, _, spec = discovered("vgg")
    reasons = {(f.tensor, f.dim): f.reason for f in spec.frozen}
    assert "input" in reasons["0.weight", 1]
    assert "output" in reasons["11.weight", 0]
    assert "space" in reasons["0.weight", 2]


def test_tied_tensors_are_permuted_once_and_stay_tied() -> None:
    """A tensor with two names is one tensor before and after."""
    module, _, spec = discovered("language_model_tied")
    shared = module.state_dict(keep_vars=True)
    assert spec.tied["head.weight"] == spec.tied["tokens.weight"]
    moved = spec.apply(shared, spec.random(0))
    assert moved["head.weight"] is moved["tokens.weight"]
    separate = {k: v.detach().clone() for k, v in shared.items()}
    moved = spec.apply(separate, spec.random(0))
    assert torch.equal(moved["head.weight"], moved["tokens.weight"])


def test_integer_tensors_are_never_permuted() -> None:
    """num_batches_tracked and index tables stay as they are."""
    module, _, spec = discovered("resnet")
    weights = module.state_dict()
    moved = spec.apply(weights, spec.random(1))
    assert all(moved[k] is weights[k] for k in weights if not weights[k].is_floating_point())


def test_running_statistics_move_with_their_channels() -> None:
    """BatchNorm's running mean and variance are slots of the channel's group, as buffers."""
    _, _, spec = discovered("vgg")
    slots = {slot.tensor: slot for group in spec.groups for slot in group.slots}
    assert {"4.running_mean", "4.running_var"} <= set(slots)
    assert not slots["4.running_mean"].learned
    assert slots["4.weight"].learned


def test_roles_tell_incoming_from_outgoing_weights() -> None:
    """Rows and biases produce a unit, the next layer's columns consume it; a flatten block belongs to its channel."""
    _, _, spec = discovered("vgg")
    channels = spec.groups[1]
    roles = {(s.tensor, s.dim): (s.role, s.block) for s in channels.slots}
    assert roles["3.weight", 0] == ("producer", 1)
    assert roles["3.bias", 0] == ("producer", 1)
    assert roles["8.weight", 1] == ("consumer", 4)


def test_a_module_that_cannot_be_traced_is_refused_in_one_line() -> None:
    """Control flow that depends on values is refused by name, not half-traced."""
    branch = Written(lambda x, a: a(x) if float(x.sum()) > 0 else x, nn.Linear(2, 2))
    with pytest.raises(UnsupportedArchitecture, match="Written") as caught:
        lmccheck.discover_symmetry(branch, (torch.ones(2, 2),))
    assert "\n" not in str(caught.value)


def test_discovery_leaves_the_module_as_it_was() -> None:
    """Weights, statistics and the training flags of every part are untouched."""
    module, inputs = NETWORKS["resnet"]()
    module.train()
    module[1].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    flags = [part.training for part in module.modules()]
    lmccheck.discover_symmetry(module, inputs).verify(module, inputs)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert flags == [part.training for part in module.modules()]


LAYERS = st.lists(
    st.sampled_from(["linear", "norm", "relu", "skip", "gate", "attention", "concat", "halves", "softmax"]),
    min_size=1,
    max_size=6,
)


def halves(x: torch.Tensor) -> torch.Tensor:
    """The first half times the second, twice over."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * b, a], -1)


def concatenated(x: torch.Tensor, side: nn.Module, join: nn.Module) -> torch.Tensor:
    """A linear layer over the input beside a transform of it."""
    return join(torch.cat([side(x).tanh(), x], -1))


@settings(max_examples=25, deadline=None, derandomize=True)  # test_random_networks has other blocks, and more
@given(kinds=LAYERS, width=st.sampled_from([4, 6, 8]), seed=st.integers(0, 99))
def test_random_networks_keep_their_function(kinds: list[str], width: int, seed: int) -> None:
    """Whatever blocks are stacked, the derived spec keeps the function."""
    torch.manual_seed(seed)
    blocks = {
        "linear": lambda: nn.Linear(width, width),
        "norm": lambda: nn.LayerNorm(width),
        "relu": nn.ReLU,
        "skip": lambda: residual(nn.Sequential(nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width))),
        "gate": lambda: Written(lambda x, gate: x * gate(x).sigmoid(), nn.Linear(width, width)),
        "attention": lambda: Attention(width, 2, ["separate", "chunk", "unbind", "per head"][seed % 4]),
        "concat": lambda: Written(concatenated, nn.Linear(width, 3), nn.Linear(width + 3, width)),
        "halves": lambda: Written(halves),
        "softmax": lambda: nn.Softmax(-1),
    }
    module = nn.Sequential(nn.Linear(3, width), *(blocks[kind]() for kind in kinds), nn.Linear(width, 2))
    inputs = (torch.randn(2, 4, 3),)
    assert lmccheck.discover_symmetry(module, inputs).verify(module, inputs, trials=2, seed=seed) <= 1e-9


def test_frozen_sizes_are_positions() -> None:
    """An axis that cannot move at all is frozen in its whole length, however it is factored."""

    def shuffled(s: Written, x: torch.Tensor) -> torch.Tensor:
        return s.b(s.a(x).view(-1, 3, 4).cumsum(1).cumsum(2).view(-1, 12))

    module = Written(shuffled, a=nn.Linear(2, 12), b=nn.Linear(12, 2))
    spec = lmccheck.discover_symmetry(module, (torch.randn(2, 2),))
    assert {f.size for f in spec.frozen if (f.tensor, f.dim) == ("a.weight", 0)} == {12}


def test_a_mapping_that_makes_its_tensors_on_access_is_permuted_rightly() -> None:
    """Tensors that live only while they are looked at are not confused with each other."""

    class Lazy(dict):  # type: ignore[type-arg]  # a stand-in for a file read tensor by tensor
        def items(self):  # type: ignore[no-untyped-def]  # as above
            return ((key, self[key].clone()) for key in self)

    torch.manual_seed(0)
    module = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.ReLU())])
    spec = lmccheck.discover_symmetry(module, (torch.randn(2, 6),))
    weights = module.state_dict()
    lazy, plain = spec.apply(Lazy(weights), spec.random(0)), spec.apply(weights, spec.random(0))
    assert all(torch.equal(lazy[key], plain[key]) for key in plain)


def test_tracing_leaves_no_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a trace nor a failed trace fills the log that pytest shows with a failure."""
    discovered("encoder_chunk")
    with pytest.raises(UnsupportedArchitecture):
        lmccheck.discover_symmetry(Written(lambda x: x if float(x.sum()) > 0 else -x), (torch.ones(2, 2),))
    assert not caplog.records
