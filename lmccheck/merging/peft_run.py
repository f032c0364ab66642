"""peft run on a base and adapters: on the model that its library makes of a folder, or on layers built by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.data.extras import extra
from lmccheck.data.imports import say
from lmccheck.errors import SourceError
from lmccheck.merging.contract import Making
from lmccheck.store.folders import CONFIG
from lmccheck.store.header import read_header
from lmccheck.store.streamed import save_streamed
from lmccheck.store.writing import copy_companions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from lmccheck.store.checkpoint import Checkpoint

WHAT = "recipe adapters"
PREFIX = "base_model.model."
NAME = "lmccheck_merged"  # of the combined adapter


def combined(
    making: Making, base: Checkpoint, folders: Mapping[str, Path], weights: Mapping[str, float]
) -> tuple[Path, str]:
    """Write the base with the combined adapter merged into it; return where it lies, and peft's version.

    Raises SourceError with what peft says where it refuses.
    """
    import torch

    with _quiet():
        peft = extra("peft", "lora", WHAT)
    whole = base.home is not None and (base.home / CONFIG).is_file()
    module = _from_library(base.home) if whole and base.home is not None else _layers(base, folders)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(making.seed)
            merged = _merged(peft, module, folders, weights, making.settings)
    except Exception as error:
        raise SourceError(
            f"{WHAT}: peft: {' '.join(say(error).split())}; mend: another `how`, or other adapters"
        ) from error
    target = making.target / "merged"
    target.mkdir(parents=True, exist_ok=True)
    if whole and base.home is not None:
        with _quiet():
            merged.save_pretrained(str(target), safe_serialization=True)
        copy_companions(base.home, target, but=tuple(path.name for path in target.iterdir()))
        return target, version("peft")
    changed = dict(merged.state_dict())
    get = lambda name: _given(changed, base, name)  # noqa: E731  # one line that is passed on
    return save_streamed(target / "merged.safetensors", base.tensors, get), version("peft")


def _given(changed: Mapping[str, Tensor], base: Checkpoint, name: str) -> Tensor:
    return changed[name] if name in changed else base.get(name)


def _merged(
    peft: Any, module: Any, folders: Mapping[str, Path], weights: Mapping[str, float], settings: Mapping[str, Any]
) -> Any:
    first, *others = folders
    model = peft.PeftModel.from_pretrained(module, str(folders[first]), adapter_name=first, is_trainable=False)
    for name in others:
        model.load_adapter(str(folders[name]), adapter_name=name, is_trainable=False)
    options = {
        key: settings[key] for key in ("density", "svd_rank", "majority_sign_method") if settings[key] is not None
    }
    model.add_weighted_adapter(
        list(folders), [weights[name] for name in folders], NAME, combination_type=settings["how"], **options
    )
    model.set_adapter(NAME)
    return model.merge_and_unload(adapter_names=[NAME])


def _from_library(home: Path) -> Any:
    """Return the model that transformers makes of a folder, in its stored dtypes."""
    from lmccheck.network.hub.consumed import consumed

    return consumed(home)


def _layers(base: Checkpoint, folders: Mapping[str, Path]) -> nn.Module:
    """Return the layers that adapters change, under their names: linear ones and embeddings, with the base's weights.

    Raises SourceError for a layer of another kind, or one that the base has not.
    """
    import torch
    from torch import nn

    root = nn.Module()
    for name, embedding in _targets(folders).items():
        weight = f"{name}.weight"
        if weight not in base.tensors or len(base.tensors[weight].shape) != 2:
            got = base.tensors[weight].shape if weight in base.tensors else "no such tensor"
            raise SourceError(
                f"{WHAT}: an adapter changes {name!r}, in {base.label} its weight has {got}, expected a matrix; mend: "
                "give the base as a folder with its config"
            )
        value = base.get(weight)
        layer: nn.Module
        if embedding:
            layer = nn.Embedding(value.shape[0], value.shape[1], dtype=value.dtype)
        else:
            bias = f"{name}.bias" in base.tensors
            layer = nn.Linear(value.shape[1], value.shape[0], bias=bias, dtype=value.dtype)
            if bias:
                layer.bias = nn.Parameter(base.get(f"{name}.bias"), requires_grad=False)
        layer.weight = torch.nn.Parameter(value, requires_grad=False)
        _put(root, name, layer)
    return root


def _targets(folders: Mapping[str, Path]) -> dict[str, bool]:
    """Return the names of the layers that adapters change, and whether each is an embedding."""
    found: dict[str, bool] = {}
    for folder in folders.values():
        for key in read_header(folder / "adapter_model.safetensors").tensors:
            for part in (".lora_A", ".lora_embedding_A"):
                if part in key:
                    found.setdefault(key.removeprefix(PREFIX).partition(part)[0], "embedding" in part)
    return dict(sorted(found.items()))


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    from torch import nn

    *parents, last = name.split(".")
    for part in parents:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = dict(root.named_children())[part]
    root.add_module(last, layer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and progress bars of a run out of the terminal."""
    import io
    from contextlib import redirect_stderr

    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
