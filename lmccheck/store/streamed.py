"""A safetensors file written tensor by tensor: the header first, so that one tensor at a time is in memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.header import TensorHeader, header_of
from lmccheck.store.whole import overwritten, replacing, unwritable

if TYPE_CHECKING:
    from torch import Tensor


def save_streamed(
    path: Path,
    tensors: Mapping[str, TensorHeader],
    get: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Write the tensors that ``get`` gives, each asked for once, to a file that is there whole or not at all.

    ``tensors`` says their dtypes and shapes beforehand. ``inputs``: what was read to make them, and must not be
    overwritten. Raises CheckpointError when the file cannot be written.
    """
    if (read := overwritten(path, map(Path, inputs))) is not None:
        raise CheckpointError(
            f"{shown_path(path)}: was read as {shown_path(read)}, expected a file of its own; mend: choose another name"
        )
    try:
        with replacing(path) as partial:
            write_safetensors(partial, tensors, get, metadata)
    except OSError as error:
        raise CheckpointError(unwritable(path, error)) from None
    return path


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, TensorHeader],
    get: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write such a file where ``path`` says, at once.

    Equivalent to ``safetensors.torch.save_file``, byte for byte; differs in what it holds, and in that several entries
    of metadata are written in the order they are given in, the same in every run.
    """
    order = sorted(tensors, key=lambda name: (-TensorHeader(tensors[name].dtype, ()).bytes, name))
    with open(path, "wb") as file:
        file.write(_header(order, tensors, metadata))
        for name in order:
            file.write(_bytes(get(name), tensors[name], name))


def _header(order: list[str], tensors: Mapping[str, TensorHeader], metadata: Mapping[str, str] | None) -> bytes:
    said: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in order:
        end = begin + tensors[name].bytes
        said[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor, header: TensorHeader, name: str) -> memoryview:
    """Return a tensor's bytes; one that is not what was said of it is a mistake of whoever gives it."""
    import torch

    from lmccheck.store.tensors import shape_of

    if header_of(tensor) != header:
        raise CheckpointError(
            f"tensor {name!r}: got {shape_of(tensor)}, expected {header.shape} {header.torch_dtype} as announced; this "
            "is a defect of what makes it"
        )
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
