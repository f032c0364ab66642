"""MaskedRuns: many multipliers at a time equal one state dict each, and nothing but the multiplied layer changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from networks import NETWORKS, Written
from networks.paths import stream, swiglu
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.edit import lines, multiplied
from lmccheck.errors import LmcError
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.symmetry.discover import structure_of
from lmccheck.symmetry.structure import Structure


def viewed() -> nn.Module:
    """Flattened by a view, with the channels last in memory on the way."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 3))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (NETWORKS["mlp"]()[0], torch.randn(30, 5)),
    "width_one": lambda: (NETWORKS["mlp_width_one"]()[0], torch.randn(30, 5)),
    "conv_batchnorm_flatten": lambda: (NETWORKS["vgg"]()[0], torch.randn(30, 3, 8, 8)),
    "resnet": lambda: (NETWORKS["resnet"]()[0], torch.randn(30, 3, 8, 8)),
    "stream": lambda: (stream(), torch.randn(30, 3, 6, 6)),
    "viewed": lambda: (viewed(), torch.randn(30, 3, 6, 6)),
    "swiglu": lambda: (swiglu(), torch.randn(30, 5)),
}


def state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return float64 weights of a module, running statistics and norm vectors perturbed."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in module.state_dict().items():
        found[name] = tensor.clone()
        if tensor.is_floating_point():
            found[name] = tensor.double() + 0.2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return found


def prepared(name: str) -> tuple[lmccheck.ModelPair, Structure]:
    """Return a pair of a network and its structure."""
    torch.manual_seed(0)
    module, inputs = CASES[name]()
    module.eval()
    targets = torch.randint(0, 3, (len(inputs),))
    pair = lmccheck.load_pair(state(module, 0), state(module, 1), model=module, data=(inputs.double(), targets))
    return pair, structure_of(pair.network.traced)


def masks(structure: Structure, count: int) -> dict[str, Tensor]:
    """Return multipliers of every kind: dropped, doubled, left, and odd ones."""
    torch.manual_seed(1)
    menu = torch.tensor([0.0, 0.0, 1.0, 2.0, -0.3], dtype=torch.float64)
    return {g: menu[torch.randint(0, 5, (count, structure.sizes[g]))] for g in structure.groups}


def one_by_one(pair: lmccheck.ModelPair, structure: Structure, factors: Mapping[str, Tensor]) -> Tensor:
    """Return the same losses from state dicts whose columns are multiplied, with the module itself."""
    own = structure.canonical(pair.theta_a)
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    found = []
    for k in range(len(next(iter(factors.values())))):
        weights = multiplied(structure, own, {g: f[k] for g, f in factors.items()})
        found.append(evaluator.measure(structure.stored(weights), reestimate=False, label="oracle").losses)
    return torch.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_equals_state_dicts_with_multiplied_columns(name: str) -> None:
    """Per-sample losses equal those of the module with its columns multiplied, to 1e-10 in float64."""
    pair, structure = prepared(name)
    factors = masks(structure, 7)
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    found = runs.losses(lines(structure, factors))
    assert runs.vectorised
    assert runs.evaluations == 7
    assert found.shape == (7, 30)
    assert found.dtype == torch.float64
    assert torch.allclose(found, one_by_one(pair, structure, factors), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "stream"])
def test_one_by_one_is_the_same(name: str) -> None:
    """Where ops cannot be mapped they are run in a loop, with the same result."""
    pair, structure = prepared(name)
    factors = lines(structure, masks(structure, 5))
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    mapped = runs.losses(factors)
    runs.vectorised = False
    assert torch.allclose(runs.losses(factors), mapped, rtol=0, atol=1e-12)


def test_an_op_that_cannot_be_mapped_is_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever vmap raises for an op, the losses come out, and ``vectorised`` says how."""
    pair, structure = prepared("swiglu")
    factors = masks(structure, 4)

    def unmapped(*args: object) -> Callable[..., Tensor]:
        raise RuntimeError("Batching rule not implemented for aten::silu")

    monkeypatch.setattr(torch.func, "vmap", unmapped)
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    found = runs.losses(lines(structure, factors))
    assert not runs.vectorised
    assert torch.allclose(found, one_by_one(pair, structure, factors), rtol=0, atol=1e-10)


def test_some_groups_alone() -> None:
    """Groups that get no multipliers are left alone."""
    pair, structure = prepared("swiglu")
    factors = masks(structure, 4)
    last = structure.levels[-1][0]
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    found = runs.losses(lines(structure, {last: factors[last]}))
    kept = {g: factors[g] if g == last else torch.ones_like(factors[g]) for g in structure.groups}
    assert torch.allclose(found, one_by_one(pair, structure, kept), rtol=0, atol=1e-10)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of multipliers run together does not change what comes out."""
    pair, structure = prepared("mlp")
    factors = lines(structure, masks(structure, 7))
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_b)
    together = runs.losses(factors)
    monkeypatch.setattr("lmccheck.evaluate.masked.TOGETHER", 3 * 30 * 7)
    assert torch.allclose(runs.losses(factors), together, rtol=0, atol=1e-13)


def test_a_loss_of_the_users_own_sees_what_the_module_returns() -> None:
    """A loss that takes the module's container, and that no transform could map, works."""

    def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return torch.tensor([float(row.max()) for row in outputs["scores"]]).double() + targets

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    module = Written(lambda x, net: {"scores": net(x)}, net).eval()
    data = torch.randn(12, 5).double(), torch.randint(0, 3, (12,))
    pair = lmccheck.load_pair(state(module, 0), state(module, 1), model=module, data=data, loss=loss)
    structure = structure_of(pair.network.traced)
    factors = masks(structure, 3)
    runs = MaskedRuns(pair.network, structure, pair.data, torch.float64)
    runs.load(pair.theta_a)
    assert torch.allclose(runs.losses(lines(structure, factors)), one_by_one(pair, structure, factors), atol=1e-6)


def test_nothing_loaded_is_said() -> None:
    """Losses before load is one clear line."""
    pair, structure = prepared("mlp")
    with pytest.raises(LmcError, match="load"):
        MaskedRuns(pair.network, structure).losses(lines(structure, masks(structure, 1)))


class Returns(nn.Module):
    """A perceptron with a scale of its own, and what it returns of its output, its activations and its weights."""

    def __init__(self, what: Callable[[Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.log_std = nn.Parameter(torch.zeros(3))
        self.what = what

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.last(self.first(x).relu())
        return {"logits": out, "more": self.what(out, self)}


class Held:
    """Something of the user's own that holds a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def normal(out: Tensor, net: nn.Module) -> torch.distributions.Normal:
    """Return a policy's distribution, as policy heads do."""
    return torch.distributions.Normal(out, net.log_std.exp(), validate_args=False)


RETURNED: dict[str, tuple[Callable[[Tensor, nn.Module], Any], Callable[[Any], Tensor]]] = {
    "distribution": (normal, lambda more: more.log_prob(torch.ones(3)).sum(1)),
    "its scale": (normal, lambda more: more.scale.sum(1)),
    "object": (lambda out, net: Held(out * 2), lambda more: more.tensor[:, 0]),
    "whole numbers": (lambda out, net: (out * 100).int(), lambda more: more[:, 1].double()),
    "number": (lambda out, net: len(out), lambda more: torch.tensor(float(more))),
    "weights": (lambda out, net: net.last.weight.view(torch.int32), lambda more: more.double().mean()),
    "function": (lambda out, net: lambda: out.abs(), lambda more: more()[:, 2]),
    "nothing": (lambda out, net: None, lambda more: torch.zeros(())),
    "tensors": (lambda out, net: (out.square(), ["a", out.abs()]), lambda more: more[0][:, 0] + more[1][1][:, 1]),
}


@pytest.mark.parametrize("name", RETURNED)
def test_whatever_a_loss_reads_of_an_output_is_that_of_the_network_with_its_units_multiplied(name: str) -> None:
    """Distributions, objects, whole numbers: of every batch, of both endpoints, equal to a loop over state dicts."""
    torch.manual_seed(0)
    what, read = RETURNED[name]
    module = Returns(what)
    states = [{k: t + 0.5 * torch.randn(t.shape) for k, t in module.state_dict().items()} for _ in "ab"]
    data = [(torch.randn(count, 4), torch.zeros(count)) for count in (5, 5, 3)]

    def loss(out: dict[str, Any], y: Tensor) -> Tensor:
        return out["logits"].square().sum(1) + read(out["more"])

    pair = lmccheck.load_pair(*states, model=module, data=data, loss=loss)
    structure = pair.network.droppable("tests")
    factors = masks(structure, 4)
    runs = MaskedRuns(pair.network, structure, dtype=torch.float32)
    for theta in (pair.theta_a, pair.theta_b):
        runs.load(theta)
        found = runs.losses(lines(structure, factors))
        for k, values in enumerate(found):
            with_masks(module, structure, theta, factors, k)
            with torch.no_grad():
                by_hand = torch.cat([loss(module(x), y) for x, y in data])
            assert torch.allclose(values, by_hand.double(), rtol=1e-5, atol=1e-5)
    assert runs.vectorised is (name in ("nothing", "tensors"))


def with_masks(module: nn.Module, structure: Structure, theta: Any, factors: Mapping[str, Tensor], k: int) -> None:
    """Put weights into a module, their columns multiplied by the k-th of several masks."""
    weights = multiplied(structure, structure.canonical(theta), {g: f[k] for g, f in factors.items()})
    module.load_state_dict({name: tensor.float() for name, tensor in structure.stored(weights).items()})


AUXILIARY: dict[str, Tensor] = {}


class Routed(nn.Module):
    """Notes the size of its activations beside its output, as routers note what balances them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mid(self.first(x).relu()).relu()
        AUXILIARY["size"] = hidden.square().mean(1)
        return self.last(hidden)


def test_what_a_network_notes_beside_its_output_is_that_of_the_multiplied_network() -> None:
    """A loss that adds it reads the run that it is the loss of, of every batch."""
    torch.manual_seed(0)
    module = Routed()
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = [(torch.randn(count, 4), torch.zeros(count)) for count in (5, 3)]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return out.square().sum(1) + AUXILIARY["size"]

    single = lmccheck.load_model(own, model=module, data=data, loss=loss)
    structure = single.network.droppable("tests")
    factors = masks(structure, 4)
    runs = MaskedRuns(single.network, structure)
    runs.load(single.theta)
    found = runs.losses(lines(structure, factors))
    for k, values in enumerate(found):
        with_masks(module, structure, own, factors, k)
        with torch.no_grad():
            assert torch.allclose(values, torch.cat([loss(module(x), y) for x, y in data]).double(), rtol=1e-5)
    assert not runs.vectorised
