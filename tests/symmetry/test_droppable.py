"""Which units may be dropped: the oracle is the function itself, with a unit's outgoing weights at zero."""

from __future__ import annotations

import pytest
import torch
from networks import ALL
from networks.registry import discovered
from torch import Tensor, nn

import lmccheck
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of


def influence(
    module: nn.Module, inputs: tuple[Tensor, ...], group: lmccheck.UnitGroup, drop: bool, seed: int = 0
) -> float:
    """Return how far the output moves when a unit's incoming weights change, its outgoing ones at zero or not."""
    generator = torch.Generator().manual_seed(seed)
    weights = randomised(module, seed)
    copy, unit = (int(torch.randint(n, (), generator=generator)) for n in (group.copies, group.size))

    def owned(slot: lmccheck.Slot) -> Tensor:
        shape = weights[slot.tensor].shape
        return slot.units(torch.arange(shape.numel()).reshape(shape), group.within)[copy, unit]

    outputs = []
    for noise in (0.0, 1.0):
        for slot in group.slots:
            if slot.role == "producer":
                flat = weights[slot.tensor].view(-1)
                flat[owned(slot)] += noise * torch.rand(owned(slot).shape, generator=generator).double()
        for slot in group.slots:
            if slot.role == "consumer" and drop:
                weights[slot.tensor].view(-1)[owned(slot)] = 0.0
        outputs.append(outputs_of(module, weights, inputs, torch.float64))
    return max(float((a - b).abs().max() / (1 + a.abs().max())) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("rule ", "mutant "))])
def test_a_dropped_unit_has_no_influence(name: str) -> None:
    """With the outgoing weights of a droppable unit at zero, its incoming weights do not matter (move b)."""
    module, inputs, spec = discovered(name)
    module.eval()
    for group in spec.groups:
        assert group.droppable == (group.bound == "")
        if group.droppable:
            assert influence(module, inputs, group, drop=True) <= 1e-9, group.name


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("group_norm", {4: False, 2: True}),  # statistics are taken over the four members of a norm group
        ("torch_encoder_pre_norm", {8: True, 12: False}),  # the stream is normalised, the feed-forward layer is not
        ("resnet", {4: False, 6: False}),
        ("vgg", {4: False, 6: False, 9: False}),
        ("autoencoder_tied", {8: True}),
    ],
)
def test_droppable_is_what_math_says(name: str, bound: dict[int, bool]) -> None:
    """Norms across units, and tensors that both make and read them, bind; BatchNorm and convolutions do not."""
    groups = discovered(name)[2].groups
    for size, expected in bound.items():
        assert any(group.size == size and (group.bound != "") == expected for group in groups), size


def test_a_bound_unit_has_influence_although_it_is_dropped() -> None:
    """Dropping a unit of a LayerNorm's axis changes what the others see, so it must not be called droppable."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))
    inputs = (torch.randn(3, 4),)
    (group,) = lmccheck.discover_symmetry(module, inputs).groups
    assert "norm" in group.bound
    assert influence(module, inputs, group, drop=True) > 1e-3


def test_roles_and_vectors_of_slots() -> None:
    """What the path moves act on: incoming rows and per-unit vectors, outgoing blocks."""
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    (group,) = lmccheck.discover_symmetry(module, (torch.randn(2, 1, 4, 4),)).groups
    found = {(slot.tensor, slot.dim, slot.role, slot.vector, slot.learned, slot.block) for slot in group.slots}
    assert found == {
        ("0.weight", 0, "producer", False, True, 1),
        ("0.bias", 0, "producer", True, True, 1),
        ("1.weight", 0, "producer", True, True, 1),
        ("1.bias", 0, "producer", True, True, 1),
        ("1.running_mean", 0, "producer", True, False, 1),
        ("1.running_var", 0, "producer", True, False, 1),
        ("4.weight", 1, "consumer", False, True, 4),
    }
