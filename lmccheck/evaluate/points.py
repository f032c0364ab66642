"""Points of weight space: interpolated, and brought to the dtype and device they are evaluated in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.modules.precision import working_dtype as working_dtype  # known by this name above
from lmccheck.store.tensors import between


def interpolate(theta_a: Mapping[str, Tensor], theta_b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return (1−t)·θ_A + t·θ_B; exact at both ends and where both agree, integer tensors from the nearer end."""
    if t == 0.0 or t == 1.0:
        return dict(theta_a if t == 0.0 else theta_b)
    out = {}
    for name, a in theta_a.items():
        b = theta_b[name]
        out[name] = between(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b)
    return out


def upcast(weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return weights on the device, floating tensors in ``dtype``; tied tensors stay one tensor."""
    done: dict[int, Tensor] = {}
    for tensor in weights.values():
        if id(tensor) not in done:
            done[id(tensor)] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
    return {name: done[id(tensor)] for name, tensor in weights.items()}
