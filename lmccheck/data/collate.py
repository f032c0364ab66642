"""What users hold their samples in, as tensors: arrays, lists, dictionaries, data sets; all else is refused by type."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lmccheck.errors import SourceError

TARGETS = ("targets", "labels", "target", "label")  # keys of a dict that hold what is to be predicted
SPANS = ("start_positions", "end_positions")  # of answers in a text, (n,) each: targets (n, 2)
TOKENS, MASK = "input_ids", "attention_mask"
UNCOUNTED = -100  # the target of a token that is not counted
WIDER = {torch.uint16: torch.int64, torch.uint32: torch.int64, torch.uint64: torch.int64}  # torch computes with few
BOTH = "expected (inputs, targets)"


def is_array(value: Any) -> TypeGuard[Tensor | np.ndarray[Any, Any]]:
    """Whether a value is a tensor or an array, of one axis or more."""
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def is_number(value: Any) -> bool:
    """Whether a value is one number: Python's, numpy's, or a tensor without axes."""
    return isinstance(value, (numbers.Number, np.generic)) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    )


def is_listed(value: Any) -> bool:
    """Whether a value is a list or tuple of numbers, or a list of such lists."""
    if isinstance(value, (list, tuple)) and value:
        deeper = isinstance(value, list) and all(isinstance(part, list) and is_listed(part) for part in value)
        return deeper or all(map(is_number, value))
    return False


def is_dataset(value: Any) -> bool:
    """Whether a value is a data set of single samples: torch's, one of the library datasets, or indexed like them."""
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset)
    indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    plain = isinstance(value, (Sequence, Mapping, Tensor, np.ndarray))
    return indexed and not plain and (hasattr(value, "column_names") or not hasattr(value, "__iter__"))


def array(value: Any, where: str) -> Tensor:
    """Return a tensor, array or list of numbers as a tensor. Raises SourceError, beginning with ``where``."""
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray([part.item() if isinstance(part, Tensor) else part for part in value])
        except ValueError:
            raise SourceError(
                f"{where}: lists of different lengths, expected one length; mend: pad them, or give batches of one "
                "length each"
            ) from None
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biufc":
            raise SourceError(
                f"{where}: an array of {value.dtype}, expected numbers; mend: convert it (strings are to be tokenized)"
            )
        widest = {"f": np.dtype("float64"), "c": np.dtype("complex128")}.get(value.dtype.kind, value.dtype)
        own = value.dtype if value.dtype.itemsize <= widest.itemsize else widest
        value = torch.from_numpy(np.array(value, dtype=own.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise SourceError(f"{where}: {kind(value)}, expected a tensor, an array or a list of numbers; mend: convert it")
    return value.to(WIDER[value.dtype]) if value.dtype in WIDER else value


def inputs_of(value: Any, where: str, samples: int | None = None) -> Any:
    """Return inputs with arrays, and lists of as many numbers as there are samples, as tensors.

    What else stands among them (flags, None) stays as it is.
    """
    if is_array(value):
        return array(value, where)
    if is_listed(value) and (samples is None or len(value) == samples):
        return array(value, where)
    if isinstance(value, Mapping):
        return {name: inputs_of(part, f"{where}, key {name!r}", samples) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [inputs_of(part, f"{where}, input {k}", samples) for k, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def parts_of(item: Any, where: str) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch or of a sample, targets None where it has none.

    Raises SourceError, beginning with ``where``, for what is neither a pair, a dictionary nor a tensor.
    """
    if isinstance(item, Mapping):
        return _parts_of_dict(item)
    if isinstance(item, tuple) and len(item) == 2:
        return item
    if isinstance(item, (tuple, list)) and len(item) in (1, 2) and not is_listed(item):
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, (tuple, list)) and len(item) > 2 and not is_listed(item):
        raise SourceError(
            f"{where} is a {type(item).__name__} of {len(item)}, {BOTH}; mend: several inputs are ((first, second), "
            "targets); leave out what is neither, such as weights"
        )
    if is_array(item) or is_listed(item):
        return item, None
    raise SourceError(f"{where} is {kind(item)}, {BOTH}; mend: give pairs, or dictionaries with a key 'labels'")


def _parts_of_dict(item: Mapping[str, Any]) -> tuple[Any, Any]:
    key = next((key for key in TARGETS if item.get(key) is not None), None)
    targets = None if key is None else item[key]
    taken: tuple[str, ...] = TARGETS
    if key is None and all(isinstance(item.get(name), Tensor) for name in SPANS):
        taken, targets = (*TARGETS, *SPANS), torch.stack([item[name] for name in SPANS], -1)
    rest = {name: part for name, part in item.items() if name not in taken}
    return rest["inputs"] if list(rest) == ["inputs"] else rest, targets


def own_targets(inputs: Any, where: str) -> Tensor:
    """Return the tokens that a network is given as what it is to predict; those that its mask leaves out do not count.

    Raises SourceError, beginning with ``where``, where it is not plain which of the inputs are the tokens.
    """
    tokens, mask = inputs, None
    if isinstance(inputs, Mapping):
        tokens, mask = inputs.get(TOKENS), inputs.get(MASK)
    elif isinstance(inputs, (tuple, list)) and len(inputs) == 1:
        tokens = inputs[0]
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise SourceError(
            f"{where}: no targets, and no inputs that are tokens, (n, T) integers; mend: give (inputs, targets), or a "
            f"dictionary with {TOKENS!r}"
        )
    if mask is None:
        return tokens
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        raise SourceError(
            f"{where}: {MASK!r} has shape {tuple(getattr(mask, 'shape', ()))}, {TOKENS!r} {tuple(tokens.shape)}; "
            "expected one shape; mend: give targets too"
        )
    return tokens.long().masked_fill(mask == 0, UNCOUNTED)


def refuse_mask(inputs: Any, targets: Tensor, where: str) -> None:
    """Raise SourceError where targets that are to be predicted look like the attention mask of tokens."""
    if isinstance(inputs, Tensor) and inputs.shape == targets.shape and targets.numel() and not targets.is_complex():
        only = bool(((targets == 0) | (targets == 1)).all())
        if only and float(inputs.max()) > 1:
            raise SourceError(
                f"{where}: targets hold nothing but 0 and 1, inputs tokens up to {int(inputs.max())}: an attention "
                f"mask is no target; mend: a dictionary with {TOKENS!r} and {MASK!r}"
            )


def single(item: Any) -> bool:
    """Whether an item is one sample and no batch: its target is a number."""
    if isinstance(item, Mapping):
        return is_number(_parts_of_dict(item)[1])
    pair = isinstance(item, (tuple, list)) and len(item) == 2 and (isinstance(item, tuple) or not is_listed(item))
    return pair and is_number(item[1])


def stacked(samples: Iterable[Any], where: str) -> tuple[Any, Any]:
    """Return samples as one batch: inputs and targets, None where they have none.

    Raises SourceError, beginning with ``where``, for samples that are not of one shape.
    """
    parts = [parts_of(sample, f"{where}: sample {k}") for k, sample in enumerate(samples)]
    if not parts:
        return torch.zeros(0), torch.zeros(0)
    inputs = _stack([inputs for inputs, _ in parts], f"{where}: inputs")
    without = next((k for k, (_, targets) in enumerate(parts) if targets is None), None)
    if without is None:
        return inputs, _stack([targets for _, targets in parts], f"{where}: targets")
    if any(targets is not None for _, targets in parts):
        raise SourceError(f"{where}: sample {without} has no targets, others have; mend: give each its target")
    return inputs, None


def _stack(values: list[Any], where: str) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        if any(not isinstance(value, Mapping) or value.keys() != first.keys() for value in values):
            raise SourceError(f"{where}: samples with different keys, expected {list(first)} of each; mend: give all")
        return {name: _stack([value[name] for value in values], f"{where}, key {name!r}") for name in first}
    if isinstance(first, (tuple, list)) and not is_listed(first):
        if any(not isinstance(value, (tuple, list)) or len(value) != len(first) for value in values):
            raise SourceError(f"{where}: samples of different parts, expected {len(first)} of each; mend: give all")
        return tuple(_stack([value[k] for value in values], f"{where} {k}") for k in range(len(first)))
    tensors = [_tensor(value, f"{where} of sample {k}") for k, value in enumerate(values)]
    for k, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise SourceError(
                f"{where}: sample {k} has shape {tuple(tensor.shape)}, sample 0 {tuple(tensors[0].shape)}; expected "
                "one shape; mend: pad them, or give a DataLoader whose batches are of one shape each"
            )
    return torch.stack(tensors)


def _tensor(value: Any, where: str) -> Tensor:
    if is_number(value) and not isinstance(value, (Tensor, np.ndarray)):
        value = np.asarray(value)
    if isinstance(value, (Tensor, np.ndarray)) or is_listed(value):
        return array(value, where)
    raise SourceError(
        f"{where}: {kind(value)}, expected numbers; mend: a transform that returns tensors, or leave the column out"
    )


def kind(value: Any) -> str:
    """Return a value's type by its name, with that of the library it is from."""
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
