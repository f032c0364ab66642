"""A module whose forward pass is a function: what most test networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Written(nn.Module):
    """A forward pass written as a function over parts: modules, parameters, or tensors, which are not saved.

    Where the parts have names, the function takes this module and the inputs; where they have none, the inputs and
    the parts. With ``says`` the module prints in one line.
    """

    def __init__(self, function: Callable[..., Any], *parts: Any, says: str = "", **named: Any) -> None:
        super().__init__()
        self.function, self.says, self.named = function, says, bool(named)
        self.unnamed = [f"part{number}" for number in range(len(parts))]
        for name, part in {**dict(zip(self.unnamed, parts, strict=True)), **named}.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part, persistent=False)
            else:
                setattr(self, name, part)

    def __repr__(self) -> str:
        parts = [said(getattr(self, name)) for name in self.unnamed]
        return (f"{self.says}({', '.join(parts)})" if parts else self.says) if self.says else super().__repr__()

    def forward(self, *inputs: Tensor) -> Any:
        parts = [getattr(self, name) for name in self.unnamed]
        return self.function(self, *inputs) if self.named else self.function(*inputs, *parts)


def said(part: nn.Module | Tensor) -> str:
    """Return a short name: ``Linear(3, 6)`` for a linear layer, the usual form for what is short already."""
    if isinstance(part, Tensor):
        return f"Weight{tuple(part.shape)}"
    if isinstance(part, nn.Linear):
        return f"Linear({part.in_features}, {part.out_features}{'' if part.bias is not None else ', no bias'})"
    return repr(part).split(", eps=")[0]


def param(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """Return a random parameter."""
    return nn.Parameter(torch.randn(shape) * scale)


def residual(body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None) -> nn.Module:
    """x + body(x), optionally with a projection on the skip and an activation after the sum."""
    parts = {"body": body, "skip": skip or nn.Identity(), "after": after or nn.Identity()}
    return Written(lambda s, x: s.after(s.skip(x) + s.body(x)), **parts)
