"""What layers read in a run: all of it, once, in whatever way a network is written; and nothing else is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.registry import ALL, seeded
from torch import Tensor, nn

from lmccheck.data.trees import tensors_in
from lmccheck.evaluate.layers_read import LayersRead, Read


def run(module: nn.Module, inputs: tuple[Any, ...], change: Any = lambda read: None) -> tuple[list[Read], Any]:
    """Return all that is shown, and what the module returns."""
    seen: list[Read] = []

    def shown(read: Read) -> Tensor | None:
        seen.append(Read(read.layer, read.call, read.value.clone(), read.along))
        return change(read)  # type: ignore[no-any-return]  # a lambda

    watched = LayersRead(module.eval(), inputs, shown)
    with torch.no_grad(), watched:
        outputs = module(*inputs)
    return seen, watched.outputs(outputs)


@pytest.mark.parametrize("name", ALL)
def test_equal_values_in_their_places_change_nothing(name: str) -> None:
    """Every value that a layer reads is replaced by a copy of it: outputs are equal, bit by bit."""
    module, inputs = seeded(name)
    with torch.no_grad():
        expected = tensors_in(module.eval()(*inputs))
    seen, outputs = run(module, inputs, lambda read: read.value.clone())
    assert seen or not any(p.numel() for p in module.parameters()) or "mutant" in name or "rule" in name
    for one, other in zip(tensors_in(outputs), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def named(module: nn.Module, *inputs: Any) -> list[tuple[str, int, tuple[int, ...], int | None]]:
    """Return layer, call, shape and direction of all that is shown."""
    return [(read.layer, read.call, tuple(read.value.shape), read.along) for read in run(module, inputs)[0]]


TOKENS = torch.randn(2, 5, 8)


def test_torchs_attention_is_two_layers() -> None:
    """What its projections read and what its last one does, positions first; norms read the stream."""
    module = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    assert named(module, TOKENS) == [
        ("self_attn.in_proj_weight", 0, (5, 2, 8), -1),
        ("self_attn.out_proj.weight", 0, (5, 2, 8), -1),
        ("norm1", 0, (2, 5, 8), -1),
        ("linear1", 0, (2, 5, 8), -1),
        ("linear2", 0, (2, 5, 12), -1),
        ("norm2", 0, (2, 5, 8), -1),
    ]


def test_a_layer_that_is_called_again_reads_again() -> None:
    """A cell gets a state and an input at every step; a fused LSTM reads its sequence once, and is named."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.lstm = nn.GRUCell(8, 3), nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 3)
            states = [state := self.cell(x[:, t], state) for t in range(3)]
            return self.lstm(torch.stack(states, 1))[0][:, -1]  # type: ignore[no-any-return]  # a module's

    shapes = [("cell", 0, (2, 8)), ("cell", 1, (2, 8)), ("cell", 2, (2, 3)), ("cell", 3, (2, 8)), ("cell", 4, (2, 3))]
    found = named(Steps(), TOKENS)
    assert [one[:3] for one in found] == [*shapes, ("lstm", 0, (2, 3, 3))]
    watched = LayersRead(module := Steps().eval(), TOKENS, lambda read: None)
    with watched:
        module(TOKENS)
    assert list(watched.fused) == ["lstm"]


def test_a_packed_sequence_is_one_value_and_first_states_are_none() -> None:
    """What an embedding gives is packed and read by a recurrent layer: once, and no noise goes into zeros."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gru = nn.Embedding(9, 6, padding_idx=0), nn.GRU(6, 7, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            lengths = (tokens != 0).sum(1).clamp(min=1)
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embed(tokens), lengths, batch_first=True, enforce_sorted=False
            )
            return self.gru(packed)[1][-1]  # type: ignore[no-any-return]  # as above

    assert named(Packed(), torch.randint(1, 9, (2, 5))) == [("embed", 0, (2, 5, 6), -1)]


def test_maps_are_read_whole_and_columns_along_the_one_before_last() -> None:
    """Convolutions and their norms read maps; of W @ x each column is a position; a derived weight has a name."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(8, 4, 3), nn.GroupNorm(2, 4)
            self.left = nn.Parameter(torch.randn(6, 4))
            self.last = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.left @ self.norm(self.conv(x.mT)).relu())  # type: ignore[no-any-return]  # as above

    assert named(Mixed(), TOKENS) == [
        ("conv", 0, (2, 8, 5), None),
        ("norm", 0, (2, 4, 3), None),
        ("left", 0, (2, 4, 3), -2),
        ("last", 0, (2, 6, 3), -1),
    ]


def test_products_of_two_activations_are_no_layers() -> None:
    """Of queries with keys, as attention is written out: only what makes the queries has weights."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            queries = self.queries(x)
            return queries @ queries.mT  # type: ignore[no-any-return]  # as above

    assert named(Scores(), TOKENS) == [("queries", 0, (2, 5, 8), -1)]


def test_weights_chosen_by_inputs_are_weights_and_looked_up_rows_are_read() -> None:
    """W[expert] multiplies what it is given; E[tokens] is what a layer reads, as an embedding's output would be."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.experts = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(3, 8, 4))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table[tokens]
            return torch.einsum("bd,bdo->bo", x.mean(1), self.experts[tokens[:, 0] % 3])

    tokens = torch.randint(0, 9, (2, 5))
    assert [one[:3] for one in named(Chosen(), tokens)] == [("Chosen", 0, (2, 8))]


def test_a_stream_that_a_norm_of_the_users_reads_is_changed_for_the_sum_as_well() -> None:
    """h + f(norm(h)) becomes h' + f(norm(h')); a mask that the norm is given beside stays as it is."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.weight * x * x.square().mean(-1, keepdim=True).rsqrt() * mask

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = Norm(), nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = x * 1
            return h + self.linear(self.norm(h, mask))  # type: ignore[no-any-return]  # as above

    net, mask = Net(), torch.ones(2, 5, 1)
    seen, moved = run(net, (TOKENS, mask), lambda read: read.value + 1 if read.layer == "norm" else None)
    assert [read.layer for read in seen] == ["norm", "linear"]
    assert torch.allclose(moved, TOKENS + 1 + net.linear(net.norm(TOKENS + 1, mask)))


@pytest.mark.parametrize("inplace", [False, True])
def test_writing_in_place_makes_another_value(inplace: bool) -> None:
    """A ReLU in place is read after it as one of its own is: two values, and the input that is kept stays changed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            kept = self.second(h)
            h = F.relu(h, inplace=inplace)
            view = h.view(-1, 8)
            view[:, 0] = 3.0
            return kept + self.second(h if inplace else view.view(2, 5, 8))  # type: ignore[no-any-return]  # as above

    net = Net()
    seen, moved = run(net, (TOKENS,), lambda read: read.value + 0.5)
    x = net.first(TOKENS + 0.5) + 0.5
    after = F.relu(x)
    after[..., 0] = 3.0
    assert [(read.layer, read.call) for read in seen] == [("first", 0), ("second", 0), ("second", 1)]
    assert torch.allclose(moved, net.second(x) + net.second(after + 0.5))


def test_outputs_hold_what_is_in_their_values_places() -> None:
    """What a network returns and a layer has read is returned as it was read, in a dataclass as in a tuple."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Output:
        hidden: Tensor
        logits: Tensor

    class Net(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.body, self.head, self.kind = nn.Linear(8, 3), nn.Linear(3, 2), kind

        def forward(self, x: Tensor) -> Any:
            hidden = self.body(x)
            return self.kind(hidden, self.head(hidden))

    for kind in (Output, lambda *parts: parts):
        net = Net(kind)
        _, moved = run(net, (TOKENS,), lambda read: read.value + 1 if read.layer == "head" else None)
        hidden, logits = (moved.hidden, moved.logits) if kind is Output else moved
        assert torch.equal(hidden, net.body(TOKENS) + 1)
        assert torch.equal(logits, net.head(hidden))
