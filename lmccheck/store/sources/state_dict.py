"""A state dict: tensors that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source
from lmccheck.store.header import header_of


def open_state_dict(given: Mapping[str, Any], folder: Path, side: str) -> Checkpoint:
    """Return a mapping from names to tensors as a checkpoint; nothing is copied but what is not on the CPU."""
    from torch import Tensor, strided

    from lmccheck.store.tensors import identity

    wrong = next((n for n, t in given.items() if not isinstance(n, str) or not isinstance(t, Tensor)), None)
    if wrong is not None:
        raise CheckpointError(
            f"state dict {side}: entry {wrong!r} is no tensor, expected a mapping from names to tensors"
        )
    for name, tensor in given.items():
        if tensor.layout != strided or tensor.is_nested:
            form = "a nested tensor" if tensor.is_nested else f"layout {str(tensor.layout).removeprefix('torch.')}"
            raise CheckpointError(
                f"state dict {side}: tensor {name!r}: got {form}, expected dense numbers, as a safetensors file holds "
                "them; mend: keep it dense in the state dict, and make its other form where it is read"
            )
    originals = dict(given)  # held, so that no identity is used twice
    kept: dict[object, Tensor] = {}  # names that share a tensor go on sharing it
    state = {name: kept.setdefault(identity(tensor), tensor.detach().cpu()) for name, tensor in originals.items()}
    headers = {name: header_of(tensor) for name, tensor in state.items()}
    return Checkpoint(f"state dict {side}", headers, lambda: dict(state))


SOURCES.add("state dict", Source("a state dict", lambda given: isinstance(given, Mapping), open_state_dict), __name__)
