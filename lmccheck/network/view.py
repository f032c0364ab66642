"""What pairs and single models have in common: endpoints by name, and the network that they are measured by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lmccheck.data.load import Data
from lmccheck.network.endpoint import Endpoint, inputs_of, require_unchanged
from lmccheck.network.loss import Loss
from lmccheck.network.network import Network
from lmccheck.network.once import Keeps
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.symmetry.spec import PermutationSpec


class View(Keeps):
    """Endpoints of one network, or of two that are run alike, under the name that messages and reports call it by."""

    kind: ClassVar[str]  # of which properties are: pair, widths, model
    name: str

    @property
    def named_endpoints(self) -> dict[str, Endpoint]:
        """What is measured, by name."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What a message calls it: "pair x", "model x"."""
        return f"{'pair' if self.kind == 'widths' else self.kind} {self.name}"

    @property
    def network(self) -> Network:
        """The network of the first endpoint, on whose data all are measured."""
        return next(iter(self.named_endpoints.values())).network

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
        return tuple(end.checkpoint for end in self.named_endpoints.values())

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read for it, none of which may be written to."""
        return inputs_of(*self.named_endpoints.values())

    @property
    def description(self) -> dict[str, Any]:
        """What a report says of it; JSON-able."""
        files = {name: end.checkpoint.facts() for name, end in self.named_endpoints.items()}
        return {"files": files, **self.network.facts()}

    def require_unchanged(self) -> None:
        """Raise CheckpointError where a file that was read for it is another by now."""
        require_unchanged(*self.named_endpoints.values())

    def example_inputs(self) -> tuple[Any, ...]:
        """Return two samples of the evaluation data as positional inputs, for tracing."""
        return self.network.example_inputs()
