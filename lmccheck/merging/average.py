"""Weighted sums of checkpoints, one tensor at a time: summed in float64, rounded once to what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lmccheck.errors import CheckpointError
from lmccheck.merging.contract import Making
from lmccheck.modules.constants import COUNTER
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.folders import CONFIG, WEIGHTS
from lmccheck.store.header import NAMES, SAFETENSORS, TensorHeader, header_of
from lmccheck.store.streamed import save_streamed
from lmccheck.store.writing import copy_companions

Get = Callable[[str], Tensor]
MERGE_ONE = "mend: merge checkpoints of one network"


def write_average(
    making: Making, weights: Mapping[str, float], dtype: str | None = None, *, divisor: float = 1.0
) -> Path:
    """Write Σ_k w_k·θ_k / divisor of the parents that have a weight, streamed; return where it lies.

    Floating tensors are summed in float64 in the order of the parents' names and rounded once to the parents' dtype (or
    ``dtype``). Integers must be equal; of BatchNorm's counters the largest is taken. Raises CheckpointError.
    """
    chosen = {name: making.parents[name] for name in sorted(weights)}
    headers = common_headers(chosen, dtype)
    gets = {name: checkpoint.get for name, checkpoint in chosen.items()}
    return write(making, headers, lambda tensor: averaged(tensor, gets, weights, headers[tensor], divisor))


def write_tensors(making: Making, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors that are in memory as the merge; return where it lies."""
    return write(making, {name: header_of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)


def write(making: Making, headers: Mapping[str, TensorHeader], get: Get) -> Path:
    """Write the merge's tensors, one at a time; return where it lies."""
    first = next(iter(making.parents.values()))
    metadata = {key: text for key, text in first.metadata.items() if key != "lmccheck"}
    making.target.mkdir(parents=True, exist_ok=True)
    if first.home is None:
        return save_streamed(making.target / f"merged{SAFETENSORS}", headers, get, metadata)
    save_streamed(making.target / WEIGHTS[0], headers, get, {"format": "pt", **metadata})
    copy_companions(first.home, making.target, config=first.config)
    if (dtype := making.settings.get("dtype")) is not None:
        _say_dtype(making.target / CONFIG, dtype)
    return making.target


def _say_dtype(config: Path, dtype: str) -> None:
    """Let the config beside a merge say the dtype that it is written in, where it says one."""
    if not config.is_file():
        return
    try:
        said = json.loads(config.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{config.name}: no JSON ({error}); mend: save the parents' folder again") from None
    named = {key: dtype for key in ("dtype", "torch_dtype") if key in said}
    config.write_text(json.dumps({**said, **(named or {"torch_dtype": dtype})}, indent=2) + "\n", encoding="utf-8")


def common_headers(parents: Mapping[str, Checkpoint], dtype: str | None) -> dict[str, TensorHeader]:
    """Return what the merge's file will say of its tensors. Raises CheckpointError where parents do not agree."""
    (first, reference), *others = parents.items()
    shared = set.intersection(*(set(checkpoint.tensors) for checkpoint in parents.values()))
    for name, checkpoint in parents.items():
        for tensor in checkpoint.tensors:
            if tensor not in shared and not checkpoint.has_twin(tensor, shared):  # tied weights that were stored twice
                lacking = next(other for other, known in parents.items() if tensor not in known.tensors)
                raise CheckpointError(
                    f"parent {lacking}: tensor {tensor!r} is missing, parent {name} has it; {MERGE_ONE}"
                )
    headers = {tensor: header for tensor, header in reference.tensors.items() if tensor in shared}
    for name, checkpoint in others:
        for tensor, header in headers.items():
            _require_alike(tensor, (first, header), (name, checkpoint.tensors[tensor]), dtype)
    if dtype is None:
        return headers
    said = next(key for key, text in NAMES.items() if text == dtype)
    return {n: replace(h, dtype=said) if h.is_floating_point else h for n, h in headers.items()}


def _require_alike(
    tensor: str, first: tuple[str, TensorHeader], second: tuple[str, TensorHeader], dtype: str | None
) -> None:
    (a, one), (b, two) = first, second
    if one.shape != two.shape:
        raise CheckpointError(
            f"parent {b}: tensor {tensor!r} has shape {two.shape}, in parent {a} it has {one.shape}; {MERGE_ONE}"
        )
    if one.dtype != two.dtype and (dtype is None or one.is_floating_point != two.is_floating_point):
        mend = 'mend: say dtype = "float32" in the recipe, or save both alike'
        raise CheckpointError(
            f"parent {b}: tensor {tensor!r} is {two.torch_dtype}, in parent {a} it is {one.torch_dtype}; {mend}"
        )


def averaged(
    tensor: str, gets: Mapping[str, Get], weights: Mapping[str, float], header: TensorHeader, divisor: float
) -> Tensor:
    """Return one tensor of the merge."""
    if header.is_floating_point:
        total = weighted_sum((gets[name](tensor), weights[name]) for name in gets)
        return rounded(total / divisor, header.torch_dtype)
    first, *others = gets.items()
    found = first[1](tensor)
    for name, get in others:
        found = whole(tensor, found, get(tensor), (first[0], name))
    return found


def whole(tensor: str, one: Tensor, other: Tensor, names: tuple[str, str]) -> Tensor:
    """Return what a merge has of two parents' integers or truth values. Raises CheckpointError where they differ."""
    if tensor.endswith(COUNTER):
        return torch.maximum(one, other)
    if not torch.equal(one, other):
        kind = str(one.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"parent {names[1]}: tensor {tensor!r} is {kind} and not that of parent {names[0]}: a mean of whole "
            "numbers is none of a network; mend: take parents that were made with the same one"
        )
    return one


class Sum:
    """A running sum of checkpoints in float64, of which the mean is taken at any time; adding leaves it as it was."""

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self.headers = headers
        self.tensors: dict[str, Tensor] = {}
        self.count = 0

    def plus(self, parent: Checkpoint) -> Sum:
        """Return the sum with one more."""
        found = Sum(self.headers)
        found.count = self.count + 1
        for name, header in self.headers.items():
            value, held = parent.get(name), self.tensors.get(name)
            value = value.double() if header.is_floating_point else value
            if held is None:
                found.tensors[name] = value
            elif header.is_floating_point:
                found.tensors[name] = held + value
            else:
                found.tensors[name] = whole(name, held, value, ("before it", parent.label))
        return found

    def mean(self) -> dict[str, Tensor]:
        """Return the mean, each tensor rounded once."""
        return {
            name: rounded(total / self.count, self.headers[name].torch_dtype)
            if self.headers[name].is_floating_point
            else total
            for name, total in self.tensors.items()
        }


def weighted_sum(parts: Iterator[tuple[Tensor, float]]) -> Tensor:
    """Return Σ w·θ in float64; infinities in which all agree, as in masks, stay what they are, whatever the weights."""
    part, weight = next(parts)
    first = part.double()
    total, agreed = first * weight, first.isinf()
    for part, weight in parts:
        value = part.double()
        total.add_(value, alpha=weight)
        agreed &= value == first
    return total.where(~agreed, first)


def rounded(value: Tensor, dtype: str) -> Tensor:
    """Return float64 numbers rounded once, to nearest, ties to even.

    torch rounds float64 to 16 bits by way of float32, which rounds twice. Here float32 is rounded to odd in between,
    after which the second rounding is that of the number itself (Boldo and Melquiond 2008).
    """
    kind: torch.dtype = getattr(torch, dtype)
    if kind not in (torch.float16, torch.bfloat16):
        return value.to(kind)
    near = value.float()
    lost = value - near.double()
    even = (near.view(torch.int32) & 1) == 0
    towards = torch.where(lost > 0, torch.inf, -torch.inf).float()
    odd = torch.where(even & (lost != 0) & near.isfinite(), torch.nextafter(near, towards), near)
    return odd.to(kind)
