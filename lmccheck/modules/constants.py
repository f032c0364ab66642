"""Stored buffers that checkpoints share: masks, position tables, filters, which belong to the network's structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lmccheck.modules.stored import stored_tensors, tied_names

COUNTER = "num_batches_tracked"


def statistics_of(module: nn.Module) -> set[str]:
    """Return the names of stored running statistics: buffers of norms that torch has, and of frozen ones.

    A part with one-dimensional buffers ``running_mean`` and ``running_var`` of one length is a frozen norm
    (torchvision, detectron2, timm); whatever else it stores per channel, a gain or a shift, counts as well.
    """
    found: set[str] = set()
    for name, part in module.named_modules():
        own = dict(part.named_buffers(recurse=False))
        mean, variance = own.get("running_mean"), own.get("running_var")
        if mean is None or variance is None or mean.shape != variance.shape:
            continue
        prefix = f"{name}." if name else ""
        found |= {
            f"{prefix}{key}" for key, held in own.items() if isinstance(part, _NormBase) or held.shape == mean.shape
        }
    return found


def shared_constants(module: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the stored tensors that are constants of the network, by the first of their names.

    That is every floating buffer that is equal in all states, running statistics aside, and every such parameter that
    takes no gradient and holds whole numbers only (a mask). What merges average must not be a permuted structure, so
    only permutations that leave these unchanged are allowed. States are looked at one after the other.
    """
    learned = dict(module.named_parameters(remove_duplicate=False))
    statistics, tied = statistics_of(module), tied_names(module)
    each = iter(states)
    first = next(each)
    found = {
        name: first[name]
        for name, tensor in stored_tensors(module).items()
        if tensor.is_floating_point()
        and name not in statistics
        and not (name in learned and (learned[name].requires_grad or tensor.numel() < 2 or not _whole(first[name])))
    }
    del first
    several = False
    for state in each:
        several = True
        alike = {name for name, value in found.items() if torch.equal(state[name].double(), value.double())}
        found = {name: value for name, value in found.items() if name in alike}
    return {tied[name]: value for name, value in found.items()} if several else {}


def differing_structure(module: nn.Module, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Return the name of a floating buffer of whole numbers, or with ±inf, in which two states differ; None if none.

    A mask or a table between two of its kind is neither; a counter is one number.
    """
    learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    statistics = statistics_of(module)
    for name, tensor in stored_tensors(module).items():
        if name in learned or name in statistics or name.endswith(COUNTER) or not tensor.is_floating_point():
            continue
        pair = one[name].double(), other[name].double()
        if torch.equal(*pair):
            continue
        if (tensor.numel() > 1 and all(map(_whole, pair))) or any(bool(value.isinf().any()) for value in pair):
            return name
    return None


def differing_integers(module: nn.Module, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return the names of stored integers and truth values in which two states differ, counters of batches aside."""
    return [
        name
        for name, tensor in stored_tensors(module).items()
        if not tensor.is_floating_point() and not name.endswith(COUNTER) and not torch.equal(one[name], other[name])
    ]


def _whole(value: Tensor) -> bool:
    value = value.double()
    return bool((value.isinf() | (value == value.round())).all())
