"""The network that checkpoints are of: what lies beside them is compared before it is built."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lmccheck.beside.required import read_with, require_same_beside
from lmccheck.network.hub.names import model_for
from lmccheck.network.network import Network, load_network
from lmccheck.store.checkpoint import Checkpoint


def network_of(
    opened: Mapping[str, Checkpoint], model: Any, accept: Iterable[str], *, meant: Collection[str] = (), **given: Any
) -> Network:
    """Return the network of checkpoints, which are named as messages call them; ``given`` is as to ``load_network``.

    ``model``: None for that of the first one's folder. ``accept``: the differences beside the weights that a user
    accepts, ``meant`` those that checkpoints of their kind have.
    """
    told = read_with(given["base"], data=given.get("data"), calibration=given.get("calibration"))
    accepted = require_same_beside(opened, accept, built=model is None, meant=meant, data=told)
    return load_network(model=model_for(model, next(iter(opened.values()))), accepted=accepted, **given)
