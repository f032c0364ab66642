"""What lies in a folder of a saved model, by its names: weights in safetensors, an index, an adapter, pickles."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.shown import some
from lmccheck.store.header import PICKLES, SAFETENSORS, refused_pickle

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
STEMS = ("model", "diffusion_pytorch_model")  # what transformers and timm, and what diffusers call weights
WEIGHTS = tuple(f"{stem}{SAFETENSORS}" for stem in STEMS)
INDEX = ".index.json"
PIPELINE = "model_index.json"  # of diffusers: each of its models lies in a folder of its own
MADE_HERE = "lmccheck.json"  # beside a merge that was written where it passed
SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")
EXPECTED = "the folder of a saved model"
SAVED = "name the folder that save_pretrained wrote, or the file itself"


def weights_in(folder: Path) -> Path:
    """Return the file that holds the weights of a folder, or the index of those that do.

    Raises CheckpointError where there is none, where there are several, and where an adapter lies beside.
    """
    names = names_in(folder)
    adapter = adapters_among(names)
    found = [name for stem in WEIGHTS for name in (stem, f"{stem}{INDEX}") if name in names]
    if adapter:
        beside = f", beside {found[0]}, a whole model" if found else ""
        mend = "give each a folder of its own" if found else "name its base, too: { base = …, adapter = … }"
        _refuse(folder, f"{adapter[0]}, an adapter{beside}", mend)
    if not found:
        _refuse_without_weights(folder, names)
    stems = {name.removesuffix(INDEX) for name in found}
    if len(stems) > 1:
        _refuse(folder, f"the weights of two models, {' and '.join(sorted(stems))}", "name the file that is meant")
    if not found[-1].endswith(INDEX):  # which decides by itself whether a single file may lie beside it
        shards = shards_of(Path(found[0]).stem, names)
        if shards:
            _refuse(
                folder,
                f"{found[0]} and {some(shards)}, shards that no index names",
                f"remove what is stale, or restore {found[0]}{INDEX}",
            )
    return folder / found[-1]


def adapter_in(path: Path) -> Path:
    """Return the file of an adapter that is named by it, or by its folder; its config lies beside.

    Raises CheckpointError where no adapter lies there.
    """
    if path.name == ADAPTER:
        return path
    names = names_in(path)
    if ADAPTER in names and ADAPTER_CONFIG in names:
        return path / ADAPTER
    pickle = next((name for name in sorted(names) if name.startswith("adapter_model.")), ADAPTER)
    if ADAPTER not in names and pickle != ADAPTER:
        raise CheckpointError(refused_pickle(path, f"an adapter that is a pickle, {pickle}", repr(pickle), ADAPTER))
    missing = ADAPTER if ADAPTER not in names else ADAPTER_CONFIG
    raise CheckpointError(
        f"{shown_path(path)}: got a folder without {missing}, expected the folder of an adapter; mend: name the folder "
        "that PEFT's save_pretrained wrote"
    )


def adapters_among(names: Collection[str]) -> list[str]:
    """Return the names by which an adapter is known."""
    return sorted(name for name in names if name == ADAPTER_CONFIG or name.startswith("adapter_model."))


def names_in(folder: Path) -> set[str]:
    """Return the names of all that lies in a folder. Raises CheckpointError."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(
            f"{shown_path(folder)}: cannot be read: {error.strerror or error}; mend: check the path and its permissions"
        ) from None


def shards_of(stem: str, names: Collection[str]) -> list[str]:
    """Return the names that are those of shards of ``stem``."""
    return sorted(name for name in names if (shard := SHARD.fullmatch(name)) and shard[1] == stem)


def _refuse_without_weights(folder: Path, names: Collection[str]) -> NoReturn:
    weights = sorted(name for name in names if name.endswith(SAFETENSORS))
    pickles = sorted(name for name in names if Path(name.removesuffix(INDEX)).suffix.lower() in PICKLES)
    if weights and all(SHARD.fullmatch(name) for name in weights):
        stem = SHARD.sub(r"\1", weights[0])
        _refuse(folder, f"{some(weights)} without {stem}{SAFETENSORS}{INDEX}", "save or download it whole")
    if weights:
        _refuse(folder, f"{some(weights)}, and neither {' nor '.join(WEIGHTS)}", "name the file itself")
    if pickles:
        pickle = next((name for name in pickles if name.startswith("pytorch_model")), pickles[0])
        raise CheckpointError(refused_pickle(folder, f"a folder of pickles, {pickle}", repr(pickle)))
    if PIPELINE in names:
        mend = 'name the folder of the model that was merged (unet/, transformer/), with model = "module:callable"'
        _refuse(folder, f"a pipeline of diffusers, {PIPELINE}", mend)
    if not names:
        _refuse(folder, "an empty folder", SAVED)
    _refuse(folder, f"a folder without {' or '.join(WEIGHTS)}", SAVED)


def _refuse(folder: Path, got: str, mend: str) -> NoReturn:
    raise CheckpointError(f"{shown_path(folder)}: got {got}, expected {EXPECTED}; mend: {mend}")
