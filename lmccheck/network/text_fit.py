"""Tokens that a module can take: of its vocabulary, no longer than its positions, padded where that changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lmccheck.data.collate import MASK, TOKENS, UNCOUNTED
from lmccheck.data.load import Batch, Data
from lmccheck.errors import SourceError
from lmccheck.modules.padding import ignores_padding

KINDS = ("text", "labels")  # kinds of data whose inputs are tokens that lmccheck made
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "block_size")


def fitted(data: Data, module: nn.Module) -> Data:
    """Return text as a module takes it; other data as they are.

    Tokens go by the name ``input_ids``, or are the first argument of a forward that knows no such name; a forward that
    takes no ``attention_mask`` gets none, where it is seen that padding does not change what it says of tokens. Raises
    SourceError, naming the row, for a row that is too long, a token that the model does not know, or padding that the
    model would take for text.
    """
    if data.kind not in KINDS or not all(isinstance(batch.inputs, Mapping) for batch in data.batches):
        return data
    _require_positions(data, module)
    _require_vocabulary(data, module)
    data = replace(data, notes=(*data.notes, *_sees_all(data, module)))
    taken = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()) or {TOKENS, MASK} <= set(taken):
        return data
    name = TOKENS if TOKENS in taken else next(iter(taken), TOKENS)
    batches = tuple(
        Batch({name if key == TOKENS else key: part for key, part in batch.inputs.items()}, batch.targets)
        for batch in data.batches
    )
    if MASK not in taken:
        _require_padding_ignored(data, module)
        batches = tuple(Batch({name: batch.inputs[name]}, batch.targets) for batch in batches)
    return replace(data, batches=batches)


def _sees_all(data: Data, module: nn.Module) -> list[str]:
    """Say that a masked language model is asked for tokens that it is given."""
    if data.kind != "text" or not type(module).__name__.endswith("ForMaskedLM"):
        return []
    alike = ((b.inputs[TOKENS] == b.targets) | (b.targets == UNCOUNTED) for b in data.batches)
    if not all(bool(each.all()) for each in alike):
        return []
    return [f"{type(module).__name__} is given every token that it is asked for; mend: mask = 0.15 in the data"]


def _require_positions(data: Data, module: nn.Module) -> None:
    name, longest = positions(module)
    if longest is None:
        return
    lengths = torch.cat([batch.inputs[MASK].sum(1) for batch in data.batches])
    over = (lengths > longest).nonzero().flatten().tolist()
    if over:
        raise SourceError(
            f"{_place(data, over[0])}: {int(lengths[over[0]])} tokens, the model takes {longest} ({name})"
            f"{_others(over)}; mend: max_length = {longest}, which cuts rows, or shorter rows"
        )


def positions(module: nn.Module) -> tuple[str, int | None]:
    """Return how many tokens a module's configuration says it takes, and where it says so; None where it does not."""
    config: Any = getattr(module, "config", None)
    own = getattr(config, "get_text_config", lambda: config)()
    for name in LENGTHS:
        said = getattr(own, name, None)
        if isinstance(said, int) and said > 0:
            first = (
                m.padding_idx for m in module.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == said
            )
            skipped = next((k + 1 for k in first if k is not None), 0)  # positions begin behind that of padding
            return name, said - skipped
    return "", None


def _require_vocabulary(data: Data, module: nn.Module) -> None:
    known = max((m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)), default=None)
    if known is None:
        return
    highest = torch.cat([(batch.inputs[TOKENS] * batch.inputs[MASK]).amax(1) for batch in data.batches])
    over = (highest >= known).nonzero().flatten().tolist()
    if over:
        raise SourceError(
            f"{_place(data, over[0])}: token {int(highest[over[0]])}, the model knows {known} (0 to {known - 1})"
            f"{_others(over)}; mend: the tokenizer that the model was trained with"
        )


def _require_padding_ignored(data: Data, module: nn.Module) -> None:
    """Raise SourceError where a row by itself gives other outputs than the same row with padding behind it."""
    for batch in data.batches:
        lengths = batch.inputs[MASK].sum(1)
        short = int(lengths.argmin())
        length = int(lengths[short])
        if length == batch.inputs[TOKENS].shape[1]:
            continue
        row = batch.inputs[TOKENS][short : short + 1]
        if not ignores_padding(module, row, length, data.origin):
            raise SourceError(
                f"{_place(data, 0)}: rows are of different lengths, and the model's forward takes no {MASK}, so that "
                "padding changes what it says; mend: a forward(input_ids, attention_mask), or rows of one length"
            )
        return


def _others(wrong: Sequence[int]) -> str:
    """Say how many other rows have the same mistake."""
    return f", and {len(wrong) - 1} more such row{'' if len(wrong) == 2 else 's'}" if len(wrong) > 1 else ""


def _place(data: Data, sample: int) -> str:
    return (
        f"{data.origin.partition(' ')[0]} {data.places[sample]}" if data.places else f"{data.origin}, sample {sample}"
    )
