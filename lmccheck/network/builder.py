"""A network built again, as its user would, or copied where there is but one module of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lmccheck.data.model import build_module
from lmccheck.modules.copies import private_copy
from lmccheck.modules.stored import stored_tensors
from lmccheck.modules.untie import write_apart
from lmccheck.store.tensors import identity


class Builder:
    """Builds a network again, as its user would; ``live`` where there is but one module of it, which is copied.

    ``heads`` are written apart from the embeddings that they are tied to, see ``heads_apart``.
    """

    def __init__(self, model: Any, folder: Path, module: nn.Module, heads: Mapping[str, str] | None = None) -> None:
        self._model, self._folder, self._module, self._heads = model, folder, module, heads or {}
        self.live = isinstance(model, nn.Module)

    def __call__(self, seed: int) -> nn.Module:
        """Return a module that nothing else refers to, in training mode or as it was built."""
        module = self._module if self.live else build_module(self._model, self._folder, seed)
        held = {identity(tensor) for tensor in stored_tensors(self._module).values()}
        self.live = self.live or any(identity(tensor) in held for tensor in stored_tensors(module).values())
        return write_apart(private_copy(module, evaluate=False) if self.live else module, self._heads)

    def with_heads(self, heads: Mapping[str, str]) -> Builder:
        """Return what builds the same network with these heads written apart."""
        return Builder(self._model, self._folder, self._module, heads)
