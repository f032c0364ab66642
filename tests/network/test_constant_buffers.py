"""Buffers that checkpoints share are constants of the network; running statistics move with their channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError, SymmetryError

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (24,), generator=torch.Generator().manual_seed(1))


class Masked(nn.Module):
    """A hidden layer whose weight is multiplied by a stored float mask, (8, 3)."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(F.linear(x, self.a.weight * self.mask, self.a.bias)))


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: all four are buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


class Whitened(Frozen):
    """The same under other names: only the graph tells that it is a norm."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        for name in ("mu", "sigma2"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mu) / torch.sqrt(self.sigma2 + 1e-5)


def weights(build: Callable[[], nn.Module], seed: int, **same: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {**{k: v.clone() for k, v in build().state_dict().items()}, **same}


def pair_of(build: Callable[[], nn.Module], a: dict[str, Tensor], b: dict[str, Tensor]) -> lmccheck.ModelPair:
    return lmccheck.load_pair(a, b, model=build, data=(X, Y), calibration=(X, Y), device="cpu")


def test_a_mask_that_tells_units_apart_keeps_them_in_place() -> None:
    """Units of a MADE-like layer stay, with the mask named, and the aligned mask is the mask."""
    mask = (torch.arange(8)[:, None] % 3 >= torch.arange(3)).float()
    build = lambda: Masked(mask.clone())  # noqa: E731  # a builder in one line
    pair = pair_of(build, weights(build, 0), weights(build, 1))
    assert pair.network.spec.groups == ()
    assert any("mask is equal in all checkpoints" in str(frozen.reason) for frozen in pair.network.spec.frozen)
    found = lmccheck.linear_connectivity(pair, align="weight-matching", limit=1.0)
    assert torch.equal(found.witness.weights["mask"], mask)
    assert found.value == lmccheck.linear_connectivity(pair, align="none", limit=1.0).value


def test_a_mask_that_is_the_same_for_all_units_leaves_them_free() -> None:
    """Every permutation of units leaves such a mask unchanged: its units may move, and it stays what it is."""
    mask = torch.tensor([1.0, 0.0, 1.0]).expand(8, 3).clone()
    build = lambda: Masked(mask.clone())  # noqa: E731  # a builder in one line
    pair = pair_of(build, weights(build, 0), weights(build, 1))
    (group,) = pair.network.spec.groups
    assert {(slot.tensor, slot.dim) for slot in group.slots} >= {("a.bias", 0), ("a.weight", 0), ("b.weight", 1)}
    assert torch.equal(lmccheck.align(pair).weights["mask"], mask)


class WithNothing(nn.Module):
    """A network that stores a tensor of no numbers, by which it multiplies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("empty", torch.zeros(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        hidden = torch.tanh(self.a(x))
        return self.b(torch.cat([hidden, self.empty]))


def test_a_buffer_of_no_numbers_is_a_constant_like_others() -> None:
    """Its units may move."""
    pair = pair_of(WithNothing, weights(WithNothing, 0), weights(WithNothing, 1))
    assert pair.network.spec.groups[0].size == 8
    assert lmccheck.linear_connectivity(pair, limit=100.0).passed


class Broadcast(Whitened):
    """The same, with statistics laid out as they are broadcast."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        for name in ("mu", "sigma2"):
            self.register_buffer(name, torch.ones(1, width))


@pytest.mark.parametrize("norm", [Frozen, Whitened, Broadcast])
def test_frozen_statistics_move_with_their_channels(norm: type[nn.Module]) -> None:
    """Statistics that both checkpoints share, as a fine-tuned backbone's, are permuted like the units of theirs."""
    build = lambda: nn.Sequential(nn.Linear(3, 8), norm(8), nn.Tanh(), nn.Linear(8, 2))  # noqa: E731
    names = {name: buffer.shape for name, buffer in build().named_buffers()}
    same = {n: torch.rand(shape, generator=torch.Generator().manual_seed(5)) + 0.5 for n, shape in names.items()}
    pair = pair_of(build, weights(build, 0, **same), weights(build, 1, **same))
    (group,) = pair.network.spec.groups
    assert set(names) <= {slot.tensor for slot in group.slots}


def test_masks_that_differ_are_refused_and_floats_that_differ_are_not() -> None:
    """Between two masks there is none; a table of numbers between two may be one."""
    build = lambda: Masked(torch.ones(8, 3))  # noqa: E731  # a builder in one line
    a, b = weights(build, 0), weights(build, 1)
    mask = torch.ones(8, 3)
    mask[0, 0] = 0
    with pytest.raises(CheckpointError, match=r"buffer 'mask' is not that of .*a mask or a table"):
        pair_of(build, a, {**b, "mask": mask})
    smooth = pair_of(build, a, {**b, "mask": mask + 0.25})
    notes = lmccheck.linear_connectivity(smooth, align="none", limit=1.0).details["notes"]
    assert any("interpolated like weights: mask" in note for note in notes)


class Causal(nn.Module):
    """Attention with a stored mask of 0 and −inf, (3, 3), over three numbers of width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 4), nn.Linear(4, 2)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x[:, :, None]))
        return self.b((h @ h.mT + self.mask).softmax(-1) @ h)[:, 1]


def test_a_mask_of_infinities_is_one_between_two_networks_too() -> None:
    """It is no sign of divergence; the middle has the loss of a module by hand, and the aligned mask is the mask."""
    a, b = weights(Causal, 0), weights(Causal, 1)
    found = lmccheck.linear_connectivity(pair_of(Causal, a, b), align="weight-matching", points=3, limit=1.0)
    aligned, between = found.witness.weights, Causal()
    assert torch.equal(aligned["mask"], a["mask"])
    between.load_state_dict({k: a[k] if k == "mask" else (a[k] + aligned[k]) / 2 for k in a})
    middle = found.details["losses"][found.details["t"].index(0.5)]
    assert middle == pytest.approx(float(F.cross_entropy(between(X), Y).detach()), abs=1e-6)


def test_infinities_that_differ_have_nothing_between_them() -> None:
    """Whatever the other numbers are; those of a parameter or of running statistics have diverged."""
    a, b = weights(Causal, 0), weights(Causal, 1)
    for other in (a["mask"].T.clone(), torch.full((3, 3), 0.5), a["mask"] + 0.5):
        with pytest.raises(CheckpointError, match=r"buffer 'mask' is not that of .*a mask or a table"):
            pair_of(Causal, a, {**b, "mask": other})
    with pytest.raises(CheckpointError, match="this checkpoint diverged"):
        pair_of(Causal, a, {**b, "a.bias": torch.tensor([0.0, torch.inf, 0.0, 0.0])})
    norm = lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))  # noqa: E731  # a builder in one line
    bad = weights(norm, 0, **{"0.running_var": torch.tensor([1.0, torch.inf, 1.0])})
    with pytest.raises(CheckpointError, match="this checkpoint diverged"):
        pair_of(norm, bad, weights(norm, 1))


def test_in_a_set_only_what_all_share_is_a_constant() -> None:
    """Three models, of which one has another (smooth) table: its units move with it."""
    table = torch.rand(8, 3, generator=torch.Generator().manual_seed(3))
    build = lambda: Masked(table.clone())  # noqa: E731  # a builder in one line
    states = [weights(build, k) for k in range(3)]
    same = lmccheck.load_set(states, model=build, data=(X, Y), device="cpu")
    assert same.network.spec.groups == ()
    other = lmccheck.load_set([*states[:2], {**states[2], "mask": table + 0.1}], model=build, data=(X, Y), device="cpu")
    assert [group.size for group in other.network.spec.groups] == [8]


def test_a_spec_of_the_users_own_that_moves_a_constant_is_refused(tmp_path: Any) -> None:
    """A spec that permutes the mask keeps the function of b, and would break the merge."""
    mask = (torch.arange(8)[:, None] % 3 >= torch.arange(3)).float()
    build = lambda: Masked(mask.clone())  # noqa: E731  # a builder in one line
    spec = lmccheck.discover_symmetry(build(), (X,))
    assert "mask" in {slot.tensor for group in spec.groups for slot in group.slots}
    a, b = weights(build, 0), weights(build, 1)
    pair = lmccheck.load_pair(a, b, model=build, data=(X, Y), device="cpu", symmetry=spec)
    with pytest.raises(SymmetryError, match="it permutes 'mask'"):
        lmccheck.align(pair)


def test_no_single_element_of_the_group_decides_whether_a_constant_moves() -> None:
    """A mask that one permutation of the units happens to leave as it is is moved by others."""
    build = lambda: Masked(torch.ones(8, 3))  # noqa: E731  # a builder in one line
    spec = lmccheck.discover_symmetry(build(), (X,))
    (group,) = spec.groups
    order = spec.moving(0)[group.name]
    circle, unit = [0], int(order[0])
    while unit:
        circle, unit = [*circle, unit], int(order[unit])
    mask = torch.ones(8, 3)
    mask[circle, 0] = 0.5
    assert len(circle) < 8
    assert torch.equal(mask[order], mask)
    a, b = weights(build, 0, mask=mask), weights(build, 1, mask=mask)
    pair = lmccheck.load_pair(a, b, model=build, data=(X, Y), device="cpu", symmetry=spec)
    with pytest.raises(SymmetryError, match="it permutes 'mask'"):
        lmccheck.align(pair)
