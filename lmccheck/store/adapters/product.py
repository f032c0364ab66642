"""The product of an adapter with its base, as PEFT's ``merge_and_unload`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmccheck.store.adapters.parts import Product

if TYPE_CHECKING:
    from torch import Tensor


def multiplied(product: Product, base: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Return W + s·BA in the base's dtype; with magnitudes m, m·(W + s·BA)/‖W + s·BA‖, the norm that of each output.

    Computed in float32, in float64 where the base is. Equal to PEFT's bit for bit on one machine: an embedding's
    product is rounded to the base's dtype before it is added, that of other modules with the sum.
    """
    import torch

    working = torch.float64 if base.dtype == torch.float64 else torch.float32
    factors = {name: tensor.to(working) for name, tensor in factors.items()}
    change = factors["bias"] * product.scale if product.kind == "bias" else _change(product, factors)
    if "magnitude" not in factors:
        return (base + (change.to(base.dtype) if product.kind == "embedding" else change)).to(base.dtype)
    if product.kind == "convolution":
        norm = (base + change).norm(p=2, dim=tuple(range(1, base.dim())), keepdim=True).transpose(1, 0)
        shape: tuple[int, ...] = (-1, *(1,) * (base.dim() - 1))
    elif product.outputs_last:
        norm, shape = torch.linalg.norm(base.T + change.T, dim=1), (1, -1)
    else:
        norm, shape = torch.linalg.norm(base + change, dim=1), (-1, 1)
    merged: Tensor = (factors["magnitude"] / norm).view(shape) * (base + change)
    return merged.to(base.dtype)


def _change(product: Product, factors: Mapping[str, Tensor]) -> Tensor:
    from torch.nn import functional

    a, b = factors["A"], factors["B"]
    if product.kind != "convolution":
        found = b @ a
        return (found.T if product.outputs_last else found) * product.scale
    if a.dim() == 4 and a.shape[2:] == (1, 1):
        return (b[:, :, 0, 0] @ a[:, :, 0, 0])[:, :, None, None] * product.scale
    convolve = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[a.dim()]
    changed: Tensor = convolve(a.transpose(0, 1), b)
    return changed.transpose(0, 1) * product.scale
