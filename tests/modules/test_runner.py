"""What a run leaves behind, how inputs are handed over, and what is drawn at random."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import Written
from torch import Tensor, nn

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import Runner, outputs_of
from lmccheck.modules.stored import overlapping_names, tied_names


class Keeping(nn.Module):
    """A layer that writes into whatever it holds when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: list[int] = [7]
        self.table: dict[str, int] = {"x": 7}
        self.register_buffer("total", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        self.table["y"] = 1
        self.total += 1
        self.added = x
        return self.layer(x)


def test_loading_weights_puts_back_everything_a_run_left() -> None:
    """Attributes, lists, dicts, buffers that are not stored are as they were; what a run handed out is left alone."""
    runner = Runner(Keeping())
    weights = copy.deepcopy(Keeping().state_dict())
    for _ in range(2):
        module = runner.module
        runner(torch.zeros(1, 2), "")
        assert (len(module.seen), len(module.table), hasattr(module, "added")) == (2, 2, True)
        runner.load(weights)
        assert (module.seen, module.table) == ([7, 1], {"x": 7, "y": 1})
        assert (runner.module.seen, runner.module.table) == ([7], {"x": 7})
        assert runner.module.total.tolist() == [1.0, 1.0]
        assert not hasattr(runner.module, "added")
        assert runner.module.layer.weight is module.layer.weight


def test_inputs_are_positional_or_by_name() -> None:
    """A tensor, a tuple, a list and a dict each reach forward as they should."""

    class Difference(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return x if y is None else x - 2 * y

    runner, x, y = Runner(Difference()), torch.tensor([5.0]), torch.tensor([1.0])
    for inputs, expected in ((x, 5.0), ((x, y), 3.0), ([x, y], 3.0), ({"y": y, "x": x}, 3.0)):
        assert float(runner(inputs, "")) == expected


def test_a_float64_run_stays_one_and_leaves_the_default_dtype() -> None:
    """What forward turns into float32, by method, by dtype or by default, is float64; complex numbers keep up."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.tensor([1 / 3 + 1j / 7], dtype=torch.complex64))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.float(), x.to(dtype=torch.float32), x.to(torch.float16), torch.zeros(1) + x, (x * self.phase).real

    default, x = torch.get_default_dtype(), torch.tensor([1 / 3], dtype=torch.float64)
    runner = Runner(Narrow(), dtype=torch.float64)
    runner.load({"phase": torch.tensor([1 / 3 + 1j / 7], dtype=torch.complex128)})
    outputs = runner(x, "")
    assert [out.dtype for out in outputs] == [torch.float64] * 5
    assert [float(out) for out in outputs] == pytest.approx([1 / 3] * 4 + [1 / 9], abs=1e-15)
    assert torch.get_default_dtype() == default


def test_random_weights_are_near_the_module_s_own_and_no_two_alike() -> None:
    """Half of their own, half noise of their scale; tied names drawn alike, seeds and tensors apart; variances > 0."""
    net = nn.Sequential(nn.Linear(50, 400), nn.BatchNorm1d(400), nn.Linear(400, 400))
    net.append(nn.Linear(400, 400))
    net[3].weight = net[2].weight
    first, other = randomised(net, 0), randomised(net, 1)
    assert all(tensor.dtype == torch.float64 for name, tensor in first.items() if "tracked" not in name)
    assert first["3.weight"] is first["2.weight"]
    assert float(first["1.running_var"].min()) > 0
    own = net[2].weight.detach().double().flatten()
    drawn = first["2.weight"].flatten()
    assert float(torch.corrcoef(torch.stack([own, drawn]))[0, 1]) > 0.3
    noise = {
        f"{seed} {name}": (2**0.5 * state[name] - dict(net.named_parameters())[name].detach()).flatten()[:400]
        for seed, state in enumerate((first, other))
        for name in ("2.weight", "2.bias", "0.bias")
    }
    between = torch.corrcoef(torch.stack([value.double() for value in noise.values()]))
    assert float((between - torch.eye(6)).abs().max()) < 0.3


def test_names_of_one_tensor_are_tied_and_views_of_others_overlap() -> None:
    """Tied names are one tensor and no view; a part of another parameter is a view."""
    memory = torch.zeros(6)
    one, part = nn.Parameter(memory.view(2, 3)), nn.Parameter(memory[3:])
    module = Written(lambda s, x: x, one=one, again=one, part=part, alone=nn.Parameter(torch.zeros(2)))
    assert tied_names(module) == {"one": "one", "again": "one", "part": "part", "alone": "alone"}
    assert overlapping_names(module) == {"one", "again", "part"}
    tied = Written(lambda s, x: x, one=one, again=one)
    assert overlapping_names(tied) == set()


def test_a_buffer_inside_a_weight_is_refused_wherever_it_begins() -> None:
    """Not only one that is the whole of it."""
    layer = nn.Linear(3, 2)
    layer.register_buffer("row", layer.weight.detach()[1], persistent=False)
    with pytest.raises(UnsupportedArchitecture, match="buffer 'row' is not stored but shares memory"):
        Runner(layer)


class Versioned(nn.Linear):
    """Refuses weights without a version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, notes: dict[str, Any], *rest: Any) -> None:
        if notes.get("version") != 2:
            raise ValueError("version should be set")
        super()._load_from_state_dict(state, prefix, notes, *rest)


def test_a_module_that_demands_its_version_gets_it() -> None:
    """The versions that torch notes beside a state dict are in no file; the outputs are those of the weights given."""
    weights = {"weight": torch.full((2, 3), 2.0), "bias": torch.ones(2)}
    (found,) = outputs_of(
        nn.Sequential(Versioned(3, 2)), {f"0.{k}": v for k, v in weights.items()}, (torch.ones(1, 3),), torch.float64
    )
    assert found.tolist() == [[7.0, 7.0]]


@pytest.mark.parametrize("strength", [1.0, 8.0, 64.0])
def test_drawn_variances_stay_positive(strength: float) -> None:
    """A running variance is a variance however far a draw goes; the weights beside it change sign where it goes far."""
    module = nn.BatchNorm1d(64)
    runner = Runner(module)
    for seed in range(4):
        runner.draw(module, seed, strength)
        assert (runner.module.running_var > 0).all()
        assert strength == 1.0 or (runner.module.weight < 0).any()
        assert (randomised(module, seed)["running_var"] > 0).all()
