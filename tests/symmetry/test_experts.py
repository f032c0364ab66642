"""Whole experts may change places where that is a symmetry: derived and measured, or said by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks.experts import (
    COUNT,
    UNITS,
    Biased,
    Dispatched,
    LastLouder,
    Lists,
    Looping,
    Soft,
    Stacked,
    Tensors,
    TopTwo,
    Two,
    exchanged,
)  # fmt: skip
from torch import nn

import lmccheck
from lmccheck.errors import SymmetryError, UnsupportedArchitecture
from lmccheck.symmetry.discover import derive
from lmccheck.symmetry.experts import with_experts
from lmccheck.symmetry.spec_file import save_spec

ROUTER = [{"tensor": "gate.weight"}, {"tensor": "gate.bias"}]
STACKS = [{"tensor": f"experts.*.{name}"} for name in ("w1.weight", "w1.bias", "w2.weight", "w2.bias")]
HIDDEN = [
    {"tensor": "experts.*.w1.weight", "dim": 1},
    {"tensor": "experts.*.w1.bias", "dim": 1},
    {"tensor": "experts.*.w2.weight", "dim": 2},
]


class Residual(nn.Module):
    """Layers of one shape, each of which reads the sum of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(5, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def found(kind: type[nn.Module], samples: int = 2) -> dict[str, tuple[int, tuple[str, ...]]]:
    spec = lmccheck.discover_symmetry(seeded(kind), (torch.randn(samples, 5),))
    return {group.name: (group.size, group.within) for group in spec.groups}


@pytest.mark.parametrize("kind", [pytest.param(Soft, marks=pytest.mark.slow), Stacked, Dispatched, Biased])
def test_experts_of_a_list_are_units_with_units_inside(kind: type[nn.Module]) -> None:
    """However they are routed: one group of four experts, and the eight hidden units of each in an order of its own."""
    groups = found(kind)
    assert groups["experts"] == (COUNT, ())
    assert groups["experts.*.w1"] == (UNITS, ("experts",))
    assert not [name for name in groups if name.startswith("experts.0.w1")]


def test_the_group_moves_whole_experts_and_their_rows() -> None:
    """Applied, it is what renaming tensors and moving the router's rows by hand is; outputs stay as they were."""
    module, x = seeded(TopTwo), torch.randn(20, 5)
    spec, weights = lmccheck.discover_symmetry(module, (x[:2],)), module.state_dict()
    order = [2, 0, 3, 1]
    moved = {**spec.identity(), "experts": torch.tensor(order)}
    moved["experts.*.w1"] = torch.arange(UNITS).flip(0).expand(COUNT, -1).clone()
    applied, expected = spec.apply(weights, moved), exchanged(weights, order)
    assert list(applied) == list(weights)
    assert all(torch.equal(applied[name], expected[name]) for name in weights)
    before = module(x)
    module.load_state_dict(applied)
    assert torch.allclose(module(x), before, atol=1e-6)


def test_lists_that_belong_together_are_one_group() -> None:
    """Two lists of matrices and one of vectors move with one router; of two mixtures each has a group of its own."""
    assert found(Lists) == {"up": (COUNT, ()), "up.*": (UNITS, ("up",))}
    assert found(Two) == {"one": (COUNT, ()), "other": (COUNT, ())}


def test_stacked_experts_are_freed_too() -> None:
    """Tensors of three dimensions: the order of experts, and of each one's units."""
    assert found(Tensors) == {"experts": (COUNT, ()), "w1": (UNITS, ("experts",))}


def test_what_changes_the_function_stays_frozen() -> None:
    """An expert that is louder than the others by 1 % keeps its place, and so do all; each has its own units still."""
    groups = found(LastLouder, samples=8)
    assert "experts" not in groups
    assert {f"experts.{k}.w1" for k in range(COUNT)} <= groups.keys()


def test_experts_that_are_never_asked_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample asks two experts of four: it takes weights drawn anew until each of them had its say."""
    assert "experts" in found(TopTwo, samples=1)
    monkeypatch.setattr("lmccheck.symmetry.experts.MOST_DRAWS", 1)
    assert "experts" not in found(TopTwo, samples=1)


def test_layers_in_sequence_are_no_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list whose modules read one another is not even tried."""
    monkeypatch.setattr("lmccheck.symmetry.experts.Verification", None)
    assert lmccheck.discover_symmetry(Residual(), (torch.randn(2, 5),)).stacks == {}


def test_a_router_s_constant_keeps_experts_in_place() -> None:
    """A buffer that is equal in all checkpoints is not moved, so that the experts it tells apart are not."""
    module, inputs = seeded(Biased), (torch.randn(2, 5),)
    traced = derive(module, inputs)
    assert with_experts(traced.spec, traced.trace, module, inputs).stacks
    assert not with_experts(traced.spec, traced.trace, module, inputs, {"bias": module.bias}).stacks


def experts_spec(module: nn.Module, slots: list[dict[str, Any]]) -> lmccheck.PermutationSpec:
    groups = [{"name": "experts", "size": COUNT, "slots": slots}]
    inside = {"name": "hidden", "size": UNITS, "within": ["experts"], "slots": HIDDEN}
    return lmccheck.spec_from_groups(module, [*groups, inside] if len(slots) == 6 else groups)


def test_a_file_names_experts_by_a_star(tmp_path: Path) -> None:
    """Where no graph shows it: saved, read again, verified, and the planted order found bit for bit."""
    module, x, y = seeded(Looping), torch.randn(30, 5), torch.randint(0, 3, (30,))
    with pytest.raises(UnsupportedArchitecture):
        lmccheck.discover_symmetry(module, (x[:2],))
    spec = experts_spec(module, [*ROUTER, *STACKS])
    path = save_spec(spec, tmp_path / "experts.toml")
    assert lmccheck.load_spec(path, module) == spec
    a = module.state_dict()
    b = exchanged(a, [3, 1, 0, 2])
    pair = lmccheck.load_pair(a, b, model=Looping, data=(x, y), loss="cross_entropy", device="cpu", symmetry=path)
    weights = lmccheck.align(pair).weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in a.items())


@pytest.mark.parametrize("without", [0, 5])
def test_a_file_that_forgets_a_tensor_is_refused(without: int) -> None:
    """Router or expert: the function changes, and the group is named."""
    slots = [slot for k, slot in enumerate([*ROUTER, *STACKS]) if k != without]
    module, x = seeded(Looping), torch.randn(30, 5)
    pair = lmccheck.load_pair(
        module.state_dict(), module.state_dict(), model=Looping, data=(x, torch.randint(0, 3, (30,))),
        loss="cross_entropy", device="cpu", symmetry=experts_spec(module, slots),
    )  # fmt: skip
    with pytest.raises(SymmetryError, match=r"moved alone, these groups do so: 'experts' \("):
        lmccheck.align(pair)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("experts.*.w9.weight", "stands for 0 tensors of model Soft, expected two or more by one number"),
        ("*.*.w1.weight", "stands for 0 tensors"),
        ("odd.*.weight", "stands for tensors of 2 shapes or dtypes, expected one"),
        ("twin.*.weight", "whose memory is not its own"),
    ],
)
def test_a_star_must_stand_for_tensors_of_one_kind(tensor: str, said: str) -> None:
    """One line says what it stands for."""
    module = Soft()
    module.odd = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])
    module.twin = nn.ModuleList([nn.Linear(2, 2)] * 2)
    with pytest.raises(SymmetryError, match=r"^spec_from_groups: group .* slots\[0\]\.tensor: ") as caught:
        lmccheck.spec_from_groups(module, [{"name": "experts", "size": COUNT, "slots": [{"tensor": tensor}]}])
    assert said in str(caught.value)


def test_a_tensor_has_slots_by_itself_or_in_a_stack() -> None:
    """Not both, which would move it twice."""
    groups = [
        {"name": "experts", "size": COUNT, "slots": [*ROUTER, *STACKS]},
        {"name": "mine", "size": UNITS, "slots": [{"tensor": "experts.0.w1.weight"}]},
    ]
    with pytest.raises(SymmetryError, match=r'experts\.0\.w1\.weight is one of "experts\.\*\.w1\.weight"'):
        lmccheck.spec_from_groups(Soft(), groups)
