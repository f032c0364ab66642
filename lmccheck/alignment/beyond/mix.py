"""Mixing the units of a group: unit u becomes Σ_v M[u, v]·(unit v), slot by slot; autograd can follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec


def mixed(slot: Slot, tensor: Tensor, matrix: Tensor, outer: Sequence[str]) -> Tensor:
    """Return ``tensor`` with its units mixed by ``matrix`` (copies, size, size), or (copies, size) for a diagonal."""
    matrix = matrix.to(tensor)
    if slot.is_whole(tensor, outer):
        rows = slot.units(tensor).contiguous()
        new = rows * matrix.unsqueeze(-1) if matrix.ndim == 2 else matrix @ rows
        return new.reshape(tensor.movedim(slot.dim, 0).shape).movedim(0, slot.dim).contiguous()
    index = slot.units(torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape), outer)
    flat = tensor.reshape(-1)
    units = flat[index]  # (copies, size, rest)
    new = units * matrix.unsqueeze(-1) if matrix.ndim == 2 else matrix @ units
    return flat.index_put((index.reshape(-1),), new.reshape(-1)).reshape(tensor.shape)


def mix_group(
    spec: PermutationSpec,
    group: UnitGroup,
    weights: Mapping[str, Tensor],
    forward: Sequence[Slot],
    backward: Sequence[Slot],
    matrix: Tensor,
) -> dict[str, Tensor]:
    """Return ``weights`` with M applied to the ``forward`` slots of a group and M⁻ᵀ to the ``backward`` ones.

    All names of a tied tensor are changed alike.
    """
    other = 1 / matrix if matrix.ndim == 2 else torch.linalg.inv(matrix).transpose(-1, -2)
    result = dict(weights)
    for slots, m in ((forward, matrix), (backward, other)):
        for slot in slots:
            changed = mixed(slot, result[slot.tensor], m, group.within)
            for name, known in spec.tied.items():
                if known == slot.tensor and name in result:
                    result[name] = changed
            result[slot.tensor] = changed
    return result
