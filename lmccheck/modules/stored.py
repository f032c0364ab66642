"""What a module stores: its tensors by name, and which names are one tensor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.store.tensors import identity, overlap


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
