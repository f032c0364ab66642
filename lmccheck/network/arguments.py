"""Inputs given by name, in the order in which a network takes its arguments: what is traced has no names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lmccheck.errors import SourceError, nearest
from lmccheck.network.text_fit import fitted
from lmccheck.shown import some
from lmccheck.store.data import Data
from lmccheck.store.trees import input_tensors


def in_order(data: Data, module: nn.Module) -> Data:
    """Return data whose batches hold positional inputs; those that can only be given by name stay as they are.

    Raises SourceError, beginning with the data's origin, for a name that the network does not know.
    """
    data = fitted(data, module)
    if not any(isinstance(batch.inputs, Mapping) for batch in data.batches):
        return data
    taken = inspect.signature(module.forward).parameters
    batches = tuple(replace(batch, inputs=_ordered(batch.inputs, taken, data.origin)) for batch in data.batches)
    return replace(data, batches=batches)


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
