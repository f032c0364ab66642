"""Tensors as memory: which are one and the same, which overlap, which are equal, and what dtypes are called."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor


def dtype_name(tensor: Tensor) -> str:
    """Return ``float32`` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def identity(tensor: Tensor) -> object:
    """Return what makes two names one tensor: the same elements of the same memory, read in the same order."""
    if tensor.numel() == 0 or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return id(tensor)
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def place(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, 0 where it has none (the tensors of a trace)."""
    with suppress(RuntimeError, NotImplementedError):
        return int(tensor.untyped_storage().data_ptr())
    return 0


def overlap(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors may share memory (their byte ranges meet)."""
    if first is second or not first.numel() or not second.numel():
        return first is second
    if place(first) != place(second) or not place(first):
        return False
    (a, b), (c, d) = _span(first), _span(second)
    return a < d and c < b


def _span(tensor: Tensor) -> tuple[int, int]:
    reach = sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + reach * tensor.element_size()


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, NaN equal to NaN and to nothing else."""
    if torch.equal(first, second):
        return True
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())


def between(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return (1−t)·first + t·second, exact where both agree, also where both are the same ±inf.

    >>> between(torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), 0.25)
    tensor([0.2500,   -inf])
    """
    found = torch.lerp(first, second, t)
    if bool(first.detach().sum().isfinite()):
        return found
    return torch.where(first == second, first, found)


def same_kind(one: Tensor, other: Tensor, *, floats: bool) -> bool:
    """Whether two tensors are of one dtype, or, ``floats``, both of a floating one."""
    return one.dtype == other.dtype or (floats and one.is_floating_point() and other.is_floating_point())


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape and dtype, in words: ``(4, 3) float32``."""
    return f"{tuple(tensor.shape)} {dtype_name(tensor)}"


def mismatch(
    state: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    unknown: str,
    missing: str,
    *,
    but_equal: bool = True,
    floats: bool = False,
) -> str | None:
    """Return where a state has not the names, shapes and dtypes of another, or is not finite, as one clause.

    ``unknown`` and ``missing`` are what is said of a name that only the one or only the other has; what is not finite
    may stay where it is equal to the other's (``but_equal``). ``floats``: floating dtypes count as one.
    """
    for name in (*state, *other):
        if name not in state or name not in other:
            return f"tensor {name!r} is {missing if name in other else unknown}"
        got, expected = state[name], other[name]
        if got.shape != expected.shape or not same_kind(got, expected, floats=floats):
            return f"tensor {name!r}: got {shape_of(got)}, expected {shape_of(expected)}"
        finite = not got.is_floating_point() or bool(got.isfinite().all())
        if not finite and not (but_equal and equal(got, expected)):
            return f"tensor {name!r} is not finite"
    return None


def along(line: Tensor, dim: int, ndim: int) -> Tensor:
    """Return numbers, (n,), as a tensor of ``ndim`` dimensions that broadcasts along one of them.

    >>> import torch
    >>> along(torch.arange(3), 1, 3).shape
    torch.Size([1, 3, 1])
    """
    return line.reshape([-1 if d == dim else 1 for d in range(ndim)])
