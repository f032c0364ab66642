"""Inputs given by name, in the order in which a network takes its arguments: what is traced has no names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.collate import UNCOUNTED
from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import input_tensors
from lmccheck.errors import SourceError, nearest
from lmccheck.network.text_fit import fitted
from lmccheck.shown import some

DECODER = ("decoder_input_ids", "decoder_inputs_embeds")


def in_order(data: Data, module: nn.Module) -> Data:
    """Return data whose batches hold positional inputs; those that can only be given by name stay as they are.

    Raises SourceError, beginning with the data's origin, for a name that the network does not know.
    """
    data = fitted(data, module)
    batches = tuple(replace(batch, inputs=_for_decoder(batch, module)) for batch in data.batches)
    if not any(isinstance(batch.inputs, Mapping) for batch in batches):
        return data
    taken = inspect.signature(module.forward).parameters
    ordered = (replace(batch, inputs=_ordered(batch.inputs, taken, data.origin)) for batch in batches)
    return replace(data, batches=tuple(ordered))


def _for_decoder(batch: Batch, module: nn.Module) -> Any:
    """Return a batch's inputs, with what a decoder of transformers reads: the targets, each a place later.

    Left out, its model makes them of the labels, which it is not given here, or (BART) of the encoder's tokens.
    """
    config, inputs, labels = getattr(module, "config", None), batch.inputs, batch.targets
    start = getattr(config, "decoder_start_token_id", None)
    of_tokens = labels.ndim == 2 and not labels.is_floating_point() and labels.dtype != torch.bool
    if not getattr(config, "is_encoder_decoder", False) or start is None or not of_tokens:
        return inputs
    if isinstance(inputs, Tensor):
        inputs = {str(getattr(module, "main_input_name", "input_ids")): inputs}
    if not isinstance(inputs, Mapping) or any(inputs.get(name) is not None for name in DECODER):
        return inputs
    shift = getattr(module, "prepare_decoder_input_ids_from_labels", None)
    pad = getattr(config, "pad_token_id", None)
    if shift is not None:
        return {**inputs, DECODER[0]: shift(labels=labels.long())}
    before = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return {**inputs, DECODER[0]: before.masked_fill(before == UNCOUNTED, 0 if pad is None else pad)}


def _ordered(inputs: Any, taken: Mapping[str, inspect.Parameter], origin: str) -> Any:
    if not isinstance(inputs, Mapping):
        return inputs
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    named = {n: p for n, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name, value in inputs.items():
        if name not in named and not (anything and (value is None or input_tensors(value))):
            raise SourceError(
                f"{origin}: input {name!r} is unknown to the model{nearest(name, named)}; its forward takes "
                f"{some(named, 8)}; mend: leave it out"
            )
    order = [name for name, parameter in named.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if not inputs or not set(inputs) <= set(order):
        return inputs
    upto = order[: max(map(order.index, inputs)) + 1]
    if any(name not in inputs and named[name].default is inspect.Parameter.empty for name in upto):
        return inputs  # what is missing, the model itself says
    return tuple(inputs.get(name, named[name].default) for name in upto)
