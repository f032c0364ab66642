"""Networks whose loss at coefficients per layer is a formula of these coefficients: what a box holds is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import lmccheck

Formula = Callable[[Tensor], Tensor]


class Switch(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(1, dtype=torch.float64))


class Switches(nn.Module):
    """Layers 0 to n − 1, a number each; the output is the square root of a formula of them, times the input."""

    def __init__(self, layers: int, formula: Formula) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Switch() for _ in range(layers))
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(torch.cat([layer.c for layer in self.layers])).clamp(min=0).sqrt() * x


def switches(layers: int, formula: Formula, inputs: Tensor | None = None) -> lmccheck.ModelPair:
    """Return a pair with all numbers 0 in a and 1 in b: at coefficients c a sample x, (n, 1), loses x²·formula(c).

    By default the samples are ones, so that this is the mean squared error.
    """
    states = [
        {f"layers.{k}.c": torch.full((1,), float(end), dtype=torch.float64) for k in range(layers)} for end in (0, 1)
    ]
    ones = torch.ones(3, 1, dtype=torch.float64) if inputs is None else inputs
    return lmccheck.load_pair(
        *states, model=lambda: Switches(layers, formula), data=(ones, torch.zeros_like(ones)), loss="mse", name="s"
    )


def hill(c: Tensor, place: float = 0.5, width: float = 0.5) -> Tensor:
    """1 at a place, falling to 0 at a distance."""
    return (1 - ((c - place) / width).square()).clamp(min=0)
