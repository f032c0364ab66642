"""What the table of facts says of ops is true of what they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmccheck.symmetry.facts import FACTS
from lmccheck.symmetry.rules import RULES, _table

SETTINGS = {
    "aten.threshold": (0.3, 0.1),
    "aten.clamp": (0.2, 0.7),
    "aten.clamp_min": (0.4,),
    "aten.clamp_max": (0.4,),
    "aten.to": (torch.float64,),
    "aten.type_as": (torch.zeros(1, dtype=torch.float64),),
    **{f"aten.{kind}dropout": (0.5, False) for kind in ("", "alpha_", "feature_", "feature_alpha_")},
    "aten.view": ((4, 3, 6),),
    "aten._unsafe_view": ((4, 3, 6),),
    "aten.reshape": ((4, 3, 6),),
    "aten.flatten": (1,),
    "aten.unflatten": (2, (2, 3)),
    "aten.permute": ((2, 0, 1),),
    "aten.transpose": (0, 1),
    "aten.movedim": (0, 2),
    "aten.unsqueeze": (1,),
    "aten.expand": ((3, 4, 6),),
    "aten.select": (1, 2),
    "aten.slice": (1, 0, 2),
    "aten.narrow": (1, 1, 2),
    **{f"aten.{kind}_pool{n}d": (2,) for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": ((2,) * n,) for n in (1, 2, 3)},
}
WHOLE = {"aten.bitwise_not"}


def sample(name: str, seed: int) -> Tensor:
    """Numbers in (0, 1), in as many dimensions as the op takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4, 4, 4, 4)[: 2 + int(name[-2])] if name.endswith("d") and name[-2].isdigit() else (3, 4, 6)
    shape = (4, 5) if name == "aten.t" else shape
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    return (x * 10).long() if name in WHOLE else x


def call(name: str, x: Tensor) -> Tensor:
    result: Tensor = getattr(torch.ops.aten, name.removeprefix("aten."))(x, *SETTINGS.get(name, ()))
    return result


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.elementwise])
def test_an_elementwise_op_takes_every_number_by_itself(name: str) -> None:
    """In another order the same numbers come out in that order; an op that copies gives what it took."""
    x = sample(name, 0)
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))
    y = call(name, x.reshape(-1)[order].reshape(x.shape))
    assert torch.allclose(y.reshape(-1), call(name, x).reshape(-1)[order], equal_nan=True)
    if FACTS[name].copies:
        assert torch.equal(call(name, x), x)


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.linear])
def test_a_linear_op_is_linear_in_its_first_argument(name: str) -> None:
    """f(2x − 3y) = 2f(x) − 3f(y)."""
    x, y = sample(name, 0), sample(name, 1)
    assert torch.allclose(call(name, 2 * x - 3 * y), 2 * call(name, x) - 3 * call(name, y), atol=1e-12)


UNITWISE = [name for name, facts in FACTS.items() if facts.unitwise and facts.batch_norm is None]


@pytest.mark.parametrize("name", [name for name in UNITWISE if not FACTS[name].elementwise])
def test_a_unitwise_op_takes_every_unit_by_itself(name: str) -> None:
    """Where one channel alone is given, what comes out is that channel of what comes out of all."""
    x = sample(name, 0)
    whole = call(name, x).reshape(x.shape[0], x.shape[1], -1)
    assert torch.equal(call(name, x[:, 2:3]).reshape(x.shape[0], 1, -1), whole[:, 2:3])


def test_every_op_of_the_table_has_a_rule() -> None:
    """A fact about an op that no graph shows, since it has no rule and is decomposed, would never be read."""
    assert not FACTS.keys() - RULES.keys()


def test_every_family_of_rules_is_loaded() -> None:
    """A new module in the package is enough for its rules to be known."""
    folder = Path(str(_table.__file__)).parent
    loaded = {rule.__module__.rsplit(".", 1)[-1] for rule in RULES.values()}
    assert {path.stem for path in folder.glob("[!_]*.py")} == loaded


LAYERS = {  # what they are called with: rows or images of six units in, eight out
    "aten.linear": ((4, 6), (8, 6), (8,)),
    "aten.addmm": ((8,), (4, 6), (6, 8)),
    **{f"aten.conv{n}d": ((4, 6, *[3] * n), (8, 6, *[2] * n), (8,)) for n in (1, 2, 3)},
}


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.layer is not None])
def test_an_output_unit_of_a_layer_reads_its_own_weights(name: str) -> None:
    """Moving the weights and the bias of one unit moves that unit of the output and no other."""
    layer = FACTS[name].layer
    assert layer is not None
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in LAYERS[name]]
    before = getattr(torch.ops.aten, name.removeprefix("aten."))(*arguments)
    assert arguments[layer.source].shape[0] == before.shape[0]
    for place, dim in ((layer.weight, layer.out), (layer.bias, 0)):
        moved = list(arguments)
        moved[place] = arguments[place].clone()
        moved[place].select(dim, 2).add_(1)
        apart = getattr(torch.ops.aten, name.removeprefix("aten."))(*moved) != before
        assert apart.movedim(layer.units, 0).flatten(1).any(1).tolist() == [k == 2 for k in range(8)]
