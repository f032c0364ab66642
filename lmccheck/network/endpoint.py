"""A network with the weights of one checkpoint, checked to fit it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lmccheck.errors import CheckpointError
from lmccheck.modules.constants import statistics_of
from lmccheck.modules.stored import stored_tensors, tied_names
from lmccheck.network.network import Network
from lmccheck.network.once import Keeps
from lmccheck.shown import one_line
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.files import mask_like, not_finite
from lmccheck.store.header import TensorHeader, require_evaluable
from lmccheck.store.prefixes import prefix_problem, without_prefix
from lmccheck.store.tensors import dtype_name

StateDict = Mapping[str, Tensor]
UNUSED = "num_batches_tracked"
ONE_NETWORK = "mend: compare checkpoints of one network"
SAVED_FROM = "mend: build the model the checkpoint was saved from"


@one_line(lambda end: f"{end.checkpoint.label}, {len(end.theta)} tensors, model {end.network.model}")
@dataclass(frozen=True, eq=False)
class Endpoint(Keeps):
    """A network with weights: ``theta`` holds every name of the state dict, on the CPU, in the stored dtype."""

    network: Network
    theta: dict[str, Tensor] = field(repr=False)
    checkpoint: Checkpoint
    kind = "endpoint"


def endpoint(network: Network, checkpoint: Checkpoint) -> Endpoint:
    """Return a checkpoint's tensors as an endpoint of the network; they are read once what is said of them fits.

    Raises CheckpointError where a tensor is missing, unknown, of another shape or kind, of a dtype that cannot be
    evaluated, or not finite. A prefix that all names have is taken off, see ``without_prefix``.
    """
    checkpoint = without_prefix(checkpoint, stored_tensors(network.module))
    require_fit(checkpoint.tensors, network.module, checkpoint.label, network.model)
    require_evaluable(checkpoint.tensors, checkpoint.label)
    _require_changed_together(checkpoint, network)
    state = checkpoint.read()
    require_tied(state, network.module, checkpoint.label, network.model)
    module = network.module
    finite = dict(module.named_parameters(remove_duplicate=False)).keys() | statistics_of(module)
    bad = not_finite({name: tensor for name, tensor in state.items() if name in finite or not mask_like(tensor)})
    if bad is not None:
        raise CheckpointError(
            f"{checkpoint.label}: tensor {bad[0]!r}: got {bad[1]}, expected finite weights; mend: this checkpoint "
            "diverged, take another"
        )
    return Endpoint(network, complete(state, network.module), checkpoint)


def kept_weights(end: Endpoint) -> Mapping[str, Tensor]:
    """Return the weights in memory that nobody else writes to: a copy of those that are in no file, the caller's."""
    if end.checkpoint.files:
        return end.theta
    copies = {id(tensor): tensor.detach().clone() for tensor in end.theta.values()}
    return {name: copies[id(tensor)] for name, tensor in end.theta.items()}


def same_weights(first: Endpoint, second: Endpoint) -> bool:
    """Whether two endpoints are one network: every tensor equal, in the narrower dtype of the two.

    Counters (of batches that a BatchNorm has seen, of steps) change nothing and do not count.
    """
    if first.theta.keys() != second.theta.keys():
        return False
    return all(
        _same_numbers(tensor, second.theta[name])
        for name, tensor in first.theta.items()
        if not _is_counter(name, tensor)
    )


def _is_counter(name: str, tensor: Tensor) -> bool:
    return name.endswith(UNUSED) or (tensor.numel() == 1 and not tensor.is_floating_point())


def twin_key(end: Endpoint) -> tuple[tuple[str, ...], str]:
    """Return the dtypes of an endpoint and a hash of its numbers: endpoints of equal dtypes that are one share both."""
    digest, dtypes = hashlib.sha256(), []
    for name, tensor in sorted(end.theta.items()):
        if _is_counter(name, tensor):
            continue
        dtypes.append(dtype_name(tensor))
        numbers = tensor + 0.0 if tensor.is_floating_point() else tensor  # −0 is 0
        if numbers.numel():
            digest.update(numbers.contiguous().flatten().view(torch.uint8).numpy().data)
    return tuple(dtypes), digest.hexdigest()


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype and one.is_floating_point() and other.is_floating_point():
        narrow = min(one, other, key=lambda tensor: tensor.element_size()).dtype
        one, other = one.to(narrow).float(), other.to(narrow).float()
    return torch.equal(one, other)


def require_same_tensors(a: Checkpoint, b: Checkpoint, module: nn.Module) -> None:
    """Raise CheckpointError unless two checkpoints have the same names, shapes and kinds of numbers.

    A name of a tensor that ``module`` knows by several may be in one of them only.
    """
    twins, stored = _twins(module), stored_tensors(module)
    a, b = without_prefix(a, stored), without_prefix(b, stored)
    for here, there in ((b, a), (a, b)):
        for key in there.tensors:
            if not any(name in here.tensors for name in twins.get(key, [key])):
                if problem := prefix_problem(here.tensors, there.tensors, there.label):
                    raise CheckpointError(f"{here.label}: {problem}")
                raise CheckpointError(f"{here.label}: tensor {key!r} is missing, {there.label} has it; {ONE_NETWORK}")
    for key, first in a.tensors.items():
        second = next(b.tensors[name] for name in (key, *twins.get(key, [])) if name in b.tensors)
        if first.shape != second.shape:
            raise CheckpointError(
                f"{b.label}: tensor {key!r} has shape {second.shape}, in {a.label} it has {first.shape}; {ONE_NETWORK}"
            )
        if first.is_floating_point != second.is_floating_point:
            raise CheckpointError(
                f"{b.label}: tensor {key!r} is {second.torch_dtype}, in {a.label} it is {first.torch_dtype}; mend: "
                "save both alike"
            )


def require_fit(state: Mapping[str, TensorHeader], module: nn.Module, label: str, model: str) -> None:
    """Raise CheckpointError unless a checkpoint has the tensors of a module, tied ones under one name at least."""
    expected, twins = stored_tensors(module), _twins(module)
    if problem := prefix_problem(state, expected, f"model {model}"):
        raise CheckpointError(f"{label}: {problem}")
    for name, tensor in expected.items():
        present = [n for n in twins[name] if n in state]
        if not present:
            raise CheckpointError(
                f"{label}: tensor {name!r} is missing, model {model} has it with shape {tuple(tensor.shape)}; "
                f"{SAVED_FROM}"
            )
        if name not in state:
            continue
        if state[name].shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{label}: tensor {name!r} has shape {state[name].shape}, model {model} expects {tuple(tensor.shape)}; "
                f"{SAVED_FROM}"
            )
        if state[name].is_floating_point != tensor.is_floating_point():
            raise CheckpointError(
                f"{label}: tensor {name!r} is {state[name].torch_dtype}, model {model} expects {dtype_name(tensor)}"
            )
    for name in state:
        if name not in expected:
            raise CheckpointError(f"{label}: tensor {name!r} is unknown to model {model}; {SAVED_FROM}")


def require_tied(state: StateDict, module: nn.Module, label: str, model: str) -> None:
    """Raise CheckpointError where the names of one tensor hold different numbers."""
    for names in _twins(module).values():
        first, *others = [name for name in names if name in state]
        for name in others:
            if not torch.equal(state[name], state[first]):
                raise CheckpointError(
                    f"{label}: tensors {first!r} and {name!r} differ, in model {model} they are one tensor; mend: "
                    "save the tied model"
                )


def _require_changed_together(checkpoint: Checkpoint, network: Network) -> None:
    """Raise CheckpointError where an adapter changes one name of a tensor, and another is to stay what it was."""
    for name, twins in _twins(network.module).items():
        left = [other for other in twins if other not in checkpoint.apart]
        if name in checkpoint.apart and left:
            raise CheckpointError(
                f"{checkpoint.label}: the adapter changes tensor {name!r} and not {left[0]!r}, in model "
                f"{network.model} they are one tensor; peft unties them, expected both as they are; mend: merge the "
                "adapter with peft into an untied base, and give that model"
            )


def _twins(module: nn.Module) -> dict[str, list[str]]:
    """Return for every name of a module's tensors all names of that tensor, its own among them."""
    tied = tied_names(module)
    shared: dict[str, list[str]] = {}
    for name, canonical in tied.items():
        shared.setdefault(canonical, []).append(name)
    return {name: shared[canonical] for name, canonical in tied.items()}


def complete(state: StateDict, module: nn.Module) -> dict[str, Tensor]:
    """Return the state with every name of the module, names of one tensor sharing one tensor."""
    tied = tied_names(module)
    by_canonical: dict[str, Tensor] = {}
    for name in tied:
        if name in state:
            by_canonical.setdefault(tied[name], state[name])
    return {name: by_canonical[tied[name]] for name in tied}
