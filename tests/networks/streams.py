"""Networks in which some units can be dropped and others cannot: streams that are normalised, states, stacked experts.

``STREAMS`` gives, per name, a builder and a function that makes n samples of its inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck

WORDS = 16


class Experts(nn.Module):
    """A hidden layer, then the sum of four experts whose weights are stacked, (4, in, out), over a normed stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.up, self.down = (nn.Parameter(torch.randn(4, *shape)) for shape in ((6, 8), (8, 6)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        made = torch.relu(torch.einsum("ni,eij->enj", self.norm(h), self.up))
        return self.head(h + torch.einsum("enj,ejk->nk", made, self.down))


class Block(nn.Module):
    """A gated feed-forward block on a stream."""

    def __init__(self, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Gated(nn.Module):
    """Two gated blocks, or one that is read twice."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        block = Block()
        self.blocks = nn.ModuleList([block, block if shared else Block()])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Attention(nn.Module):
    """One block of attention with heads of its own, then a feed-forward layer; embeddings tied to the head."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.heads = nn.Embedding(WORDS, 8), heads
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)  # (n, length, 8)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return F.linear(x.mean(1), self.embed.weight)


class Recurrent(nn.Module):
    """Embedded words, layers of a recurrent network, and a head on the last state."""

    def __init__(self, kind: type[nn.Module], layers: int = 2) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(WORDS, 4), kind(4, 6, layers, batch_first=True), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(words))[0][:, -1])


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def group_norm() -> nn.Module:
    middle = [nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), *middle, nn.Flatten(), nn.Linear(16, 3))


def transposed() -> nn.Module:
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def _numbers(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: torch.randn(n, *shape, dtype=torch.float64, generator=generator)


def _words(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, WORDS, (n, 3), generator=generator)


STREAMS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Tensor]]] = {
    "layer norm": (layer_norm, _numbers(5)),
    "group norm": (group_norm, _numbers(2, 4, 4)),
    "gated": (Gated, _numbers(5)),
    "shared block": (lambda: Gated(shared=True), _numbers(5)),
    "experts": (Experts, _numbers(5)),
    "attention": (Attention, _words),
    "lstm": (lambda: Recurrent(nn.LSTM), _words),
    "gru": (lambda: Recurrent(nn.GRU), _words),
    "transposed": (transposed, _numbers(2, 4, 4)),
}
# what is dropped: the modules (or tensors) that make the units of each level, and what is left whole
LEVELS = {
    "layer norm": [["3"]],
    "group norm": [["0"], ["5"]],
    "gated": [["blocks.0.gate"], ["blocks.1.gate"]],
    "shared block": [["blocks.0.gate"]],
    "experts": [["up"]],
    "attention": [["qkv/0"], ["up"]],
    "lstm": [["embed"], ["rnn"], ["rnn#2"]],
    "gru": [["embed"], ["rnn"], ["rnn#2"]],
    "transposed": [["0"], ["2"]],
}
WHOLE = {
    "layer norm": ["0"], "group norm": ["2"], "gated": ["first"], "shared block": ["first"], "experts": ["first"],
    "attention": ["embed"], "lstm": [], "gru": [], "transposed": [],
}  # fmt: skip


@functools.cache
def pair_of(name: str, samples: int = 24) -> lmccheck.ModelPair:
    """Two networks that answer differently, in float64, and what the first one says."""
    build, draw = STREAMS[name]
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append({k: v.clone() for k, v in build().double().state_dict().items()})
    module = build().double()
    module.load_state_dict(states[0])
    generator = torch.Generator().manual_seed(2)
    data = []
    for count in (samples, 4 * samples):
        inputs = draw(count, generator)
        with torch.no_grad():
            data.append((inputs, module.eval()(inputs).argmax(1)))
    return lmccheck.load_pair(*states, model=module, data=data[0], calibration=data[1], device="cpu")
