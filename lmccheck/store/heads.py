"""A checkpoint of a network whose head is tied to its embedding, as one in which it is a tensor of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.documents import read_document
from lmccheck.store.folders import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

TIED = "tie_word_embeddings"


def with_own_heads(checkpoint: Checkpoint, heads: Mapping[str, str]) -> Checkpoint:
    """Return a checkpoint that has every head, the embedding's numbers for one that it lacks; nothing is read.

    ``heads``: the head's name in the network and the embedding's. Names of files may have a prefix that those of the
    network lack, or the other way round. What is laid out like it says in its config.json that heads are not tied.
    Raises CheckpointError where a file holds neither, or an adapter
    changes one of the two alone.
    """
    if not heads:
        return checkpoint
    copies = {}
    for head, embedding in heads.items():
        prefix = _prefix(checkpoint, head)
        if prefix is not None:  # a head is there; it may be the embedding's only name
            if _prefix(checkpoint, embedding) is None:
                copies[prefix + embedding] = prefix + head
            continue
        source = _named(checkpoint, embedding)
        if source in checkpoint.apart:
            raise CheckpointError(
                f"{checkpoint.label}: untie = true: the adapter changes tensor {source!r}, and the head that is tied "
                "to it stays what it was; expected both as they are; mend: merge the adapter into an untied base"
            )
        copies[source.removesuffix(embedding) + head if source.endswith(embedding) else head] = source
    config = _config(checkpoint)
    if not copies:
        return replace(checkpoint, config=config)

    def read() -> dict[str, Tensor]:
        state = checkpoint.read()
        return {**state, **{name: state[source].clone() for name, source in copies.items()}}

    def own(name: str) -> str:
        return copies.get(name, name)

    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **{name: checkpoint.tensors[source] for name, source in copies.items()}},
        read=read,
        get=lambda name: checkpoint.get(own(name)),
        same=lambda one, other: own(one) == own(other) or checkpoint.same(own(one), own(other)),
        lies={
            **checkpoint.lies,
            **{name: checkpoint.lies[source] for name, source in copies.items() if source in checkpoint.lies},
        },
        config=config,
    )


def _prefix(checkpoint: Checkpoint, name: str) -> str | None:
    """Return what a file has before a name, None where it lacks the name."""
    found = [held for held in checkpoint.tensors if held == name or held.endswith(f".{name}")]
    return found[0].removesuffix(name) if len(found) == 1 else None


def _named(checkpoint: Checkpoint, name: str) -> str:
    """Return a network's tensor's name in the file; raise CheckpointError where it has none, or two that may be it."""
    found = [
        held for held in checkpoint.tensors if held == name or held.endswith(f".{name}") or name.endswith(f".{held}")
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"{checkpoint.label}: untie = true: got {len(found)} tensors that may be {name!r}, expected one, which the "
            "head is tied to; mend: name a checkpoint of this network"
        )
    return found[0]


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of the config beside a checkpoint that say that heads are tensors of their own."""
    if checkpoint.home is None or not (checkpoint.home / CONFIG).is_file():
        return {}
    said = read_document(checkpoint.home / CONFIG)[2]
    inside = {
        key: {**value, TIED: False} for key, value in said.items() if isinstance(value, dict) and TIED in value
    }  # of the text model inside of one of images and text
    return {TIED: False, **inside}
