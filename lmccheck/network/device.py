"""Which device evaluation runs on."""

from __future__ import annotations

import re
import warnings
from functools import cache

import torch

from lmccheck.errors import DeviceError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device for ``auto`` (a GPU when there is one), ``cpu`` or ``cuda[:N]``; else raise DeviceError."""
    name = str(name)
    if name == "auto":
        return _woken(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda or cuda:N; mend: give one of these")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        raise DeviceError(
            f"device {name!r}: this machine has {count} CUDA devices; mend: give auto or cpu, or run where there is one"
        )
    return _woken(torch.device(name))


@cache
def _woken(device: torch.device) -> torch.device:
    """Return a GPU on which a backward pass has run.

    The first one calls cuBLAS from a thread without a context; torch warns of that, which ``-W error`` makes an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(1, 1, device=device, requires_grad=True)
        torch.autograd.grad((one @ one).sum(), one)
    return device
