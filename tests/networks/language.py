"""Language models with a head that is tied to the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks import Attention, residual


class LanguageModel(nn.Module):
    """Two pre-norm blocks of width 8 with two heads, learned positions, LayerNorm; tokens (n, T ≤ 6) below 7."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.position = nn.Parameter(torch.randn(6, 8))
        parts: list[nn.Module] = []
        for _ in range(2):
            inner = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
            parts += [residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2, "chunk")))]
            parts += [residual(nn.Sequential(nn.LayerNorm(8), inner))]
        self.blocks = nn.Sequential(*parts)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.position[: tokens.shape[1]])))


def tied_language_model() -> LanguageModel:
    """Return one with random weights, gains and shifts."""
    return LanguageModel()
