"""Safetensors in and out. Headers are read without torch, so that mistakes show before anything heavy is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.whole import overwritten, replacing

if TYPE_CHECKING:
    from torch import Tensor

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_FLOATS = {  # as safetensors and as torch spell them
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_NAMES = {
    **_FLOATS, "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class TensorHeader:
    """Dtype (as safetensors spells it: F32, BF16, I64 …) and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_floating_point(self) -> bool:
        """Whether it holds real numbers of any precision."""
        return self.dtype in _FLOATS

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def torch_dtype(self) -> str:
        """The dtype as torch spells it: float32."""
        return _NAMES.get(self.dtype, self.dtype)


def header_of(tensor: Tensor) -> TensorHeader:
    """Return what a safetensors file would say of a tensor."""
    said = str(tensor.dtype).removeprefix("torch.")
    return TensorHeader(next((k for k, name in _NAMES.items() if name == said), said), tuple(tensor.shape))


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: its tensors by name, and its metadata."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]


class Written:
    """What may be written to files, and knows those it was made from, which it must not overwrite."""

    inputs: Sequence[Path] = ()

    def made_of(self, inputs: Iterable[Path]) -> Self:
        """Note the files that were read to make it; return it."""
        object.__setattr__(self, "inputs", tuple(inputs))  # results are frozen otherwise
        return self


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of a safetensors file, checked against the file's length; no tensor is read.

    Raises CheckpointError for a missing file, a pickle, and a truncated or corrupt file.
    """
    path = Path(path)
    _refuse_what_is_no_safetensors(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head == b"version ":  # as Git LFS pointers begin
                raise CheckpointError(
                    f"{shown_path(path)}: got a Git LFS pointer, expected the file it stands for; mend: git lfs pull"
                )
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if length < 2 or length > _HEADER_LIMIT or 8 + length > size:
                raise CheckpointError(_corrupt(path, f"{size} bytes with a header that claims {max(length, 0)}"))
            raw = json.loads(file.read(length))
            metadata = raw.pop("__metadata__", {})
            tensors: dict[str, TensorHeader] = {}
            end = 0
            for name, entry in raw.items():
                begin, stop = entry["data_offsets"]
                shape = tuple(int(n) for n in entry["shape"])
                tensors[name] = TensorHeader(str(entry["dtype"]), shape)
                width = _BYTES.get(tensors[name].dtype)
                if width is not None and stop - begin != prod(shape) * width:
                    raise CheckpointError(
                        _corrupt(
                            path, f"tensor {name!r} of {stop - begin} bytes for shape {list(shape)} {entry['dtype']}"
                        )
                    )
                end = max(end, int(stop))
    except OSError as error:
        raise CheckpointError(
            f"{shown_path(path)}: cannot be read: {error.strerror}; mend: check its permissions"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_corrupt(path, f"an unreadable header ({type(error).__name__})")) from None
    if 8 + length + end != size:
        raise CheckpointError(_corrupt(path, f"{size} bytes where the header describes {8 + length + end}"))
    return Header(tensors, metadata)


def _corrupt(path: Path, got: str) -> str:
    where = shown_path(path)
    return (
        f"{where}: truncated or corrupt: got {got}, expected a whole safetensors file; mend: save or download it again"
    )


def _refuse_what_is_no_safetensors(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{shown_path(path)}: got a folder, expected a .safetensors file; mend: name the file inside it"
        )
    if not path.exists():
        raise CheckpointError(
            f"{shown_path(path)}: no such file, expected a .safetensors checkpoint; mend: correct the path"
        )
    if path.suffix.lower() in _PICKLES or _looks_pickled(path):
        raise CheckpointError(
            f"{shown_path(path)}: got a pickle, which can run code when it is loaded, expected safetensors; mend: "
            "convert it once "
            "where you "
            "trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )


def _looks_pickled(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[:4] == b"PK\x03\x04" or (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[8:9] != b"{"
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{shown_path(path)}: cannot be read: {error.strerror}; mend: check the path and its permissions"
        ) from None


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file on the CPU, in its stored dtype. Raises CheckpointError."""
    read_header(path)
    from safetensors.torch import load_file

    try:
        return load_file(str(path), device="cpu")
    except Exception as error:
        raise CheckpointError(_corrupt(Path(path), f"{type(error).__name__}: {error}")) from None


def save(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Write tensors to a safetensors file, whole or not at all; names that share one tensor are each written in full.

    ``inputs``: what was read to make them, and must not be overwritten. Raises CheckpointError when the file cannot be
    written.
    """
    save_all({Path(path): (tensors, metadata or {})}, inputs)
    return Path(path)


def save_all(
    contents: Mapping[Path, tuple[Mapping[str, Tensor], Mapping[str, str]]],
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write several files (tensors and metadata by path) as ``save`` does: all of them or none."""
    from safetensors.torch import save_file

    for path in contents:
        if (read := overwritten(path, map(Path, inputs))) is not None:
            raise CheckpointError(
                f"{shown_path(path)}: was read as {shown_path(read)}, expected a file of its own; mend: choose another "
                "name"
            )
    with ExitStack() as finished:
        for path, (tensors, metadata) in contents.items():
            try:
                partial = finished.enter_context(replacing(path))
                save_file(_separate(tensors), str(partial), metadata=dict(metadata))
            except Exception as error:
                raise CheckpointError(_unwritable(path, error)) from None
        try:
            finished.close()
        except OSError as error:
            raise CheckpointError(_unwritable(next(iter(contents)), error)) from None


def _unwritable(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{shown_path(path)}: cannot be written: {reason}; mend: choose a folder that can be written to, with room"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, no two of them sharing memory."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        plain[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return plain


def not_finite(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return (name, description) of the first tensor that holds NaN or Inf, or None."""
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            return name, f"{nan} NaN and {inf} Inf among {tensor.numel()} values"
    return None
