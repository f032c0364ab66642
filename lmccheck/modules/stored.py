"""What a module stores: its tensors by name, which names are one tensor, and private copies that behave."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.store.tensors import equal, identity, overlap


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of the state dict by name: the module's own tensors, never copies of them.

    Raises SourceError or UnsupportedArchitecture for a module whose checkpoint is not simply its parameters and
    buffers, since loading such a checkpoint by name would not do what the network's author means.
    """
    what = f"model {type(module).__name__}"
    own = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in own.items():
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise SourceError(f"{what}: tensor {name!r} has no shape yet; mend: run a lazy model once first")
        if tensor.device.type == "meta":
            raise SourceError(f"{what}: tensor {name!r} is on the meta device; mend: build it with real memory")
    stored: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise UnsupportedArchitecture(
                f"{what}: its state dict holds {name!r}, a {type(value).__name__}, expected tensors only; "
                "mend: leave extra state out of the model that is checked"
            )
        if name not in own or (value is not own[name] and identity(value) != identity(own[name])):
            raise UnsupportedArchitecture(
                f"{what}: its state dict gives {name!r} as something other than the parameter or buffer of that name; "
                "mend: check the inner model, whose names are its own"
            )
        stored[name] = own[name]
    for name, tensor in own.items():
        if name not in stored and any(overlap(tensor, other) for other in stored.values()):
            raise UnsupportedArchitecture(
                f"{what}: buffer {name!r} is not stored but shares memory with a tensor that is; mend: compute it in "
                "forward"
            )
    return stored


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map every name of the state dict to the first name that holds the same tensor (itself when untied)."""
    first: dict[object, str] = {}
    return {name: first.setdefault(identity(tensor), name) for name, tensor in stored_tensors(module).items()}


def overlapping_names(module: nn.Module) -> set[str]:
    """Return the names whose tensors share memory with another tensor without being the same one (views)."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in stored_tensors(module).items():
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    return {
        name
        for tensors in by_storage.values()
        for name, tensor in tensors
        for _, other in tensors
        if identity(tensor) != identity(other) and overlap(tensor, other)
    }


def private_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares nothing with ``module``.

    Raises SourceError when the module cannot be copied, UnsupportedArchitecture when switching it to evaluation mode
    changes its weights (merged adapters): what it then computes is not a function of the checkpoint alone.
    """
    what = f"model {type(module).__name__}"
    stored_tensors(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedArchitecture(
            f"{what}: got a TorchScript module, expected an eager one; mend: return the original"
        )
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{what}: cannot be copied: {said}; mend: make copy.deepcopy(model) work, for example with "
            "torch.nn.utils.parametrizations in place of the older weight_norm"
        ) from error
    before = stored_tensors(module)
    for name, tensor in stored_tensors(twin.eval()).items():
        if name not in before or not equal(tensor, before[name]):
            raise UnsupportedArchitecture(
                f"{what}: switching it to evaluation mode changes its tensor {name!r}; mend: merge or remove adapters "
                "before saving, and return a model whose eval() leaves weights alone"
            )
    return twin
