"""What a safetensors file says about itself, read strictly and without torch: whatever loading refuses, this does."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.disk import opened

if TYPE_CHECKING:
    from torch import Tensor

EXPECTED = "a .safetensors checkpoint"
MOST_HEADER = 100_000_000  # bytes; the format's own limit
MOST_DIMENSIONS = 64  # torch's own limit in most of what it computes
MOST_NUMBERS = 2**63 - 1  # torch counts with 64 bits
EIGHT = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # floats without their scales
KEYS = {"dtype", "shape", "data_offsets"}

SAFETENSORS = ".safetensors"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_FLOATS = {  # as safetensors and as torch spell them
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
NAMES = {
    **_FLOATS, "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip


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
    def bytes(self) -> int:
        """How many bytes it takes in a file."""
        return self.numbers * _BYTES[self.dtype]

    @property
    def torch_dtype(self) -> str:
        """The dtype as torch spells it: float32."""
        return NAMES.get(self.dtype, self.dtype)


def header_of(tensor: Tensor) -> TensorHeader:
    """Return what a safetensors file would say of a tensor."""
    said = str(tensor.dtype).removeprefix("torch.")
    return TensorHeader(next((k for k, name in NAMES.items() if name == said), said), tuple(tensor.shape))


def require_evaluable(tensors: Mapping[str, TensorHeader], label: str) -> None:
    """Raise CheckpointError for a tensor of a checkpoint whose dtype no network can be evaluated in."""
    for name, header in tensors.items():
        kind = header.torch_dtype
        if kind.startswith(("complex", "float")) and kind not in ("float64", "float32", "float16", "bfloat16"):
            raise CheckpointError(
                f"{label}: tensor {name!r} is {kind}, expected float64, float32, float16 or bfloat16; mend: "
                "convert the checkpoint, quantised weights with their scales"
            )


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: its tensors by name, in the order of their bytes, and its metadata."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of a safetensors file, checked against the file's length; no tensor is read.

    Raises CheckpointError for a missing file, what is no file, a pickle, and a truncated or corrupt file.
    """
    path = Path(path)
    with reading(path) as file:
        return header_of_open(file, path)[0]


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader[Any]]:
    """Open a checkpoint's file; what opening or reading it raises becomes a CheckpointError."""
    try:
        with opened(path, EXPECTED) as file:
            yield file
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def header_of_open(file: BufferedReader[Any], path: Path) -> tuple[Header, bytes]:
    """Return the header of an open file, which stands at its start, and the bytes that were read. Raises as above."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    _refuse_other_formats(path, head + file.peek(1)[:1])
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if length < 2 or length > MOST_HEADER or 8 + length > size:
        raise CheckpointError(corrupt(path, f"{size} bytes with a header that claims {length}"))
    raw = file.read(length)
    try:
        if raw[:1] != b"{":
            raise ValueError(f"a header that begins with {raw[:1]!r}, not with '{{'")
        described = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole, parse_constant=_no_number
        )
        header, end = _checked(described)
    except RecursionError:
        raise CheckpointError(corrupt(path, "a header nested too deeply")) from None
    except UnicodeDecodeError:
        raise CheckpointError(corrupt(path, "a header that is not UTF-8")) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(corrupt(path, f"a header that is no JSON ({error.msg} at {error.pos})")) from None
    except ValueError as error:
        raise CheckpointError(corrupt(path, str(error))) from None
    if 8 + length + end != size:
        raise CheckpointError(corrupt(path, f"{size} bytes where the header describes {8 + length + end}"))
    return header, head + raw


def require_samples(header: Header, label: str, *, tokens: bool = False) -> None:
    """Raise CheckpointError unless a file holds data: ``inputs`` and as many ``targets``, at least one.

    ``tokens``: targets may be left out.
    """
    names = ("inputs",) if tokens and "targets" not in header.tensors else ("inputs", "targets")
    for name in names:
        if name not in header.tensors:
            raise CheckpointError(
                f"{label}: has no tensor {name!r}, got {some(sorted(header.tensors))}; mend: store the samples as "
                "'inputs' and 'targets'"
            )
        if not header.tensors[name].shape:
            raise CheckpointError(
                f"{label}: tensor {name!r} is a scalar, expected one entry a sample; mend: shape (n, …)"
            )
        if header.tensors[name].dtype in EIGHT:
            raise CheckpointError(
                f"{label}: tensor {name!r} is {header.tensors[name].torch_dtype}, expected numbers of 16 bits or more, "
                "integers or booleans; mend: convert the data"
            )
    inputs, targets = (header.tensors[name].shape[0] for name in (names[0], names[-1]))
    if inputs != targets:
        raise CheckpointError(
            f"{label}: got {inputs} inputs and {targets} targets, expected as many targets as inputs; mend: one target "
            "a sample"
        )
    if not inputs:
        raise CheckpointError(f"{label}: got 0 samples, expected at least one; mend: give data to measure on")


def some(names: Sequence[str], most: int = 5) -> str:
    """Return a list of names, of many the first ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{list(names[:most])}{more}"


def _checked(described: Any) -> tuple[Header, int]:
    """Return the header and how many bytes its tensors take; raise ValueError for what the format does not allow."""
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("a header whose __metadata__ is no table of texts")
    entries = sorted((*_entry(name, entry), name) for name, entry in described.items())
    tensors: dict[str, TensorHeader] = {}
    end, before = 0, ""
    for begin, stop, name in entries:
        if begin != end:
            between = f"after tensor {before!r}" if before else "at the start"
            fault = f"{begin - end} bytes of no tensor {between}" if begin > end else f"tensors that overlap {between}"
            raise ValueError(f"{fault}, where tensor {name!r} begins at {begin}")
        tensors[name] = TensorHeader(described[name]["dtype"], tuple(described[name]["shape"]))
        end, before = stop, name
    for text in (*tensors, *metadata, *metadata.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a text that is no Unicode, {text!r}") from None
    return Header(tensors, metadata), end


def _entry(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor begins and ends, after checking all that is said of it."""
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        raise ValueError(f"tensor {name!r} described by other keys than {', '.join(sorted(KEYS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NAMES:
        raise ValueError(f"tensor {name!r} of dtype {_brief(dtype)}, which is none of {', '.join(NAMES)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= MOST_NUMBERS for n in shape):
        raise ValueError(f"tensor {name!r} of shape {_brief(shape)}, which is no list of sizes")
    if len(shape) > MOST_DIMENSIONS or prod(n for n in shape if n) > MOST_NUMBERS:
        raise ValueError(f"tensor {name!r} of shape {_brief(shape)}, which is too large")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise ValueError(f"tensor {name!r} with data_offsets {_brief(offsets)}, which are no two places")
    begin, stop = offsets
    if stop - begin != prod(shape) * _BYTES[dtype]:
        raise ValueError(f"tensor {name!r} of {_brief(stop - begin)} bytes for shape {_brief(shape)} {dtype}")
    return begin, stop


def _brief(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer of too many digits to print, or too deep
        return "…"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = next(key for key in found if keys[key] > 1)
        raise ValueError(f"a header that says {twice!r} twice")
    return found


def _whole(text: str) -> int:
    return _no_number(text) if text == "-0" else int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"a header with {text} in it")


def corrupt(path: Path, got: str) -> str:
    """Return the line that refuses a file that is no whole safetensors file."""
    return (
        f"{shown_path(path)}: truncated or corrupt: got {got}, expected a whole safetensors file; mend: save or "
        "download it again"
    )


def cannot_read(path: Path, error: OSError) -> str:
    """Return the line for what the system refused."""
    return f"{shown_path(path)}: cannot be read: {error.strerror or error}; mend: check the path and its permissions"


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if head[:8] == b"version ":  # as Git LFS pointers begin
        raise CheckpointError(
            f"{shown_path(path)}: got a Git LFS pointer, expected the file it stands for; mend: git lfs pull"
        )
    protocol = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    pickled = protocol or head[:4] == b"PK\x03\x04"
    if path.suffix.lower() in PICKLES or (pickled and head[8:9] != b"{"):
        raise CheckpointError(refused_pickle(path, "a pickle", "path"))


def refused_pickle(path: Path, got: str, file: str, target: str = "model.safetensors") -> str:
    """Return the line that refuses a pickle, which is ``file`` in the way to convert it."""
    return (
        f"{shown_path(path)}: got {got}, which can run code when it is loaded, expected safetensors; mend: convert it "
        f"once where you trust it: safetensors.torch.save_file(torch.load({file}, weights_only=True), "
        f"{target!r})"
    )
