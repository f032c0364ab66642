"""A network with the weights of one checkpoint, checked to fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lmccheck.errors import CheckpointError
from lmccheck.modules.stored import stored_tensors, tied_names
from lmccheck.network.network import Network
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.files import not_finite
from lmccheck.store.tensors import dtype_name

StateDict = Mapping[str, Tensor]
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
ONE_NETWORK = "mend: compare checkpoints of one network"
SAVED_FROM = "mend: build the model the checkpoint was saved from"


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A network with weights: ``theta`` holds every name of the state dict, on the CPU, in the stored dtype."""

    network: Network
    theta: dict[str, Tensor] = field(repr=False)
    checkpoint: Checkpoint


def inputs_of(*ends: Endpoint) -> tuple[Path, ...]:
    """Return every file that endpoints were read from, and that their networks are run with."""
    own = [Path(end.checkpoint.path) for end in ends if end.checkpoint.path is not None]
    return (*own, *dict.fromkeys(file for end in ends for file in end.network.inputs))


def endpoint(network: Network, checkpoint: Checkpoint, state: StateDict) -> Endpoint:
    """Return a checkpoint's tensors as an endpoint of the network.

    Raises CheckpointError where a tensor is missing, unknown, of another shape or kind, of a dtype that cannot be
    evaluated, or not finite.
    """
    require_fit(state, network.module, checkpoint.label, network.model)
    for name, tensor in state.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in DTYPES):
            raise CheckpointError(
                f"{checkpoint.label}: tensor {name!r} is {dtype_name(tensor)}, expected float64, float32, float16 or "
                "bfloat16; mend: convert the checkpoint, quantised weights with their scales"
            )
    bad = not_finite(state)
    if bad is not None:
        raise CheckpointError(
            f"{checkpoint.label}: tensor {bad[0]!r}: got {bad[1]}, expected finite weights; mend: this checkpoint "
            "diverged, take another"
        )
    return Endpoint(network, complete(state, network.module), checkpoint)


def require_same_tensors(a: Checkpoint, b: Checkpoint) -> None:
    """Raise CheckpointError unless two checkpoints have the same names, shapes and kinds of numbers."""
    for here, there in ((b, a), (a, b)):
        for key in there.tensors:
            if key not in here.tensors:
                raise CheckpointError(f"{here.label}: tensor {key!r} is missing, {there.label} has it; {ONE_NETWORK}")
    for key, first in a.tensors.items():
        second = b.tensors[key]
        if first.shape != second.shape:
            raise CheckpointError(
                f"{b.label}: tensor {key!r} has shape {second.shape}, in {a.label} it has {first.shape}; {ONE_NETWORK}"
            )
        if first.is_floating_point != second.is_floating_point:
            raise CheckpointError(
                f"{b.label}: tensor {key!r} is {second.torch_dtype}, in {a.label} it is {first.torch_dtype}; mend: "
                "save both alike"
            )


def require_fit(state: StateDict, module: nn.Module, label: str, model: str) -> None:
    """Raise CheckpointError unless a state has the tensors of a module, tied ones under one name at least."""
    expected, tied = stored_tensors(module), tied_names(module)
    shared: dict[str, list[str]] = {}
    for name, canonical in tied.items():
        shared.setdefault(canonical, []).append(name)
    for name, tensor in expected.items():
        present = [n for n in shared[tied[name]] if n in state]
        if not present:
            raise CheckpointError(
                f"{label}: tensor {name!r} is missing, model {model} has it with shape {tuple(tensor.shape)}; "
                f"{SAVED_FROM}"
            )
        if name not in state:
            continue
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{label}: tensor {name!r} has shape {tuple(state[name].shape)}, model {model} expects "
                f"{tuple(tensor.shape)}; {SAVED_FROM}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{label}: tensor {name!r} is {dtype_name(state[name])}, model {model} expects {dtype_name(tensor)}"
            )
        if name != present[0] and not torch.equal(state[name], state[present[0]]):
            raise CheckpointError(
                f"{label}: tensors {present[0]!r} and {name!r} differ, in model {model} they are one tensor; mend: "
                "save the tied model"
            )
    for name in state:
        if name not in expected:
            raise CheckpointError(f"{label}: tensor {name!r} is unknown to model {model}; {SAVED_FROM}")


def complete(state: StateDict, module: nn.Module) -> dict[str, Tensor]:
    """Return the state with every name of the module, names of one tensor sharing one tensor."""
    tied = tied_names(module)
    by_canonical: dict[str, Tensor] = {}
    for name in tied:
        if name in state:
            by_canonical.setdefault(tied[name], state[name])
    return {name: by_canonical[tied[name]] for name in tied}
