"""One precision throughout a run: float64 that stays float64, and float32 without TF32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lmccheck.data.imports import out_of_memory
from lmccheck.errors import DeviceError

_WIDE = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


_CUDNN: Any = torch.backends.cudnn
_ONEDNN: Any = torch.backends.mkldnn
PRECISIONS: tuple[Any, ...] = (  # whose ``fp32_precision`` says what products of float32 may be rounded to
    *(torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn),
    *(_ONEDNN.matmul, _ONEDNN.conv, _ONEDNN.rnn),
)


def _widened(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


class StayDouble(TorchFunctionMode):
    """Turn conversions to a narrower float into conversions to float64, so that a float64 run is one throughout.

    Networks that compute a norm or a softmax "in float32" would otherwise bound every comparison by float32 noise, and
    those that make tensors of the default dtype would not run.
    """

    def __enter__(self) -> Any:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it without types
        torch.set_default_dtype(self._default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        args = tuple(_widened(a) for a in args)
        kwargs = {k: _widened(v) for k, v in (kwargs or {}).items()}
        if func in _GROUPED and args[0].dtype == torch.float64 and args[0].ndim == 2 and args[1].ndim == 3:
            return _grouped_product(args[0], args[1], kwargs["offs"] if "offs" in kwargs else args[2])
        return func(*args, **kwargs)


_GROUPED = [f for f in (getattr(torch, "_grouped_mm", None), getattr(F, "grouped_mm", None)) if f is not None]


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows by their expert's matrix, expert e's ending at ``ends[e]``; torch has none of this in float64."""
    out = rows.new_zeros(rows.shape[0], matrices.shape[2])
    begin = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        out[begin:end] = rows[begin:end] @ matrix
        begin = end
    return out


def working_dtype(*weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return float64 when any tensor is, else float32 (half precision is upcast)."""
    wide = any(tensor.dtype == torch.float64 for state in weights for tensor in state.values())
    return torch.float64 if wide else torch.float32


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute as torch does when nobody has set anything: what a conftest sets for its own tests changes no verdict.

    That is: float32 by default and at full precision, tensors on the CPU unless said otherwise, gradients possible, no
    inference mode, no autocast. All is as it was afterwards. Memory that is not there is one line, a DeviceError.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(exact_float32())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if (lacking := out_of_memory(error)) is None:
                raise
            raise DeviceError(lacking) from error
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep products and convolutions of float32 at full precision: no TF32, no bfloat16 inside.

    torch keeps two records of this, an older and a newer one, and raises where they disagree; so both are set, and both
    are put back, also where a user's own settings disagreed.
    """
    before = [place.fp32_precision for place in PRECISIONS]
    convolutions = _older_convolutions()
    _set_precisions(["ieee"] * len(PRECISIONS))  # after which the older record can be read
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    _CUDNN.allow_tf32 = False
    _set_precisions(["ieee"] * len(PRECISIONS))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        _CUDNN.allow_tf32 = convolutions
        _set_precisions(before)


def _older_convolutions() -> bool:
    """Return ``cudnn.allow_tf32``, which can be read only while the newer record agrees; may leave that at TF32."""
    try:
        return bool(_CUDNN.allow_tf32)
    except RuntimeError:
        _CUDNN.conv.fp32_precision = _CUDNN.rnn.fp32_precision = "tf32"
    try:
        return bool(_CUDNN.allow_tf32)
    except RuntimeError:
        return False


def _set_precisions(values: Sequence[str]) -> None:
    for place, value in zip(PRECISIONS, values, strict=True):
        place.fp32_precision = value
