"""Which cases of a test run always, and which where slow ones do: of each kind of network one always runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

OF_EACH_KIND = ("mlp", "resnet", "densenet", "decoder_causal", "llama", "lstm", "glu", "softmax_gating")


def each(names: Iterable[str]) -> list[Any]:
    """Return names of networks to parametrise a test by; all but one of each kind are slow."""
    return [name if name in OF_EACH_KIND else slowly(name) for name in names]


def slowly(*values: Any) -> Any:
    """Return the values of a case that only slow runs take."""
    return pytest.param(*values, marks=pytest.mark.slow)
