"""Symmetry discovery: sound on every family of networks, and complete where the graph allows it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Attention, Written, residual
from networks.registry import found_groups
from torch import nn

import lmccheck
from lmccheck.errors import SymmetryError, UnsupportedArchitecture
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry import verify
from lmccheck.symmetry.analysis import RULE_FAILED
from lmccheck.symmetry.slots import Part, Piece


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], lmccheck.PermutationSpec]:
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    return module, inputs, lmccheck.discover_symmetry(module, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_element_keeps_the_function(name: str) -> None:
    """f(π·θ) = f(θ) to 1e-9 in float64 for random weights and random permutations, on every family."""
    module, inputs, spec = build(name)
    assert spec.verify(module, inputs, trials=4) <= 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_no_rule_fails_on_a_known_family(name: str) -> None:
    """A rule that raises only costs freedom, which would go unnoticed here."""
    _, _, spec = build(name)
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert not spec.unruled


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].groups is not None])
def test_the_groups_that_exist_are_found(name: str) -> None:
    """Group sizes, and which groups lie inside the units of another, are those derived by hand."""
    _, _, spec = build(name)
    assert found_groups(spec) == NETWORKS[name].groups


@pytest.mark.parametrize(
    "name", ["resnet", "encoder_chunk", "torch_encoder_pre_norm", "llama_without_rotary", "grouped_convolution"]
)
def test_slots_cover_what_apply_moves(name: str) -> None:
    """Permuting by hand, slot by slot from ``Slot.positions``, equals ``spec.apply``."""
    module, _, spec = build(name)
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


@pytest.mark.parametrize("name", ["mlp", "vgg", "encoder_chunk"])
def test_a_wrong_spec_is_caught(name: str) -> None:
    """Dropping any single slot from a correct spec makes verification fail."""
    module, inputs, spec = build(name)
    for tensor, dims in spec.layouts.items():
        for dim in dims:
            kept = {d: pieces for d, pieces in dims.items() if d != dim}
            broken = dataclasses.replace(spec, layouts={**spec.layouts, tensor: kept})
            assert broken.verify(module, inputs) > 1e-6, f"{tensor} dimension {dim}"
            with pytest.raises(SymmetryError, match="changes the output"):
                verify.require(broken, module, inputs)


def test_a_head_blind_permutation_is_caught() -> None:
    """Permuting the fused attention width as if heads did not exist changes the function, and verification says so."""
    module, inputs, spec = build("encoder_separate")
    name = "1.0.body.1"
    whole = (Piece(0, (Part("blind", 8, 1),)),)
    layouts = {f"{name}.{p}": {0: whole} for p in ("q.weight", "q.bias", "k.weight")}
    group = lmccheck.UnitGroup("blind", 8, ())
    blind = dataclasses.replace(spec, groups=(group,), layouts=layouts)
    assert blind.verify(module, inputs) > 1e-6


def test_zero_initialised_heads_do_not_hide_an_error() -> None:
    """With a zero head every spec would pass on the fresh weights; randomised weights still catch a wrong one."""
    module, inputs, spec = build("vision_transformer")
    layouts = {k: v for k, v in spec.layouts.items() if k != "norm.weight"}
    broken = dataclasses.replace(spec, layouts=layouts)
    fresh = {k: v.double() for k, v in module.state_dict().items()}
    assert broken.verify(module, inputs, weights=fresh) == 0.0
    assert broken.verify(module, inputs) > 1e-6


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
    _, _, spec = build("order_matters")
    assert not spec.groups
    assert any("cumsum" in frozen.reason and ".py:" in frozen.reason for frozen in spec.frozen)


def test_every_frozen_axis_says_why() -> None:
    """Inputs, outputs, kernels and constants are frozen with a reason in words."""
    _, _, spec = build("vgg")
    reasons = {(f.tensor, f.dim): f.reason for f in spec.frozen}
    assert "input" in reasons["0.weight", 1]
    assert "output" in reasons["11.weight", 0]
    assert "space" in reasons["0.weight", 2]


def test_tied_tensors_are_permuted_once_and_stay_tied() -> None:
    """A tensor with two names is one tensor before and after."""
    module, _, spec = build("language_model_tied")
    shared = module.state_dict(keep_vars=True)
    assert spec.tied["head.weight"] == spec.tied["tokens.weight"]
    moved = spec.apply(shared, spec.random(0))
    assert moved["head.weight"] is moved["tokens.weight"]
    separate = {k: v.detach().clone() for k, v in shared.items()}
    moved = spec.apply(separate, spec.random(0))
    assert torch.equal(moved["head.weight"], moved["tokens.weight"])


def test_integer_tensors_are_never_permuted() -> None:
    """num_batches_tracked and index tables stay as they are."""
    module, _, spec = build("resnet")
    weights = module.state_dict()
    moved = spec.apply(weights, spec.random(1))
    assert all(moved[k] is weights[k] for k in weights if not weights[k].is_floating_point())


def test_running_statistics_move_with_their_channels() -> None:
    """BatchNorm's running mean and variance are slots of the channel's group, as buffers."""
    _, _, spec = build("vgg")
    slots = {slot.tensor: slot for group in spec.groups for slot in group.slots}
    assert {"4.running_mean", "4.running_var"} <= set(slots)
    assert not slots["4.running_mean"].learned
    assert slots["4.weight"].learned


def test_roles_tell_incoming_from_outgoing_weights() -> None:
    """Rows and biases produce a unit, the next layer's columns consume it; a flatten block belongs to its channel."""
    _, _, spec = build("vgg")
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


def test_wrong_permutations_are_refused() -> None:
    """Missing groups, wrong shapes and repeated units are errors, not silent gathers."""
    module, _, spec = build("mlp")
    weights = module.state_dict()
    with pytest.raises(SymmetryError, match="missing groups"):
        spec.apply(weights, {})
    with pytest.raises(SymmetryError, match="shape"):
        spec.apply(weights, {**spec.identity(), "0": torch.arange(3)})
    with pytest.raises(SymmetryError, match="not a permutation"):
        spec.apply(weights, {**spec.identity(), "0": torch.zeros(7, dtype=torch.int64)})
    with pytest.raises(SymmetryError, match=r"tensor 0\.weight"):
        spec.apply({**weights, "0.weight": torch.zeros(2, 2)}, spec.identity())


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


@settings(max_examples=60, deadline=None, derandomize=True)
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


def test_verification_that_would_mean_nothing_is_refused() -> None:
    """Another network, no trial, missing weights: an error, not a deviation of zero."""
    module, inputs, spec = build("mlp")
    other, _ = NETWORKS["vgg"]()
    with pytest.raises(SymmetryError, match="another network"):
        spec.verify(other, inputs)
    with pytest.raises(SymmetryError, match="trials"):
        spec.verify(module, inputs, trials=0)
    with pytest.raises(SymmetryError, match="not in the weights"):
        spec.verify(module, inputs, weights={})


def test_tracing_leaves_no_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a trace nor a failed trace fills the log that pytest shows with a failure."""
    build("encoder_chunk")
    with pytest.raises(UnsupportedArchitecture):
        lmccheck.discover_symmetry(Written(lambda x: x if float(x.sum()) > 0 else -x), (torch.ones(2, 2),))
    assert not caplog.records


def test_a_tiny_network_that_is_often_dead_is_still_verified() -> None:
    """Two ReLU units are dead for many draws; that is no proof that the weights do not matter."""
    for seed in range(40):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        inputs = (torch.tensor([[-1.0, -1.0], [-0.9, -1.0]]),)
        assert lmccheck.discover_symmetry(module, inputs).verify(module, inputs, trials=2) <= 1e-9


def test_an_output_that_becomes_nan_is_a_deviation() -> None:
    """A wrong spec that turns a finite output into NaN is infinitely wrong, not right."""

    def only_in_order(s: Written, x: torch.Tensor) -> torch.Tensor:
        return s.head(x) * (1 + (s.order.diff().min() + 1e-9).log().clamp(-1, 1) * 0).sum()

    module = Written(only_in_order, order=nn.Parameter(torch.arange(4.0)), head=nn.Linear(4, 2))
    inputs = (torch.randn(2, 4),)
    weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
    wrong = [{"name": "order", "size": 4, "slots": [{"tensor": "order"}]}]
    spec = lmccheck.spec_from_groups(module, wrong)
    assert spec.verify(module, inputs, weights=weights) == float("inf")
