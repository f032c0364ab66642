"""Two checkpoints of one network, with what is needed to measure them: a ModelPair."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import CheckpointError, SymmetryError, shown_path
from lmccheck.modules.precision import dtype_name
from lmccheck.modules.stored import identity, stored_tensors, tied_names
from lmccheck.network.device import resolve_device
from lmccheck.network.loss import Loss, load_loss
from lmccheck.store import checkpoint
from lmccheck.store.data import Data, load_data
from lmccheck.store.model import build_module
from lmccheck.store.trees import moved
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.spec_file import load_spec

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """Where one endpoint came from: its file (None for a state dict), hash and metadata."""

    path: str | None
    sha256: str | None
    metadata: dict[str, str]


@dataclass(frozen=True)
class ModelPair:
    """Endpoints θ_A and θ_B of one network, the data and the loss to measure them with. Made by ``load_pair``.

    ``theta_a`` and ``theta_b`` hold every name of the module's state dict, on the CPU, in the stored dtype.
    ``symmetry`` is the permutation spec that was handed in, None where it is to be derived from the traced network.
    """

    name: str
    module: nn.Module = field(repr=False)
    theta_a: dict[str, Tensor] = field(repr=False)
    theta_b: dict[str, Tensor] = field(repr=False)
    data: Data
    calibration: Data | None
    loss: Loss = field(repr=False)
    device: str
    torch_device: torch.device
    origins: tuple[Origin, Origin]
    description: dict[str, Any] = field(repr=False)
    symmetry: PermutationSpec | None = field(default=None, repr=False)
    base: Path | None = field(default=None, repr=False)  # the folder that relative paths and modules are looked up in
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # alignments and specs, made once

    def example_inputs(self) -> tuple[Any, ...]:
        """Return two samples of the evaluation data as positional inputs, for tracing."""
        inputs = self.data.example()
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        dtype = first.dtype if first is not None else torch.float32
        device = first.device if first is not None else torch.device("cpu")
        positional: tuple[Any, ...] = moved(inputs, device, dtype)
        return positional


def load_pair(
    a: str | os.PathLike[str] | StateDict,
    b: str | os.PathLike[str] | StateDict,
    *,
    model: Any,
    data: Any,
    calibration: Any = None,
    loss: Any = "cross_entropy",
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    sha256: Mapping[str, str] | None = None,
    symmetry: str | os.PathLike[str] | PermutationSpec | None = None,
) -> ModelPair:
    """Load and check two checkpoints of one network.

    ``a``, ``b``: .safetensors file or state dict. ``model``: ``"pkg.mod:build"``, a callable or an nn.Module.
    ``data`` (verdicts are measured on it) and ``calibration`` (aligns, re-estimates BatchNorm; never measured on):
    a .safetensors file with ``inputs`` and ``targets``, ``"pkg.mod:batches"``, or a pair of tensors. ``loss``:
    ``cross_entropy`` (nats), ``mse``, ``next_token`` or ``"pkg.mod:per_sample_loss"``. ``device``: ``auto``, ``cpu``,
    ``cuda[:N]``. Relative paths and modules are looked up in ``base`` (the current folder by default); ``sha256``
    pins the files, ``{"a": hex, "b": hex}``. ``symmetry``: a spec file (.toml, .json) or a PermutationSpec to use in
    place of the derived one, for a network that cannot be traced; it is verified before use like any other.

    Raises CheckpointError, SourceError, SymmetryError or DeviceError with one line: what, got, expected, the mend.
    """
    folder = Path(base) if base is not None else Path.cwd()
    torch_device = resolve_device(device)
    label = {"a": _describe(a, "a"), "b": _describe(b, "b")}
    title = name or f"{Path(label['a']).stem}-{Path(label['b']).stem}"
    states, origins = [], []
    for key, given in (("a", a), ("b", b)):
        state, origin = _read(given, folder, (sha256 or {}).get(key), key)
        states.append(state)
        origins.append(origin)
    _same_tensors(states[0], states[1], label["a"], label["b"])
    module = build_module(model, folder)
    stored_tensors(module)
    for key, state in zip("ab", states, strict=True):
        _fits_module(state, module, label[key], model)
        _known_dtypes(state, label[key])
        bad = checkpoint.not_finite(state)
        if bad is not None:
            raise CheckpointError(
                f"{label[key]}: tensor {bad[0]!r}: got {bad[1]}, expected finite weights; mend: this checkpoint "
                "diverged, take another"
            )
    theta_a, theta_b = (_complete(state, module) for state in states)
    spec, spec_facts = _symmetry(symmetry, folder, module)
    held = load_data(data, folder, "data")
    calibrating = load_data(calibration, folder, "calibration") if calibration is not None else None
    chosen = load_loss(loss, folder)
    description = {
        "files": {key: _file_facts(origin, state) for key, origin, state in zip("ab", origins, states, strict=True)},
        "model": model if isinstance(model, str) else type(module).__name__,
        "data": {"origin": held.origin, "samples": held.samples},
        "calibration": {"origin": calibrating.origin, "samples": calibrating.samples} if calibrating else None,
        "loss": chosen.name,
        "symmetry": spec_facts,
        "device": str(torch_device),
    }
    return ModelPair(
        title,
        module,
        theta_a,
        theta_b,
        held,
        calibrating,
        chosen,
        str(device),
        torch_device,
        (origins[0], origins[1]),
        description,
        spec,
        folder,
    )


def _symmetry(given: Any, folder: Path, module: nn.Module) -> tuple[PermutationSpec | None, dict[str, Any]]:
    """Return the spec that was handed in, and what a report says of where the spec comes from."""
    if given is None:
        return None, {"origin": "traced"}
    if isinstance(given, PermutationSpec):
        return given, {"origin": "given"}
    if not isinstance(given, (str, os.PathLike)):
        raise SymmetryError(
            f"symmetry: got {type(given).__name__}, expected a .toml or .json file or a PermutationSpec"
        )
    path = folder / given
    spec = load_spec(path, module)
    return spec, {"origin": shown_path(path), "sha256": checkpoint.sha256_of(path)}


def _describe(given: Any, key: str) -> str:
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else f"state dict {key}"


def _read(given: Any, folder: Path, pin: str | None, key: str) -> tuple[dict[str, Tensor], Origin]:
    if isinstance(given, Mapping):
        wrong = next((n for n, t in given.items() if not isinstance(n, str) or not isinstance(t, Tensor)), None)
        if wrong is not None:
            raise CheckpointError(
                f"state dict {key}: entry {wrong!r} is no tensor, expected a mapping from names to tensors"
            )
        originals = dict(given)  # held, so that no identity is used twice
        kept: dict[object, Tensor] = {}  # names that share a tensor go on sharing it
        state = {n: kept.setdefault(identity(t), t.detach().cpu()) for n, t in originals.items()}
        return state, Origin(None, None, {})
    if not isinstance(given, (str, os.PathLike)):
        raise CheckpointError(f"{key}: got {type(given).__name__}, expected a .safetensors path or a state dict")
    path = folder / given
    header = checkpoint.read_header(path)
    digest = checkpoint.sha256_of(path)
    if pin is not None and pin.lower() != digest:
        raise CheckpointError(
            f"{shown_path(path)}: sha256 is {digest}, the pin says {pin}; mend: restore the file or review and update "
            "the pin"
        )
    return checkpoint.load(path), Origin(str(path), digest, header.metadata)


def _same_tensors(a: StateDict, b: StateDict, name_a: str, name_b: str) -> None:
    for key in a:
        if key not in b:
            raise CheckpointError(
                f"{name_b}: tensor {key!r} is missing, {name_a} has it; mend: compare checkpoints of one network"
            )
    for key in b:
        if key not in a:
            raise CheckpointError(
                f"{name_a}: tensor {key!r} is missing, {name_b} has it; mend: compare checkpoints of one network"
            )
        if a[key].shape != b[key].shape:
            raise CheckpointError(
                f"{name_b}: tensor {key!r} has shape {tuple(b[key].shape)}, in {name_a} it has {tuple(a[key].shape)}; "
                "mend: compare checkpoints of one network"
            )
        if a[key].is_floating_point() != b[key].is_floating_point():
            raise CheckpointError(
                f"{name_b}: tensor {key!r} is {dtype_name(b[key])}, in {name_a} it is {dtype_name(a[key])}; mend: "
                "save both alike"
            )


_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def _known_dtypes(state: StateDict, label: str) -> None:
    for name, tensor in state.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in _DTYPES):
            raise CheckpointError(
                f"{label}: tensor {name!r} is {dtype_name(tensor)}, expected float64, float32, float16 or bfloat16; "
                "mend: convert the checkpoint, quantised weights with their scales"
            )


def _fits_module(state: StateDict, module: nn.Module, label: str, model: Any) -> None:
    expected = stored_tensors(module)
    tied = tied_names(module)
    source = model if isinstance(model, str) else type(module).__name__
    shared = {canonical: [n for n in tied if tied[n] == canonical] for canonical in tied.values()}
    for name, tensor in expected.items():
        present = [n for n in shared[tied[name]] if n in state]
        if not present:
            raise CheckpointError(
                f"{label}: tensor {name!r} is missing, model {source} has it with shape {tuple(tensor.shape)}; "
                "mend: build the model the checkpoint was saved from"
            )
        if name in state and state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{label}: tensor {name!r} has shape {tuple(state[name].shape)}, model {source} expects "
                f"{tuple(tensor.shape)}; "
                "mend: build the model the checkpoint was saved from"
            )
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{label}: tensor {name!r} is {dtype_name(state[name])}, model {source} expects {dtype_name(tensor)}"
            )
        if name in state and name != present[0] and not torch.equal(state[name], state[present[0]]):
            raise CheckpointError(
                f"{label}: tensors {present[0]!r} and {name!r} differ, in model {source} they are one tensor; mend: "
                "save the tied model"
            )
    for name in state:
        if name not in expected:
            raise CheckpointError(
                f"{label}: tensor {name!r} is unknown to model {source}; mend: build the model the checkpoint was "
                "saved from"
            )


def _complete(state: StateDict, module: nn.Module) -> dict[str, Tensor]:
    """Return the state with every name of the module, names of one tensor sharing one tensor."""
    tied = tied_names(module)
    by_canonical: dict[str, Tensor] = {}
    for name in tied:
        if name in state:
            by_canonical.setdefault(tied[name], state[name])
    return {name: by_canonical[tied[name]] for name in tied}


def _file_facts(origin: Origin, state: StateDict) -> dict[str, Any]:
    dtypes: Sequence[str] = sorted(
        {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    )
    return {
        "path": origin.path,
        "sha256": origin.sha256,
        "parameters": sum(t.numel() for t in state.values() if t.is_floating_point()),
        "dtype": "+".join(dtypes),
    }
