"""Safetensors in and out. What is read is hashed as it is read, into memory of its own: no file stays mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.disk import Held, Stamp, hashed
from lmccheck.store.header import Header, TensorHeader, corrupt, header_of, header_of_open, reading
from lmccheck.store.header import read_header as read_header
from lmccheck.store.whole import overwritten, replacing, unwritable

if TYPE_CHECKING:
    from torch import Tensor

Renaming = Callable[[Mapping[str, "Tensor"]], Mapping[str, "Tensor"]]
CHUNK = 2**20  # bytes read and hashed at a time: what fits a processor's cache


@dataclass(frozen=True)
class Stored:
    """A safetensors file as it was read: header, tensors on the CPU in their stored dtypes, and the bytes' hash."""

    header: Header
    tensors: dict[str, Tensor]
    held: Held


class Written:
    """What may be written to files, and knows those it was made from, which it must not overwrite."""

    inputs: Sequence[Path] = ()

    def made_of(self, inputs: Iterable[Path]) -> Self:
        """Note the files that were read to make it; return it."""
        object.__setattr__(self, "inputs", tuple(inputs))  # results are frozen otherwise
        return self


def read(path: str | os.PathLike[str], header: Header | None = None) -> Stored:
    """Return a safetensors file, read once; the hash is that of the very bytes that became the tensors.

    With ``header``, the file must still say what it said. Raises CheckpointError.
    """
    path = Path(path)
    with reading(path) as file:
        before = Stamp.of(os.fstat(file.fileno()))
        found, raw = header_of_open(file, path)
        if header is not None and found != header:
            raise CheckpointError(
                f"{shown_path(path)}: describes other tensors than when it was looked at, expected a file that stays "
                "as it is; mend: run again when nothing writes to it"
            )
        digest = hashlib.sha256(raw)
        tensors = {name: _tensor(file, path, name, one, digest) for name, one in found.tensors.items()}
        return Stored(found, tensors, Held.after(path, file, before, digest.hexdigest()))


def read_one(path: Path, name: str, header: TensorHeader, start: int, held: Held) -> Tensor:
    """Return one tensor of a file that was hashed before, whose bytes begin at ``start``; no other is read.

    Raises CheckpointError, also where the file is no longer in the state in which it was hashed.
    """
    with reading(path) as file:
        if Stamp.of(os.fstat(file.fileno())) != held.stamp:
            held.require_unchanged()  # the same bytes may have been copied there
        file.seek(start)
        return _tensor(file, path, name, header, None)


def _tensor(file: BufferedReader[Any], path: Path, name: str, header: TensorHeader, digest: Any) -> Tensor:
    """Return the tensor whose bytes come next, hashed by ``digest`` on their way into memory that is its own."""
    import torch

    try:
        tensor = torch.empty(header.shape, dtype=getattr(torch, header.torch_dtype))
    except (RuntimeError, MemoryError):
        raise CheckpointError(
            f"{shown_path(path)}: tensor {name!r} takes {header.bytes} bytes, which this machine does not have; mend: "
            "take a machine with more memory"
        ) from None
    if not header.bytes:
        return tensor
    view = tensor.view(-1).view(torch.uint8).numpy().data
    for start in range(0, len(view), CHUNK):
        part = view[start : start + CHUNK]
        if file.readinto(part) != len(part):
            raise CheckpointError(corrupt(path, f"a file that ends within tensor {name!r}"))
        if digest is not None:
            digest.update(part)
    if header.dtype == "BOOL" and int(tensor.view(torch.uint8).max()) > 1:
        raise CheckpointError(corrupt(path, f"tensor {name!r} of dtype BOOL with a byte that is neither 0 nor 1"))
    return tensor


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file. Raises CheckpointError."""
    try:
        return hashed(Path(path)).sha256
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file on the CPU, in its stored dtype. Raises CheckpointError."""
    return read(path).tensors


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
    with saving_all(contents, inputs):
        pass


@contextmanager
def saving_all(
    contents: Mapping[Path, tuple[Mapping[str, Tensor], Mapping[str, str]]],
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[None]:
    """Write several files as ``save_all`` does, which take their places where the block ends well."""
    from lmccheck.store.streamed import write_safetensors

    require_apart(contents, inputs)
    with ExitStack() as finished:
        for path, (tensors, metadata) in contents.items():
            try:
                partial = finished.enter_context(replacing(path))
                headers = {name: header_of(tensor) for name, tensor in tensors.items()}
                write_safetensors(partial, headers, tensors.__getitem__, metadata)
            except Exception as error:
                raise CheckpointError(unwritable(path, error)) from None
        yield
        try:
            finished.close()
        except OSError as error:
            raise CheckpointError(unwritable(next(iter(contents)), error)) from None


def require_apart(paths: Iterable[Path], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise CheckpointError where writing to a path would destroy what was read."""
    read_from = tuple(map(Path, inputs))
    for path in paths:
        if (read := overwritten(path, read_from)) is not None:
            raise CheckpointError(
                f"{shown_path(path)}: was read as {shown_path(read)}, expected a file of its own; mend: choose another "
                "name"
            )


def not_finite(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return (name, description) of the first tensor that holds NaN or Inf, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _finite(tensor):
            nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            return name, f"{nan} NaN and {inf} Inf among {tensor.numel()} values"
    return None


def mask_like(tensor: Tensor) -> bool:
    """Whether a tensor holds ±inf as masks do: beside numbers, and no NaN."""
    return tensor.is_floating_point() and bool(tensor.isinf().any() & tensor.isfinite().any() & ~tensor.isnan().any())


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are, by their extremes where there are some: a NaN is both."""
    import torch

    if not tensor.numel() or tensor.element_size() < 2:  # float8 has no extremes
        return bool(torch.isfinite(tensor).all())
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))
