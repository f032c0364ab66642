"""Points of weight space: interpolated, and brought to the dtype and device they are evaluated in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmccheck.modules.precision import working_dtype as working_dtype  # known by this name above
from lmccheck.store.tensors import between


def interpolate(theta_a: Mapping[str, Tensor], theta_b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return (1−t)·θ_A + t·θ_B; exact at both ends and where both agree, integer tensors from the nearer end."""
    return {name: interpolated(a, theta_b[name], t) for name, a in theta_a.items()}


def interpolated(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return one tensor of ``interpolate``."""
    if t == 0.0 or t == 1.0:
        return a if t == 0.0 else b
    return between(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b)


def upcast(weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return weights on the device, floating tensors in ``dtype``; tied tensors stay one tensor."""
    weights, done = dict(weights), dict[int, Tensor]()  # held: what is made where it is asked for has no id of its own
    for tensor in weights.values():
        if id(tensor) not in done:
            done[id(tensor)] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
    return {name: done[id(tensor)] for name, tensor in weights.items()}


@dataclass(frozen=True)
class Line:
    """The line (1−t)·first + t·second in one dtype, on one device: every tensor is made where it is asked for.

    A large network is held twice, as it is stored, and not twice or four times more in float64.
    """

    first: Mapping[str, Tensor] = field(repr=False)
    second: Mapping[str, Tensor] = field(repr=False)
    dtype: torch.dtype
    device: torch.device

    def at(self, t: float) -> Mapping[str, Tensor]:
        """Return the point at t."""
        return _OnLine(self, t)

    def ends(self, name: str) -> tuple[Tensor, Tensor]:
        """Return one tensor at both ends; what is one there is one here."""
        found = upcast({"first": self.first[name], "second": self.second[name]}, self.dtype, self.device)
        return found["first"], found["second"]


@dataclass(frozen=True)
class _OnLine(Mapping[str, Tensor]):
    """A point of a line."""

    line: Line
    t: float

    def __getitem__(self, name: str) -> Tensor:
        return interpolated(*self.line.ends(name), self.t)

    def __iter__(self) -> Iterator[str]:
        return iter(self.line.first)

    def __len__(self) -> int:
        return len(self.line.first)
