"""Mixtures of experts as people write them: experts in lists or stacked, routed softly, by masks or by loops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUNT, UNITS = 4, 8


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(6, UNITS), nn.Linear(UNITS, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)))


class Soft(nn.Module):
    """Every expert answers, weighted by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(5, 6), nn.Linear(6, COUNT), nn.Linear(6, 3)
        self.experts = nn.ModuleList(Expert() for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.mixed(x, self.gate(x).softmax(-1)))

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weights[:, k, None] * expert(x) for k, expert in enumerate(self.experts))  # type: ignore[return-value]  # of tensors


class Stacked(Soft):
    """As ``Soft``, the answers stacked and contracted."""

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("be,bde->bd", weights, torch.stack([expert(x) for expert in self.experts], -1))


class TopTwo(Soft):
    """The two best of each sample answer, picked by one-hot masks."""

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        best, which = weights.topk(2, -1)
        best = best / best.sum(-1, keepdim=True)
        return super().mixed(x, (F.one_hot(which, COUNT).to(x.dtype) * best.unsqueeze(-1)).sum(1))


class Dispatched(Soft):
    """As Mixtral before transformers 5: each expert gets the rows that chose it."""

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        best, which = weights.topk(2, -1)
        mask, out = F.one_hot(which, COUNT).permute(2, 1, 0), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            place, row = torch.where(mask[k])
            out.index_add_(0, row, expert(x[row]) * best[row, place, None])
        return out


class Looping(Soft):
    """Experts that nobody chose are passed over, which no graph can say."""

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        best, which = weights.topk(2, -1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            row, place = torch.where(which == k)
            if row.numel():
                out[row] = out[row] + expert(x[row]) * best[row, place, None]
        return out


class Biased(TopTwo):
    """A bias, stored as a buffer, takes part in the choice alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.randn(COUNT))

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        _, which = (weights + self.bias).topk(2, -1)
        return Soft.mixed(self, x, weights * F.one_hot(which, COUNT).sum(1))


class LastLouder(TopTwo):
    """No symmetry: the last expert's answer counts for a little more, whoever it is."""

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().mixed(x, weights) + 0.01 * weights[:, -1:] * self.experts[-1](x)


class Lists(nn.Module):
    """Two lists of matrices and one of vectors, which only move together."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, COUNT, bias=False)
        self.up = nn.ModuleList(nn.Linear(5, UNITS) for _ in range(COUNT))
        self.down = nn.ModuleList(nn.Linear(UNITS, 3, bias=False) for _ in range(COUNT))
        self.shift = nn.ParameterList(nn.Parameter(torch.randn(3)) for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        answers = [self.down[k](self.up[k](x).relu()) + self.shift[k] for k in range(COUNT)]
        return sum(weights[:, k, None] * answer for k, answer in enumerate(answers))  # type: ignore[return-value]  # of tensors


class Two(nn.Module):
    """Two mixtures of as many experts in one module, each with a router of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, COUNT), nn.Linear(5, COUNT)
        self.one = nn.ModuleList(nn.Linear(5, 3) for _ in range(COUNT))
        self.other = nn.ModuleList(nn.Linear(5, 3) for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).softmax(-1), self.second(x).softmax(-1)
        parts = [first[:, k, None] * self.one[k](x) + second[:, k, None] * self.other[k](x) for k in range(COUNT)]
        return sum(parts)  # type: ignore[return-value]  # of tensors


class Tensors(nn.Module):
    """Experts stacked in tensors of three dimensions, those of the two best looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, COUNT)
        self.w1, self.b1 = nn.Parameter(torch.randn(COUNT, 5, UNITS)), nn.Parameter(torch.randn(COUNT, UNITS))
        self.w2 = nn.Parameter(torch.randn(COUNT, UNITS, 3))

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.gate(x).softmax(-1).topk(2, -1)
        hidden = (torch.einsum("bd,bkdh->bkh", x, self.w1[which]) + self.b1[which]).relu()
        return torch.einsum("bk,bkh,bkhc->bc", best, hidden, self.w2[which])


def exchanged(
    weights: Mapping[str, Tensor], order: list[int], rows: tuple[str, ...] = ("gate.weight", "gate.bias")
) -> dict[str, Tensor]:
    """Return weights with expert ``order[k]`` of ``experts`` in place k, its ``rows`` along, units reversed."""
    result = dict(weights)
    for k, source in enumerate(order):
        for name in ("w1.weight", "w1.bias", "w2.bias"):
            moved = weights[f"experts.{source}.{name}"]
            result[f"experts.{k}.{name}"] = moved.flip(0) if name.startswith("w1") else moved.clone()
        result[f"experts.{k}.w2.weight"] = weights[f"experts.{source}.w2.weight"].flip(1)
    return result | {name: weights[name][order] for name in rows}
