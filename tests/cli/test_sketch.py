"""A chain of layers is written down from names and shapes where they say it; in any other case nothing is guessed."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from lmccheck.cli.sketch import Choice, Unclear, chain, choices, source
from lmccheck.store.header import TensorHeader


def headers(module: nn.Module) -> dict[str, TensorHeader]:
    """What a file of its weights says, sorted as such files are."""
    return {name: TensorHeader("F32", tuple(tensor.shape)) for name, tensor in sorted(module.state_dict().items())}


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def written(module: nn.Module, choice: Choice) -> nn.Module:
    """The network that is written down for a module's tensors, with its weights."""
    made = eval(source(chain(headers(module)), choice), {"nn": nn, "OrderedDict": OrderedDict})
    made.load_state_dict(module.state_dict())
    return made.eval()


CASES = {
    "numbered, with dropout": (
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3, bias=False)),
        Choice("nn.Tanh()"),
        (4,),
    ),
    "twelve layers in the order of their numbers": (
        nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 2)),
        Choice("nn.ReLU()"),
        (4,),
    ),
    "names in an order of their own": (
        named(stem=nn.Linear(4, 6), a=nn.GELU(), hidden=nn.Linear(6, 5), b=nn.GELU(), classifier=nn.Linear(5, 3)),
        Choice("nn.GELU()"),
        (4,),
    ),
    "images": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, (3, 5)),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 3 * 3, 3),
        ),
        None,
        (1, 16, 16),
    ),
    "averaged maps in boxes": (
        named(
            features=nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 5, 3, bias=False), nn.BatchNorm1d(5)),
            head=named(a=nn.ReLU(), b=nn.AdaptiveAvgPool1d(1), c=nn.Flatten(), out=nn.Linear(5, 3)),
        ),
        Choice("nn.ReLU()", same=False, average=True),
        (2, 9),
    ),
    "flattened first": (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)),
        Choice("nn.ReLU()", flat=True),
        (3, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] is not None])
def test_what_is_written_computes_the_same(name: str) -> None:
    """With the same weights the written network gives the outputs of the one whose names and shapes were read."""
    module, choice, shape = CASES[name]
    assert choice is not None
    inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(written(module, choice)(inputs), module.eval()(inputs), rtol=0, atol=0)


def test_what_may_be_chosen() -> None:
    """Five functions; of convolutions also padding, pooling and averaging; of one layer nothing."""
    assert len(choices(chain(headers(CASES["numbered, with dropout"][0])), (4,))) == 5
    assert len(choices(chain(headers(CASES["images"][0])), (1, 16, 16))) == 5 * 8
    assert choices(chain(headers(nn.Linear(4, 3))), (4,)) == [Choice("nn.ReLU()")]
    assert [each.activation for each in choices(chain(headers(CASES["flattened first"][0])), None)] == ["ACTIVATION()"]


def test_layers_of_one_shape_are_in_the_order_of_their_numbers() -> None:
    """hidden10 comes after hidden9."""
    module = named(**{f"hidden{k}": nn.Linear(4, 4) for k in range(12)}, out=nn.Linear(4, 2))
    assert [layer.name for layer in chain(headers(module))] == [*(f"hidden{k}" for k in range(12)), "out"]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (named(a=nn.Linear(4, 4), b=nn.Linear(4, 4)), "several orders (a → b; b → a)"),
        (named(a=nn.Linear(4, 5), b=nn.Linear(6, 3)), "do not fit one another as a chain"),
        (named(a=nn.Linear(4, 5), b=nn.LayerNorm(5)), "'b' with bias (5,), weight (5,) is no Linear, no Conv"),
        (named(a=nn.LSTM(4, 5)), "tensor 'a.bias_hh_l0' is of no layer"),
        (nn.Sequential(nn.ReLU()), "there are no tensors"),
    ],
)
def test_what_names_and_shapes_do_not_say_is_not_guessed(module: nn.Module, said: str) -> None:
    """The reason is a clause that names what is in doubt."""
    with pytest.raises(Unclear) as caught:
        chain(headers(module))
    assert said in str(caught.value)


def test_numbered_children_leave_room_or_the_choice_is_none() -> None:
    """Between children 0 and 2 there is one module: no function and pooling and a flattening."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(Unclear, match="2 modules do not fit between '0' and '2'"):
        source(chain(headers(module)), Choice("nn.ReLU()"))
