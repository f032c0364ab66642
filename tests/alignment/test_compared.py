"""What is compared of two networks, and how alike it is said to be: against plain products of permuted weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import NETWORKS
from networks.planted import Weights
from networks.small import seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.many import mean_of
from lmccheck.alignment.matching.norms import counted, merged_norms, rows_alone
from lmccheck.alignment.matching.reassign import affordable, in_turn, nested_groups, reassign
from lmccheck.alignment.matching.similarity import WeightSimilarity, inner
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.spec import PermutationSpec

KEPT = ("mlp", "vgg", "resnet", "encoder_chunk", "llama_without_rotary")


def network(name: str) -> tuple[PermutationSpec, Weights, Weights]:
    """Return a network's spec and the learned tensors of two of its kind."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    spec = lmccheck.discover_symmetry(module, inputs)
    a, b = (counted(spec, randomised(module, k)) for k in (0, 1))
    return spec, a, b


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("keep", [1 << 26, 0])
def test_similarities_that_are_kept_are_those_of_now(name: str, keep: int) -> None:
    """After every step all groups are as alike as a similarity made anew says, and so is ⟨A, π·θ_B⟩."""
    spec, a, b = network(name)
    state = WeightSimilarity(spec, a, b, spec.identity(), keep=keep)
    for group in spec.groups:
        for other in spec.groups:
            state.units(other), state.blocks(other)
        state.place(group)
        fresh = WeightSimilarity(spec, a, b, state.permutation)
        for other in spec.groups:
            assert torch.allclose(state.units(other), fresh.units(other), rtol=0, atol=1e-9)
            for child, block in fresh.blocks(other).items():
                assert torch.allclose(state.blocks(other)[child], block, rtol=0, atol=1e-9)
        moved = spec.apply(b, state.permutation)
        assert all(torch.equal(state.current(key), tensor) for key, tensor in moved.items())
        assert state.objective() == pytest.approx(sum(float((a[k] * moved[k]).sum()) for k in a), rel=1e-12)


def test_float64_weights_are_compared_in_float64() -> None:
    """Products that differ by 1e-12 of their size are told apart; of float32 weights they are float32."""
    torch.manual_seed(0)
    spec = lmccheck.discover_symmetry(small_mlp().double(), (torch.zeros(2, 4).double(),))
    a, b = (counted(spec, {k: v.double() for k, v in seeded(small_mlp, s).items()}) for s in (0, 1))
    group = spec.groups[0]
    found = WeightSimilarity(spec, a, b, spec.identity()).units(group)
    plain = a["0.weight"] @ b["0.weight"].T + torch.outer(a["0.bias"], b["0.bias"]) + a["2.weight"].T @ b["2.weight"]
    assert found.dtype == torch.float64
    assert torch.allclose(found[0], plain, rtol=0, atol=1e-13)


def test_objectives_of_float32_weights_are_added_up_in_float64() -> None:
    """2²⁴ + 1, which float32 cannot hold, of large numbers and one."""
    large = torch.tensor([4096.0, 1.0])
    assert inner(large, large) == 2**24 + 1
    assert inner(large.reshape(2, 1), large.reshape(2, 1)) == 2**24 + 1


def test_a_layer_and_its_batchnorm_are_one_affine_map() -> None:
    """γ·(W·x + b − μ)/√(σ² + ε) + β, as torch computes it, is W'·x + b'; what no longer counts is gone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.3), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if name == "1.running_var" else torch.randn(tensor.shape))
    x = torch.randn(6, 3).double()
    layers = lmccheck.load_pair(
        net.state_dict(), net.state_dict(), model=net, data=(x, torch.zeros(6, dtype=torch.int64))
    ).network.traced.layers
    weights = dict(net.state_dict())
    tensors = {name: tensor for name, tensor in weights.items() if "running" not in name and "tracked" not in name}
    found = merged_norms(tensors, weights, layers)
    assert found.keys() == tensors.keys() - {"0.bias", "1.weight"}
    assert torch.allclose(x @ found["0.weight"].T + found["1.bias"], net[:2](x), atol=1e-12)
    assert torch.equal(found["3.weight"], weights["3.weight"])
    alone = rows_alone(tensors, layers)
    assert alone.keys() == tensors.keys() - {"0.bias", "1.weight", "1.bias"}
    lengths = weights["0.weight"].norm(dim=1)
    assert torch.allclose(alone["0.weight"], weights["0.weight"] / lengths[:, None] * lengths.mean(), atol=1e-12)


def test_a_weight_used_twice_is_not_taken_with_either_batchnorm() -> None:
    """It would be scaled by one and read by the other."""
    layer = {"out": 0, "units": 1, "window": None, "groups": 1, "bias": None, "source": "x", "weight": "w"}
    norms = (lmccheck_norm("m1", "v1"), lmccheck_norm("m2", "v2"))
    layers = [Layer(node=f"n{k}", norm=norm, **layer) for k, norm in enumerate(norms)]
    weights = {"w": torch.ones(2, 2), **{name: torch.full((2,), 4.0) for name in ("m1", "m2", "v1", "v2")}}
    assert torch.equal(merged_norms({"w": weights["w"]}, weights, layers)["w"], weights["w"])
    assert not torch.equal(merged_norms({"w": weights["w"]}, weights, layers[:1])["w"], weights["w"])


def lmccheck_norm(mean: str, variance: str) -> object:
    """Return a BatchNorm without gain and shift."""
    from lmccheck.symmetry.sites import Norm

    return Norm(None, None, mean, variance, 0.0)


def test_only_learned_tensors_that_units_lie_in_count() -> None:
    """Running statistics move with their channels and say nothing of how alike they are."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["resnet"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    names = counted(spec, module.state_dict()).keys()
    assert names
    assert not [name for name in names if "running" in name or "tracked" in name]
    assert names <= dict(module.named_parameters()).keys()


def best(table: Tensor) -> tuple[int, ...]:
    """Return the order of largest sum, of all there are."""
    orders = itertools.permutations(range(len(table)))
    return max(orders, key=lambda order: sum(float(table[i, j]) for i, j in enumerate(order)))


@pytest.mark.parametrize("swap", [0.0, 100.0])
def test_units_and_the_groups_inside_them_are_assigned_together(swap: float) -> None:
    """The best of all orders of outer units and of inner ones in them, where the inner ones decide and where not."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["encoder_separate"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    outer = next(group for group in spec.groups if nested_groups(spec, group))
    children = nested_groups(spec, outer)
    generator = torch.Generator().manual_seed(3)
    similarity = torch.randn(1, outer.size, outer.size, generator=generator, dtype=torch.float64)
    similarity += swap * (1 - torch.eye(outer.size, dtype=torch.float64))
    blocks = {
        child.name: 5 * torch.randn(outer.size, outer.size, child.size, child.size, generator=generator).double()
        for child in children
    }

    def value(order: tuple[int, ...], inner_orders: dict[str, list[tuple[int, ...]]]) -> float:
        total = sum(float(similarity[0, u, v]) for u, v in enumerate(order))
        for name, rows in inner_orders.items():
            for u, v in enumerate(order):
                total += sum(float(blocks[name][u, v, i, j]) for i, j in enumerate(rows[u]))
        return total

    def best_inner(order: tuple[int, ...]) -> dict[str, list[tuple[int, ...]]]:
        return {name: [best(block[u, v]) for u, v in enumerate(order)] for name, block in blocks.items()}

    orders = list(itertools.permutations(range(outer.size)))
    order = max(orders, key=lambda order: value(order, best_inner(order)))
    start = spec.random(7)
    step = reassign(spec, outer, start, similarity, blocks)
    before = value(tuple(range(outer.size)), {c.name: [tuple(range(c.size))] * outer.size for c in children})
    assert step.gain == pytest.approx(value(order, best_inner(order)) - before, abs=1e-9)
    assert step.permutation[outer.name].tolist() == start[outer.name][list(order)].tolist()
    for child in children:
        rows = best_inner(order)[child.name]
        expected = [start[child.name][v][list(rows[u])].tolist() for u, v in enumerate(order)]
        assert step.permutation[child.name].tolist() == expected


def test_groups_inside_units_come_along_with_them() -> None:
    """They are placed when what contains them is, and have no turn of their own."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["encoder_separate"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    inside = {child.name for group in spec.groups for child in nested_groups(spec, group)}
    assert inside
    turns = [(group.name, placed) for group, placed in in_turn(spec)]
    assert [name for name, _ in turns] == [group.name for group in spec.groups if group.name not in inside]
    placed: set[str] = set()
    for name, known in turns:
        assert known == placed
        placed |= {name, *(child.name for child in nested_groups(spec, spec.by_name[name]))}


def test_the_mean_of_weights_is_uniform() -> None:
    """Of one to four; exact where all agree; integers are the first one's."""
    states: list[dict[str, Tensor]] = [
        {"w": torch.tensor([k, 0.1], dtype=torch.float64), "n": torch.tensor(k)} for k in (1, 2, 6, 7)
    ]
    for count, expected in ((1, 1.0), (2, 1.5), (3, 3.0), (4, 4.0)):
        mean = mean_of(iter(states[:count]))
        assert mean["w"].tolist() == [pytest.approx(expected, abs=1e-15), 0.1]
        assert int(mean["n"]) == 1


def test_groups_are_assigned_as_often_as_the_budget_allows() -> None:
    """Once at least, and never more often than asked for; 6³ + 5³ a time."""
    spec = lmccheck.discover_symmetry(small_mlp(), (torch.zeros(2, 4),))
    cost = 6**3 + 5**3
    assert [affordable(spec, budget, 5) for budget in (0, cost, 3 * cost, 4 * cost - 1, 10**9)] == [1, 1, 3, 3, 5]
