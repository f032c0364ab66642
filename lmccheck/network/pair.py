"""Two endpoints, with what is needed to measure them: of one network a ModelPair, of two widths a WidthPair."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.beside.configs import WIDTHS
from lmccheck.data.load import Data
from lmccheck.errors import CheckpointError
from lmccheck.modules.precision import own_settings
from lmccheck.network.endpoint import (
    Endpoint,
    StateDict,
    endpoint,
    require_same_tensors,
    same_weights,
)
from lmccheck.network.hub.names import model_for, under_module_names
from lmccheck.network.loaded import as_loaded
from lmccheck.network.loading import network_of
from lmccheck.network.loss import require_counted
from lmccheck.network.network import Network
from lmccheck.network.view import View
from lmccheck.shown import one_line
from lmccheck.store.checkpoint import Checkpoint, open_checkpoint
from lmccheck.store.given import Named
from lmccheck.store.names import model_names
from lmccheck.symmetry.spec import PermutationSpec

Given = Named | os.PathLike[str] | Mapping[str, Any]  # a state dict, or an adapter on its base


@one_line(lambda pair: f"{pair.name!r}, {pair.a.checkpoint.label}, {pair.b.checkpoint.label}, {pair.network.run_on}")
@dataclass(frozen=True, eq=False)
class _Ends(View):
    """Two endpoints."""

    name: str
    a: Endpoint
    b: Endpoint

    @property
    def named_endpoints(self) -> dict[str, Endpoint]:
        """What is compared, by name."""
        return {"a": self.a, "b": self.b}


class ModelPair(_Ends):
    """Endpoints θ_A and θ_B of one network, with the data and the loss to measure them. Made by ``load_pair``."""

    kind = "pair"

    @property
    def theta_a(self) -> dict[str, Tensor]:
        """θ_A: every name of the state dict, on the CPU, in the stored dtype."""
        return self.a.theta

    @property
    def theta_b(self) -> dict[str, Tensor]:
        """θ_B, as θ_A."""
        return self.b.theta

    def with_weights(self, theta_a: StateDict, theta_b: StateDict) -> ModelPair:
        """Return a pair of the same network with other weights, and nothing of this one's kept."""
        a, b = replace(self.a, theta=dict(theta_a)), replace(self.b, theta=dict(theta_b))
        return ModelPair(self.name, a, b)

    def measured_on(self, data: Data, calibration: Data | None) -> ModelPair:
        """Return the same endpoints with other data, and nothing of this pair kept."""
        network = replace(self.network, data=require_counted(data, self.loss), calibration=calibration)
        return ModelPair(self.name, replace(self.a, network=network), replace(self.b, network=network))


class WidthPair(_Ends):
    """Endpoints of two networks that differ in nothing but hidden widths, measured on the same data with one loss."""

    kind = "widths"

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks of both widths."""
        return self.a.network, self.b.network

    @property
    def description(self) -> dict[str, Any]:
        """What a report says of the pair; JSON-able."""
        return {**super().description, "model_b": self.b.network.model}


def require_distinct(pair: ModelPair | WidthPair) -> None:
    """Raise CheckpointError where a and b are one network under two names."""
    if same_weights(pair.a, pair.b):
        raise CheckpointError(
            f"pair {pair.name}: {pair.a.checkpoint.label} and {pair.b.checkpoint.label} hold the same weights, "
            "expected two networks; mend: name the other checkpoint"
        )


@own_settings()
def load_pair(
    a: Given,
    b: Given,
    *,
    model: Any = None,
    data: Any,
    calibration: Any = None,
    loss: Any = None,
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    sha256: Mapping[str, str] | None = None,
    symmetry: str | os.PathLike[str] | PermutationSpec | None = None,
    accept: Sequence[str] = (),
    untie: bool = False,
) -> ModelPair:
    """Load and check two checkpoints of one network.

    ``a``, ``b``: .safetensors file, a model's folder or index, ``{"base": …, "adapter": …}`` for an adapter on its
    base, or state dict. ``model``: ``"pkg.mod:build"``, a callable or an nn.Module; left out, the one that the
    config.json of a's folder describes, built by transformers (extra ``hf``).
    ``data`` (verdicts are measured on it) and ``calibration`` (aligns, re-estimates BatchNorm; never measured on):
    a .safetensors file with ``inputs`` and ``targets``, ``"pkg.mod:batches"``, a pair of tensors or arrays, a
    dictionary with ``labels``, batches of them, or a data set; next_token needs no targets. ``loss``:
    ``cross_entropy`` (nats), ``mse``, ``next_token``, ``token_cross_entropy`` or ``"pkg.mod:per_sample_loss"``; left
    out, what a folder's model is trained with, next_token for text, else cross_entropy. ``device``: ``auto``, ``cpu``,
    ``cuda[:N]``. Relative paths and modules are looked up in ``base`` (the current folder by default); ``sha256``
    pins the files, ``{"a": hex, "b": hex}``. ``symmetry``: a spec file (.toml, .json) or a PermutationSpec to use in
    place of the derived one, for a network that cannot be traced; it is verified before use like any other.
    Folders are compared in their config.json and tokenizers; ``accept`` names what may differ: ``["rope_scaling"]``.
    ``untie``: heads that are tied to an embedding are written apart in both, so that streams may be rotated.

    Raises CheckpointError, SourceError, SymmetryError or DeviceError with one line: what, got, expected, the mend.
    """
    folder = Path(base) if base is not None else Path.cwd()
    first, second = _opened(a, b, folder, sha256 or {})
    network = network_of(
        {"a": first, "b": second}, model, accept, name=name or _title(a, b), data=data, calibration=calibration,
        loss=loss, device=device, base=folder, symmetry=symmetry,
    )  # fmt: skip
    network = network.untied() if untie else network
    first, second = under_module_names(first, network), under_module_names(second, network)
    require_same_tensors(first, second, network.module)
    return ModelPair(network.name, *as_loaded(endpoint(network, first), endpoint(network, second)))


@own_settings()
def load_widths(
    a: Given,
    b: Given,
    *,
    model_a: Any = None,
    model_b: Any = None,
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    sha256: Mapping[str, str] | None = None,
    accept: Sequence[str] = (),
    **given: Any,
) -> WidthPair:
    """Load and check two checkpoints, each of its own network, which differ in nothing but hidden widths.

    All else as in ``load_pair``; raises as that does.
    """
    folder = Path(base) if base is not None else Path.cwd()
    opened = _opened(a, b, folder, sha256 or {})
    ends = dict(zip("ab", opened, strict=True))
    first = network_of(ends, model_a, accept, meant=WIDTHS, name=name or _title(a, b), base=folder, **given)
    second = first.with_model(model_for(model_b, opened[1]))
    found = ((n, under_module_names(c, n)) for n, c in zip((first, second), opened, strict=True))
    return WidthPair(first.name, *(as_loaded(endpoint(n, c))[0] for n, c in found))


def _opened(a: Given, b: Given, folder: Path, pins: Mapping[str, str]) -> list[Checkpoint]:
    if other := next((key for key in pins if key not in ("a", "b")), None):
        raise CheckpointError(f"sha256: got the key {other!r}, expected 'a' and 'b' only; mend: name the side it pins")
    return [open_checkpoint(given, folder, side, pins.get(side)) for side, given in (("a", a), ("b", b))]


def _title(a: Given, b: Given) -> str:
    return "-".join(model_names((a, b), ("state dict a", "state dict b")))
