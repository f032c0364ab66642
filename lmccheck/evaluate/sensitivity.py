"""What a network's outputs feel of its values: derivatives of the outputs, in random directions, by those values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.trees import input_tensors
from lmccheck.errors import SourceError
from lmccheck.evaluate.graph import GraphRunner, Watching
from lmccheck.modules.precision import exact_float32
from lmccheck.modules.runner import as_source_error
from lmccheck.symmetry.trace import quiet_logs


class NotDifferentiable(SourceError):
    """The network has an op, between the values looked at and its outputs, without a derivative."""


def sensitivities(
    graph: GraphRunner, weights: Mapping[str, Tensor], inputs: Any, watched: Collection[str], seed: int, where: str
) -> dict[str, Tensor]:
    """Return ∂⟨v, outputs⟩/∂value per watched node, of the value's shape; v is standard normal, drawn by ``seed``.

    Every sample has a direction v of its own, the same for all weights of a network. Nodes the outputs do not depend on
    are left out. Raises as ``GraphRunner.run`` does, NotDifferentiable where an op of the network has no derivative.
    """
    traced, given, nodes = graph.prepared(weights, inputs, watched, where)
    held: dict[str, Tensor] = {}

    def follow(name: str, value: Tensor) -> Tensor:
        """Let autograd begin at a value, unless it began before."""
        held[name] = value if value.requires_grad else value.detach().requires_grad_()
        return held[name]

    doing = as_source_error(f"{where}: differentiating the traced model", kind=NotDifferentiable)
    with doing, torch.enable_grad(), exact_float32(), quiet_logs():
        outputs = Watching(traced.module, nodes, follow).run(*given.values())
        followed = [tensor for tensor in input_tensors(outputs) if tensor.requires_grad]
        if not followed:
            return {}
        found = torch.autograd.grad(followed, list(held.values()), _directions(followed, seed), allow_unused=True)
    return {name: value for name, value in zip(held, found, strict=True) if value is not None}


def _directions(outputs: list[Tensor], seed: int) -> list[Tensor]:
    """Return standard normal numbers of the shapes of ``outputs``, the same ones for the same ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(value.shape, generator=generator).to(value) for value in outputs]
