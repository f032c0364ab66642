"""Endpoints of one network, two or more, with what is needed to measure them: a ModelSet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmccheck.errors import CheckpointError
from lmccheck.modules.precision import own_settings
from lmccheck.network.endpoint import Endpoint, require_same_tensors
from lmccheck.network.hub.names import under_module_names
from lmccheck.network.loaded import as_it_loads
from lmccheck.network.loading import network_of
from lmccheck.network.network import Network
from lmccheck.network.pair import Given, ModelPair
from lmccheck.network.resident import Endpoints, Named
from lmccheck.network.view import View
from lmccheck.shown import one_line, some
from lmccheck.store.checkpoint import Checkpoint, open_checkpoint
from lmccheck.store.names import expanded, is_pattern, model_names


@one_line(lambda models: f"{models.name!r}, {len(models.names)} models: {some(models.names)}; {models.network.run_on}")
@dataclass(frozen=True, eq=False)
class ModelSet(View):
    """Endpoints of one network, each with a name. Made by ``load_set``."""

    name: str
    names: tuple[str, ...]
    endpoints: Endpoints
    kind = "set"

    @property
    def network(self) -> Network:
        """The network of all of them."""
        return self.endpoints.network

    @property
    def named_endpoints(self) -> Mapping[str, Endpoint]:
        """What is compared, by name; large models are read as they are asked for."""
        return Named(self.names, self.endpoints)

    @property
    def thetas(self) -> tuple[dict[str, Tensor], ...]:
        """The weights of each, as ``load_pair`` gives them."""
        return tuple(end.theta for end in self.endpoints)

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """The checkpoint of each, by name."""
        return dict(zip(self.names, self.endpoints.checkpoints, strict=True))

    def pair(self, i: int, j: int) -> ModelPair:
        """Return models i and j as a and b of a pair; what the network is like is known to both."""
        return ModelPair(f"{self.names[i]}-{self.names[j]}", self.endpoints[i], self.endpoints[j])


@own_settings()
def load_set(
    models: Sequence[Given] | str,
    *,
    name: str | None = None,
    sha256: Sequence[str] = (),
    matched: Sequence[str] = (),
    accept: Sequence[str] = (),
    **given: Any,
) -> ModelSet:
    """Load and check two checkpoints of one network or more; the network and the data are loaded once.

    ``models``: .safetensors files, patterns of such (``"round-12/*.safetensors"``, in natural order) or state dicts;
    ``sha256`` pins them, in their order; ``matched``: what a report says of patterns that were replaced already; all
    else as in ``load_pair``. Raises as ``load_pair`` does, naming the model.
    """
    base = given.get("base")
    folder = Path(base) if base is not None else Path.cwd()
    if (
        not isinstance(models, Sequence)
        or isinstance(models, bytes)
        or (isinstance(models, str) and not is_pattern(models, folder))
    ):
        raise CheckpointError(
            f"models: got {type(models).__name__}, expected a list of .safetensors paths or state dicts, or a pattern"
        )
    models, found = expanded(models, folder)
    if len(models) < 2:
        got = "; ".join(found) or f"{len(models)} model(s)"
        raise CheckpointError(f"models: got {got}, expected at least two; mend: give the others, too")
    names = model_names(models)
    if len(sha256) not in (0, len(models)):
        raise CheckpointError(
            f"sha256: got {len(sha256)} hash(es), expected one for each of the {len(models)} models; mend: give them "
            "in their order"
        )
    pins = dict(enumerate(sha256))
    opened = [open_checkpoint(model, folder, f"model {k}", pins.get(k)) for k, model in enumerate(models)]
    named = {f"model {k}": checkpoint for k, checkpoint in enumerate(opened)}
    title = name or "-".join(names)
    network = network_of(named, given.pop("model", None), accept, name=title, **{**given, "base": folder})
    network.remarks.update(dict.fromkeys((*matched, *found)))
    opened = [under_module_names(checkpoint, network) for checkpoint in opened]
    for other in opened[1:]:
        require_same_tensors(opened[0], other, network.module)
    ends = Endpoints(network, opened)
    ends.check()
    return ModelSet(title, names, ends.of(as_it_loads(ends, ends.dtype)))
