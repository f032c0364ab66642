"""A checkpoint as a folder that another program can load: itself where it is one, or written with its home's config."""

from __future__ import annotations

import os
from pathlib import Path

from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.folders import CONFIG
from lmccheck.store.streamed import save_streamed
from lmccheck.store.writing import FORMAT, copy_companions


def places(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the folders that a checkpoint's files lie in: of an adapter on its base that is two."""
    return frozenset(os.path.realpath(file.parent) for file in checkpoint.files)


def as_folder(checkpoint: Checkpoint, target: Path, what: str) -> Path:
    """Return a folder that holds the checkpoint with its config; written to ``target`` unless it is one already.

    Raises CheckpointError, beginning with ``what``, where no config belongs to it.
    """
    home = checkpoint.home
    if home is None or not (home / CONFIG).is_file():
        raise CheckpointError(
            f"{what}: {checkpoint.label} has no {CONFIG} beside it, expected a folder as save_pretrained writes it; "
            "mend: name the folder"
        )
    if checkpoint.path is not None and places(checkpoint) == {os.path.realpath(home)}:
        return home
    target.mkdir(parents=True, exist_ok=True)
    copy_companions(home, target, config=checkpoint.config)
    save_streamed(target / "model.safetensors", checkpoint.tensors, checkpoint.get, {**checkpoint.metadata, **FORMAT})
    return target
