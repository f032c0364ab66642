"""Endpoints of one network that stay in memory while they are few, and are else read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload
from weakref import ref

import torch

from lmccheck.network.endpoint import Endpoint, complete, endpoint
from lmccheck.network.network import Network
from lmccheck.store.checkpoint import Checkpoint

KEPT = 2**26  # bytes of all checkpoints together, up to which they stay in memory


class Endpoints(Sequence[Endpoint]):
    """Checkpoints as endpoints of one network: each is checked once, then read again whenever nobody holds it.

    What is read again must be the bytes that were read first: a Checkpoint sees to that. Endpoints that together are
    small, or that are in no file, are held.
    """

    def __init__(self, network: Network, checkpoints: Sequence[Checkpoint]) -> None:
        self.network = network
        self.checkpoints = tuple(checkpoints)
        self._held: dict[int, Endpoint] = {}
        self._seen: dict[int, ref[Endpoint]] = {}
        size = sum(header.bytes for checkpoint in checkpoints for header in checkpoint.tensors.values())
        self._keeps = size <= KEPT

    def check(self) -> None:
        """Read every checkpoint, one after the other; raise CheckpointError for the first that is no such endpoint."""
        for k, checkpoint in enumerate(self.checkpoints):
            self._note(k, endpoint(self.network, checkpoint))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which all of them are computed: float64 where any tensor is."""
        said = {header.torch_dtype for checkpoint in self.checkpoints for header in checkpoint.tensors.values()}
        return torch.float64 if "float64" in said else torch.float32

    def of(self, network: Network) -> Endpoints:
        """Return the same checkpoints as endpoints of a network of which more is known."""
        found = Endpoints(network, self.checkpoints)
        for k, held in self._held.items():
            found._note(k, Endpoint(network, held.theta, held.checkpoint))
        return found

    def __len__(self) -> int:
        return len(self.checkpoints)

    @overload
    def __getitem__(self, k: int) -> Endpoint: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Endpoint, ...]: ...
    def __getitem__(self, k: int | slice) -> Endpoint | tuple[Endpoint, ...]:
        if isinstance(k, slice):
            return tuple(self[each] for each in range(*k.indices(len(self))))
        k = range(len(self))[k]
        seen = self._seen.get(k)
        held = seen() if seen is not None else None
        if held is not None:
            return held
        checkpoint = self.checkpoints[k]
        return self._note(k, Endpoint(self.network, complete(checkpoint.read(), self.network.module), checkpoint))

    def _note(self, k: int, end: Endpoint) -> Endpoint:
        if self._keeps or not self.checkpoints[k].files:
            self._held[k] = end
        self._seen[k] = ref(end)
        return end


class Named(Mapping[str, Endpoint]):
    """Endpoints by name, each read as it is asked for."""

    def __init__(self, names: Sequence[str], endpoints: Sequence[Endpoint]) -> None:
        self._places = {name: k for k, name in enumerate(names)}
        self._endpoints = endpoints

    def __getitem__(self, name: str) -> Endpoint:
        return self._endpoints[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
