"""Names of a file and names of a module: transformers converts the tensors that were read, and back again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.imports import say
from lmccheck.errors import CheckpointError
from lmccheck.modules.stored import stored_tensors, tied_names
from lmccheck.network.endpoint import SAVED_FROM
from lmccheck.network.hub.folder import FolderModel, folder_model
from lmccheck.network.hub.library import quiet, transformers_for
from lmccheck.network.network import Network
from lmccheck.store import files
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.folders import CONFIG
from lmccheck.store.header import header_of, require_evaluable
from lmccheck.store.heads import with_own_heads
from lmccheck.store.prefixes import without_prefix
from lmccheck.store.tensors import equal, identity

IGNORED = "_keys_to_ignore_on_load_missing"  # names that a class lets a checkpoint lack


def model_for(model: Any, checkpoint: Checkpoint) -> Any:
    """Return the model, where it is left out that of the folder of a checkpoint. Raises SourceError."""
    return folder_model(checkpoint.home, checkpoint.label) if model is None else model


def as_described(network: Network, checkpoint: Checkpoint) -> Network:
    """Return the network as the config beside a checkpoint describes it, where that of a folder is measured.

    So a merge is run with the settings that it ships with, also where it has more layers than its parents.
    """
    home = checkpoint.home
    if network.described is None or home is None or not (home / CONFIG).is_file():
        return network
    return network.with_model(folder_model(home, checkpoint.label))


def under_module_names(checkpoint: Checkpoint, network: Network) -> Checkpoint:
    """Return a checkpoint with its tensors as a folder's model has them: names converted, experts stacked.

    One of a network that the user builds is returned as it is, with heads of its own where those are written apart.

    They are those that ``checkpoint.read`` gave, converted by transformers as from_pretrained does, in the dtypes that
    they are stored in. Raises CheckpointError, naming the tensor, where one is missing, unknown or of another shape:
    nothing is drawn at random.
    """
    model = network.described
    if checkpoint.onto is not None and model is not None:
        return checkpoint.onto(lambda base: under_module_names(base, network))
    if network.heads:
        checkpoint = with_own_heads(checkpoint, network.heads)
    if model is None:
        return checkpoint
    require_evaluable(checkpoint.tensors, checkpoint.label)
    expected = stored_tensors(network.module)
    checkpoint = without_prefix(checkpoint, expected)
    once = _Converted(checkpoint, model)
    tensors = {name: header_of(tensor) for name, tensor in once.described(expected).items()}
    return replace(
        checkpoint, tensors=tensors, read=once.read, get=lambda name: once.read()[name], same=once.same, lies={},
        as_stored=once.as_stored,
    )  # fmt: skip


class _Converted:
    """A checkpoint's tensors under the names of a model, converted whenever they are read."""

    def __init__(self, checkpoint: Checkpoint, model: FolderModel) -> None:
        self.checkpoint, self.model = checkpoint, model

    def described(self, expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return tensors such as will be read; nothing is read where the file has floats of one dtype only."""
        floats = {one.torch_dtype for one in self.checkpoint.tensors.values() if one.is_floating_point}
        if len(floats) != 1:
            return self.read()
        dtype = getattr(torch, floats.pop())
        return {
            name: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="meta")
            for name, t in expected.items()
        }

    def read(self) -> dict[str, Tensor]:
        return converted(self.checkpoint.read(), self.model, self.checkpoint.label)

    def same(self, one: str, other: str) -> bool:
        state = self.read()
        return equal(state[one], state[other])

    def as_stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return under_file_names(weights, self.checkpoint, self.model)


def converted(given: Mapping[str, Tensor], model: FolderModel, label: str) -> dict[str, Tensor]:
    """Return tensors under the names of a folder's model, in their own dtypes. Raises CheckpointError."""
    floats = {tensor.dtype for tensor in given.values() if tensor.is_floating_point()}
    widest = reduce(torch.promote_types, floats, next(iter(floats), torch.float32))
    state = _loaded(given, model, label, widest)
    sources = {name: given[name].dtype for name in state if name in given}
    if len(floats) > 1 and any(name not in sources and t.is_floating_point() for name, t in state.items()):
        sources |= _dtypes(given, state, model, label, widest)
    return {
        name: tensor.to(sources.get(name, widest)) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _dtypes(
    given: Mapping[str, Tensor], state: Mapping[str, Tensor], model: FolderModel, label: str, widest: torch.dtype
) -> dict[str, torch.dtype]:
    """Return the dtypes that renamed tensors came in, the widest of those that one is made of: numbers tell them."""
    order = sorted({t.dtype for t in given.values() if t.is_floating_point()}, key=lambda dtype: dtype.itemsize)
    marks = {
        name: torch.full_like(t, order.index(t.dtype) + 1, dtype=widest) if t.is_floating_point() else t
        for name, t in given.items()
    }
    marked = _loaded(marks, model, label, widest)
    return {
        name: order[int(marked[name].max()) - 1]
        for name, tensor in state.items()
        if tensor.is_floating_point() and name not in given and tensor.numel()
    }


def _loaded(given: Mapping[str, Tensor], model: FolderModel, label: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what transformers makes of tensors; they are not changed, and may be among those returned."""
    library = transformers_for(model.label)
    try:
        with quiet(library), torch.random.fork_rng(devices=[]):
            module, said = model.kind.from_pretrained(
                None,
                config=model.config,
                state_dict=dict(given),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:
        raise CheckpointError(
            f"{label}: transformers cannot make {model.label} of its tensors: {say(error)}; {SAVED_FROM}"
        ) from error
    if problem := complaint(said, model.label) or _drawn(module, given):
        raise CheckpointError(f"{label}: {problem}")
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def complaint(said: Mapping[str, Any], model: str) -> str | None:
    """Return in words what from_pretrained says that it could not take from the files as it is; None for nothing."""
    for name, found, expected in sorted(said.get("mismatched_keys", ())):
        return f"tensor {name!r} has shape {tuple(found)}, model {model} expects {tuple(expected)}; {SAVED_FROM}"
    if missing := sorted(said.get("missing_keys", ())):
        return f"tensor {missing[0]!r} is missing, model {model} has it{_more(missing)}; {SAVED_FROM}"
    if unknown := sorted(said.get("unexpected_keys", ())):
        return f"tensor {unknown[0]!r} is unknown to model {model}{_more(unknown)}; {SAVED_FROM}"
    for name, why in sorted(dict(said.get("conversion_errors", {})).items()):
        return f"tensor {name!r} could not be converted for model {model}: {why}; {SAVED_FROM}"
    return next((f"{said_of}; {SAVED_FROM}" for said_of in said.get("error_msgs", ())), None)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def _drawn(module: nn.Module, given: Mapping[str, Tensor]) -> str | None:
    """Say which parameter was drawn at random because the model's class lets a checkpoint lack it."""
    import re

    patterns = getattr(module, IGNORED, None) or ()
    if not patterns:
        return None
    held = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
    for name, tensor in module.named_parameters():
        lacking = name not in given and tensor.untyped_storage().data_ptr() not in held
        if lacking and any(re.search(pattern, name) for pattern in patterns):
            return f"tensor {name!r} is missing, and {type(module).__name__} would draw it at random; {SAVED_FROM}"
    return None


def under_file_names(weights: Mapping[str, Tensor], checkpoint: Checkpoint, model: FolderModel) -> dict[str, Tensor]:
    """Return weights of the module under the names, shapes and dtypes of the file they came from.

    What is returned is converted once more and compared: a folder of it gives these weights again. Raises
    CheckpointError where transformers has no way back to the file's layout.
    """
    given = checkpoint.read()
    names = _renamed(given, converted(given, model, checkpoint.label))
    found = (
        {name: weights[own] for name, own in names.items()} if names is not None else _reverted(weights, model, given)
    )
    layout = {name: (header.shape, header.torch_dtype) for name, header in checkpoint.tensors.items()}
    stored = {
        name: tensor.to(given[name].dtype) for name, tensor in found.items() if name in given
    }  # fmt: skip
    same = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in stored.items()} == layout
    if not same or found.keys() != given.keys() or not _gives(stored, weights, model, checkpoint.label):
        raise CheckpointError(
            f"{checkpoint.label}: transformers has no way back from {model.label} to the layout of its tensors; mend: "
            "load it and save it with this version of transformers, and check what that wrote"
        )
    return stored


def _gives(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor], model: FolderModel, label: str) -> bool:
    """Whether a file of these tensors would be read as those weights, rounded to its dtypes."""
    again = converted(stored, model, label)
    return all(equal(again[name], tensor.to(again[name].dtype)) for name, tensor in weights.items())


def _renamed(given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Return each file name's name in the module, where no tensor is more than renamed; else None."""
    places = {identity(tensor): name for name, tensor in reversed(list(state.items()))}
    names = {}
    for name, tensor in given.items():
        own = places.get(identity(tensor))
        if own is None and name in state and equal(state[name], tensor):
            own = name
        if own is None:
            return None
        names[name] = own
    return names


def _reverted(weights: Mapping[str, Tensor], model: FolderModel, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as save_pretrained writes them; names that it leaves out are those of tied tensors."""
    module = model()
    library = transformers_for(model.label)
    with tempfile.TemporaryDirectory() as folder, quiet(library):
        module.save_pretrained(  # type: ignore[operator]  # a model of transformers
            folder, state_dict={name: tensor.clone() for name, tensor in weights.items()}, max_shard_size="1000GB"
        )
        found = files.load(Path(folder) / "model.safetensors")
    twins = tied_names(module)
    for name in given:
        if name not in found and name in twins:
            found[name] = weights[name]
    return found
