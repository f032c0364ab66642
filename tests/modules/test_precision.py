"""What a user has set about TF32 and bfloat16 is off while lmccheck computes, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

from lmccheck.modules.precision import PRECISIONS, exact_float32

CUDA, CUDNN, ONEDNN = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn


def _sets(place: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(place, name, value)


SETTINGS = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "cuBLAS may": _sets(CUDA, "allow_tf32", True),
    "cuBLAS may not": _sets(CUDA, "allow_tf32", False),
    "cuDNN may not": _sets(CUDNN, "allow_tf32", False),
    "products": _sets(CUDA, "fp32_precision", "tf32"),
    "convolutions": _sets(CUDNN.conv, "fp32_precision", "ieee"),
    "oneDNN": _sets(ONEDNN.matmul, "fp32_precision", "bf16"),
    "all": _sets(torch.backends, "fp32_precision", "tf32"),
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = [place.fp32_precision for place in PRECISIONS], torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before[1]
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    for place, value in zip(PRECISIONS, before[0], strict=True):
        place.fp32_precision = value


def _state() -> list[Any]:
    """Return all that torch says of precision; where its two records disagree, that it raises."""

    def said(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return "raises"

    older = (torch.get_float32_matmul_precision, lambda: CUDA.allow_tf32, lambda: CUDNN.allow_tf32)
    return [*map(said, older), *(place.fp32_precision for place in PRECISIONS)]


@pytest.mark.parametrize(("first", "second"), list(product(SETTINGS, repeat=2)))
def test_whatever_was_set(first: str, second: str) -> None:
    """Inside nothing is rounded and both of torch's records agree; outside every record is the user's, bit for bit."""
    SETTINGS[first]()
    SETTINGS[second]()
    before = _state()
    with exact_float32(), exact_float32():
        inside = _state()
    assert inside == ["highest", False, False, *["ieee"] * len(PRECISIONS)]
    assert _state() == before


def test_an_older_switch_after_a_run() -> None:
    """A user who switches TF32 on by the older name and off again can be measured once more (torch then raised)."""
    CUDA.allow_tf32 = True
    with exact_float32():
        pass
    CUDA.allow_tf32 = False
    with exact_float32():
        assert torch.get_float32_matmul_precision() == "highest"
