"""Networks made of two: some layers of the one, or the units of a group, all else of the other; what each loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from torch import Tensor, nn

from lmccheck.evaluate.box import differing_layers
from lmccheck.modules.stored import tied_names
from lmccheck.symmetry.slots import UnitGroup

MOST = 11  # layers that are moved one at a time; of more, as many parts of the network


@dataclass
class Exchange:
    """The networks between a ``base`` and a ``moved`` one, in which each layer is that of the one or of the other.

    Both are weights of one ``module``, on its device and in the working dtype. ``measure(weights, label)`` says by how
    much such a network is too bad; each is asked once. ``reestimates``: statistics of BatchNorm are taken afresh, and
    belong to no layer. A layer is what one module holds itself, see ``box.layers_by_name``.
    """

    base: Mapping[str, Tensor] = field(repr=False)
    moved: Mapping[str, Tensor] = field(repr=False)
    module: nn.Module = field(repr=False)
    measure: Callable[[Mapping[str, Tensor], str], float] = field(repr=False)
    reestimates: bool = False
    _known: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False)

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """The names of each layer in which the two differ, in the order of the state dict."""
        return differing_layers(self.base, self.moved, self.module, reestimates=self.reestimates)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The layers, or where there are more than MOST of them as many runs of neighbours, by what they are called."""
        layers = list(self.layers)
        count = min(MOST, len(layers))
        edges = [round(k * len(layers) / count) for k in range(count + 1)] if count else []
        runs = [tuple(layers[first:last]) for first, last in pairwise(edges)]
        return {run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}": run for run in runs}

    def with_layers(self, layers: Collection[str]) -> float:
        """Return how bad the base is with these layers moved."""
        chosen = set(layers)
        key = tuple(layer for layer in self.layers if layer in chosen)
        if key not in self._known:
            names = {name for layer in key for name in self.layers[layer]}
            weights = {name: self.moved[name] if name in names else tensor for name, tensor in self.base.items()}
            self._known[key] = self.measure(weights, f"{', '.join(key) or 'no layer'} moved alone")
        return self._known[key]

    def with_units(self, group: UnitGroup) -> float:
        """Return how bad the base is with the units of a group moved, all of their slots."""
        return self.measure(
            _with_slots(self.base, self.moved, group, self.module), f"units of {group.name} moved alone"
        )

    def without_units(self, group: UnitGroup) -> float:
        """Return how bad the moved network is with the units of a group put back."""
        weights = _with_slots(self.moved, self.base, group, self.module)
        return self.measure(weights, f"units of {group.name} put back")

    def without_layers(self, layers: Collection[str]) -> float:
        """Return how bad the moved network is with these layers put back."""
        return self.with_layers([layer for layer in self.layers if layer not in layers])

    def distance(self, layer: str) -> float:
        """Return ‖moved − base‖/‖base‖ of a layer, infinite where the base is zero."""
        floating = [name for name in self.layers[layer] if self.base[name].is_floating_point()]
        apart = sum(float((self.moved[n].double() - self.base[n].double()).square().sum()) for n in floating)
        own = sum(float(self.base[n].double().square().sum()) for n in floating)
        return math.sqrt(apart / own) if own else math.inf

    def knows(self, value: float, *, moved: bool) -> None:
        """Take what is known already: how bad the base is, or the moved network."""
        self._known[tuple(self.layers) if moved else ()] = value


def layer_costs(exchange: Exchange) -> dict[str, float]:
    """Return by layer L(base with that layer moved) − L(base); where there are more than MOST, by run of neighbours.

    Source: Adilova et al. 2024, layer-wise linear mode connectivity.
    """
    own = exchange.with_layers(())
    return {label: exchange.with_layers(layers) - own for label, layers in exchange.parts.items()}


def _with_slots(
    start: Mapping[str, Tensor], source: Mapping[str, Tensor], group: UnitGroup, module: nn.Module
) -> dict[str, Tensor]:
    """Return weights with what the units of a group own taken from others; tied tensors stay one tensor."""
    tied = tied_names(module)
    changed: dict[str, Tensor] = {}
    for slot in group.slots:
        name = tied[slot.tensor]
        own = source[slot.tensor]
        places = slot.positions().reshape(-1).to(own.device)
        whole = changed.get(name, start[slot.tensor])
        changed[name] = whole.index_copy(slot.dim, places, own.index_select(slot.dim, places))
    return {name: changed.get(tied[name], tensor) for name, tensor in start.items()}
