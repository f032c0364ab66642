"""One checkpoint with what is needed to measure it: a SingleModel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.finding import ALONE
from lmccheck.modules.precision import own_settings
from lmccheck.network.endpoint import Endpoint, StateDict, endpoint
from lmccheck.network.hub.names import under_module_names
from lmccheck.network.loaded import as_loaded
from lmccheck.network.loading import network_of
from lmccheck.network.loss import require_counted
from lmccheck.network.pair import Given
from lmccheck.network.view import View
from lmccheck.shown import one_line
from lmccheck.store.checkpoint import open_checkpoint
from lmccheck.store.names import model_names
from lmccheck.symmetry.spec import PermutationSpec


@one_line(lambda one: f"{one.name!r}, {one.end.checkpoint.label}, {one.network.run_on}")
@dataclass(frozen=True, eq=False)
class SingleModel(View):
    """An endpoint θ by itself, with the data and the loss to measure it. Made by ``load_model``."""

    name: str
    end: Endpoint
    kind = "model"

    @property
    def named_endpoints(self) -> dict[str, Endpoint]:
        """What is measured: the model."""
        return {ALONE: self.end}

    @property
    def theta(self) -> dict[str, Tensor]:
        """θ: every name of the state dict, on the CPU, in the stored dtype."""
        return self.end.theta

    @property
    def description(self) -> dict[str, Any]:
        """What a report says of the model; JSON-able. Its file has the name that manifests give it."""
        return {**super().description, "files": {"checkpoint": self.end.checkpoint.facts()}}

    def with_weights(self, theta: StateDict) -> SingleModel:
        """Return a model of the same network with other weights, and nothing of this one's kept."""
        return SingleModel(self.name, replace(self.end, theta=dict(theta)))

    def measured_on(self, data: Data, calibration: Data | None) -> SingleModel:
        """Return the same model with other data, and nothing of this one kept."""
        network = replace(self.network, data=require_counted(data, self.loss), calibration=calibration)
        return SingleModel(self.name, replace(self.end, network=network))


@own_settings()
def load_model(
    checkpoint: Given,
    *,
    model: Any = None,
    data: Any,
    calibration: Any = None,
    loss: Any = None,
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    sha256: str | None = None,
    symmetry: str | os.PathLike[str] | PermutationSpec | None = None,
    accept: Sequence[str] = (),
) -> SingleModel:
    """Load and check one checkpoint, for the properties of a single model: dropout and noise stability.

    ``checkpoint`` is named as ``a`` of ``load_pair`` is: a .safetensors file, a model's folder or index,
    ``{"base": …, "adapter": …}``, or a state dict. ``sha256`` pins it, 64 hexadecimal digits. ``accept`` names what may
    differ between the folder and the tokenizer that the data are read with. All else as in ``load_pair``.

    Raises CheckpointError, SourceError, SymmetryError or DeviceError with one line: what, got, expected, the mend.
    """
    folder = Path(base) if base is not None else Path.cwd()
    opened = open_checkpoint(checkpoint, folder, ALONE, sha256)
    network = network_of(
        {ALONE: opened}, model, accept, name=name or model_names([checkpoint], ["state dict"])[0], data=data,
        calibration=calibration, loss=loss, device=device, base=folder, symmetry=symmetry,
    )  # fmt: skip
    end = as_loaded(endpoint(network, under_module_names(opened, network)))[0]
    return SingleModel(network.name, end)
