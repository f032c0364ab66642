"""Modules that are more than their weights are refused, since loading a checkpoint by name would not mean them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import Written
from networks.small import seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck import SourceError, UnsupportedArchitecture
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.modules.fresh import apart

DATA = torch.randn(16, 4), torch.randint(0, 3, (16,))


class Wrapped(nn.Module):
    """A network with another one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def load(build: Any) -> lmccheck.ModelPair:
    """Load two seeded checkpoints of a wrapped network into what ``build`` makes."""
    return lmccheck.load_pair(seeded(Wrapped, 0), seeded(Wrapped, 1), model=build, data=DATA)


def test_a_state_dict_of_copies_is_refused() -> None:
    """Weights written into copies would leave every point of the segment the same network."""

    class Cloning(Wrapped):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {k: v.detach().clone() for k, v in super().state_dict(*args, **kwargs).items()}

    with pytest.raises(UnsupportedArchitecture, match="something other than the parameter"):
        load(Cloning)


def test_extra_state_is_refused() -> None:
    """State that is no tensor is not in a safetensors file."""

    class Extra(Wrapped):
        def get_extra_state(self) -> Any:
            return {"scale": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(UnsupportedArchitecture, match="extra_state"):
        load(Extra)


def test_lazy_modules_are_refused() -> None:
    """A layer without a shape has nothing to compare with."""
    with pytest.raises(SourceError, match="no shape yet"):
        load(nn.Sequential(nn.LazyLinear(6)))


def test_weights_that_eval_merges_are_refused_and_left_alone() -> None:
    """A merged adapter makes the network no function of its checkpoint; the user's module stays as it was."""

    class Merging(Wrapped):
        def train(self, mode: bool = True) -> Any:
            if self.training and not mode:
                with torch.no_grad():
                    self.inner[0].weight.add_(1.0)
            return super().train(mode)

    module = Merging()
    before = module.inner[0].weight.clone()
    with pytest.raises(UnsupportedArchitecture, match="evaluation mode changes"):
        lmccheck.linear_connectivity(load(module))
    with pytest.raises(UnsupportedArchitecture, match="evaluation mode changes"):
        lmccheck.discover_symmetry(module, (DATA[0],))
    assert module.training
    assert torch.equal(before, module.inner[0].weight)


def test_what_a_network_caches_is_forgotten_at_every_point() -> None:
    """A network that keeps what it computed at its first call has the losses of one that does not."""

    class Caching(Wrapped):
        def __init__(self) -> None:
            super().__init__()
            self.fused: list[Tensor] = []
            self.table: dict[str, Tensor] = {}
            self.scale: Tensor | None = None
            self.register_buffer("bias", torch.zeros(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if not self.fused:
                self.fused.append(self.inner[0].weight.detach().clone())
                self.table["bias"] = self.inner[0].bias.detach().clone()
                self.scale = self.inner[0].weight.detach().norm()
                self.bias += self.inner[0].bias.detach()[:3]
            return nn.functional.linear(x, self.fused[0], self.table["bias"])[:, :3] * self.scale + self.bias

    class Plain(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            layer = self.inner[0]
            return nn.functional.linear(x, layer.weight, layer.bias)[:, :3] * layer.weight.norm() + layer.bias[:3]

    kept, plain = (
        lmccheck.linear_connectivity(load(kind), align="none").details["losses"] for kind in (Caching, Plain)
    )
    assert len(set(plain)) > 5
    assert kept == pytest.approx(plain, abs=1e-6)


def test_a_fusion_cached_out_of_reach_is_refused() -> None:
    """A network that keeps weights in a global would have the same loss everywhere."""
    fused: list[Tensor] = []

    class Caching(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            if not fused:
                fused.extend([self.inner[0].weight.detach().clone(), self.inner[0].bias.detach().clone()])
            return nn.functional.linear(x, *fused)[:, :3]

    with pytest.raises(UnsupportedArchitecture, match="keeps what it computed from weights"):
        load(Caching)


def test_a_tiny_network_that_is_dead_on_its_first_samples_is_measured() -> None:
    """One ReLU unit that no weights like its own bring to life: its loss is that of zeros, not a refusal."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double()
    state = {"0.weight": torch.tensor([[-1.3]]).double(), "2.weight": torch.tensor([[0.4], [0.5]]).double()}
    module.load_state_dict(state)
    data = torch.tensor([[0.5], [0.9]]).double(), torch.tensor([0, 1])
    pair = lmccheck.load_pair(state, state, model=module, data=data, device="cpu")
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    found = evaluator.measure(evaluator.weights(state), reestimate=False, label="here")
    assert found.loss == pytest.approx(math.log(2))


def test_a_random_forward_is_refused() -> None:
    """Noise in evaluation mode is no property of the pair."""

    class Noisy(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(1)

    with pytest.raises(UnsupportedArchitecture, match="two outputs for the same weights"):
        lmccheck.linear_connectivity(load(Noisy), align="none")


def test_a_buffer_that_aliases_a_weight_is_refused() -> None:
    """An unstored view of a stored tensor would keep the old weights."""

    class Aliasing(Wrapped):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("view", self.inner[0].weight.detach(), persistent=False)

    with pytest.raises(UnsupportedArchitecture, match="shares memory"):
        load(Aliasing)


def test_views_of_one_flat_buffer_are_separate_weights() -> None:
    """Parameters that lie side by side in one allocation do not overlap, and stay free."""
    memory = torch.randn(24 + 18)
    a, b = nn.Parameter(memory[:24].view(6, 4)), nn.Parameter(memory[24:].view(3, 6))
    module = Written(lambda x, a, b: torch.relu(x @ a.t()) @ b.t(), a, b)
    spec = lmccheck.discover_symmetry(module, (DATA[0],))
    assert [group.size for group in spec.groups] == [6]


def test_an_output_object_with_logits_is_compared_by_them() -> None:
    """The check that alignment keeps the function looks into the output; one without numbers is refused."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Objects(Wrapped):
        def forward(self, x: Tensor) -> Any:
            return Output(super().forward(x))

    class Opaque(Wrapped):
        def forward(self, x: Tensor) -> Any:
            return str(super().forward(x).shape)

    pair = load(Objects)
    swapped = {**pair.theta_b, "inner.0.weight": pair.theta_b["inner.0.weight"].flip(0)}
    assert function_deviation(pair.network, pair.theta_b, swapped) > 1e-3
    with pytest.raises(UnsupportedArchitecture, match="no floating tensor"):
        function_deviation(load(Opaque).network, pair.theta_b, swapped)


@pytest.mark.parametrize(
    ("first", "second", "far"),
    [
        ([1.0, 4.0], [1.0, 5.0], 0.25),
        ([math.nan, 4.0], [math.nan, 3.0], 0.25),
        ([math.inf, 4.0], [math.inf, 4.0], 0.0),
        ([math.nan, 4.0], [0.0, 4.0], math.inf),
        ([0.0, 4.0], [math.nan, 4.0], math.inf),
        ([math.inf, 4.0], [-math.inf, 4.0], math.inf),
        ([math.nan, math.nan], [0.0, 0.0], math.inf),
        ([0.0, 0.0], [1e-9, 0.0], math.inf),
    ],
)
def test_how_far_outputs_are_apart(first: list[float], second: list[float], far: float) -> None:
    """Of their size; what is no number is near nothing but the same in the same place."""
    assert apart([torch.tensor(first)], [torch.tensor(second)]) == far
