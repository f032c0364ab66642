"""What pairs, models and sets have in common: endpoints by name, and the network they are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lmccheck.data.load import Data
from lmccheck.network.endpoint import Endpoint
from lmccheck.network.loss import Loss
from lmccheck.network.network import Network
from lmccheck.network.once import Keeps
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.surroundings import all_unchanged
from lmccheck.symmetry.spec import PermutationSpec


class View(Keeps):
    """Endpoints of one network, or of two that are run alike, under the name that messages and reports call it by."""

    kind: ClassVar[str]  # of which properties are: pair, widths, model, set
    name: str

    @property
    def named_endpoints(self) -> Mapping[str, Endpoint]:
        """What is measured, by name."""
        raise NotImplementedError

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """Every checkpoint that was read for it, by name."""
        return {name: end.checkpoint for name, end in self.named_endpoints.items()}

    @property
    def title(self) -> str:
        """What a message calls it: "pair x", "model x"."""
        return f"{'pair' if self.kind == 'widths' else self.kind} {self.name}"

    @property
    def network(self) -> Network:
        """The network of the first endpoint, on whose data all are measured."""
        return next(iter(self.named_endpoints.values())).network

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks of all endpoints."""
        return (self.network,)

    @property
    def module(self) -> nn.Module:
        """The user's own module, never changed."""
        return self.network.module

    @property
    def data(self) -> Data:
        """What verdicts are measured on."""
        return self.network.data

    @property
    def calibration(self) -> Data | None:
        """What aligns, searches and re-estimates BatchNorm; no verdict is measured on it."""
        return self.network.calibration

    @property
    def loss(self) -> Loss:
        """The loss per sample."""
        return self.network.loss

    @property
    def device(self) -> str:
        """The device that was asked for."""
        return self.network.device

    @property
    def torch_device(self) -> torch.device:
        """The device it came to."""
        return self.network.torch_device

    @property
    def base(self) -> Path:
        """The folder that relative paths and modules are looked up in."""
        return self.network.base

    @property
    def symmetry(self) -> PermutationSpec | None:
        """The permutation spec that was handed in, None where it is derived."""
        return self.network.given

    @property
    def origins(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that the weights came from."""
        return tuple(self.checkpoints.values())

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read for it, none of which may be written to."""
        own = [file for checkpoint in self.origins for file in checkpoint.files]
        return (*own, *dict.fromkeys(file for network in self.networks for file in network.inputs))

    @property
    def description(self) -> dict[str, Any]:
        """What a report says of it; JSON-able."""
        files = {name: checkpoint.facts() for name, checkpoint in self.checkpoints.items()}
        return {"files": files, **self.network.facts()}

    def require_unchanged(self) -> None:
        """Raise CheckpointError where a file that was read for it is another by now."""
        all_unchanged(self.origins)
        for network in self.networks:
            network.require_unchanged()

    def example_inputs(self) -> tuple[Any, ...]:
        """Return two samples of the evaluation data as positional inputs, for tracing."""
        return self.network.example_inputs()
