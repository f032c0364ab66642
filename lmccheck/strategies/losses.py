"""The losses of what strategies draw: each measured once, so that a search may ask again and is told the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmccheck.dropping.edit import multiplied
from lmccheck.errors import LmcError, nearest
from lmccheck.evaluate.box import Box
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.line import chord
from lmccheck.evaluate.means import RunningMean
from lmccheck.evaluate.normals import key_of, normals
from lmccheck.explain import called
from lmccheck.modules.stored import tied_names
from lmccheck.network.endpoint import Endpoint
from lmccheck.network.running import at_home
from lmccheck.strategies.values import DroppedUnits, PermutedUnits, Rows, WeightNoise

TITLES = {"set": "set", "merge": "merge", "model": "model", "pair": "pair", "widths": "pair"}
DROPS = "dropping units needs"


def title(on: Any) -> str:
    """Return what a message calls what a strategy is bound to: "pair a-b"."""
    return f"{TITLES[on.kind]} {on.name}"


class Measurements:
    """What was measured of one pair, single model, set or merge, by what was asked; kept as long as it is."""

    def __init__(self, on: Any) -> None:
        self.on = on
        self.ends: Mapping[str, Endpoint] = on.named_endpoints
        many = {"set": "endpoints", "merge": "ends"}.get(on.kind)
        first = next(iter(self.ends.values()))
        if many is not None:
            self.evaluator = Evaluator(on.network, first.theta, dtype=getattr(on, many).dtype)
        else:
            self.evaluator = Evaluator(on.network, *(end.theta for end in self.ends.values()))
        self._boxes: dict[str, Box] = {}
        self._own: dict[str, Measured] = {}
        self._losses: dict[tuple[object, ...], float] = {}

    def end(self, name: str | None) -> str:
        """Return an endpoint's name, the first where none is said. Raises LmcError for an unknown one."""
        if name is None:
            return next(iter(self.ends))
        if name not in self.ends:
            known = list(self.ends)
            raise LmcError(f"{title(self.on)}: end = {name!r}{nearest(str(name), known)}; expected one of {known}")
        return name

    def own(self, name: str) -> Measured:
        """Return an original endpoint's losses per sample, with its own statistics."""
        if name not in self._own:
            end = self.ends[name]
            self._own[name] = self.evaluator.endpoint(end.theta, called(name, "endpoint "), end.checkpoint.label)
        return self._own[name]

    def box(self, align: str) -> Box:
        """Return the box of a pair, b aligned as is said."""
        if align not in self._boxes:
            target = None
            if align != "none":
                from lmccheck.alignment.api import align as align_pair

                target = align_pair(self.on, align).weights
            self._boxes[align] = Box(self.on, target, evaluator=self.evaluator)
        return self._boxes[align]

    def loss(self, drawn: Any, end: str, align: str) -> float:
        """Return the mean loss of what was drawn."""
        if isinstance(drawn, Rows):
            return float(self.own(end).losses[torch.tensor(drawn.rows)].mean())
        if isinstance(drawn, (float, int)):
            box = self.box(align)
            return box.loss(dict.fromkeys(box.layers, drawn))
        if isinstance(drawn, Mapping) and self.on.kind == "pair" and not _is_mixture(drawn, self.ends):
            return self.box(align).loss(drawn)
        key = (tuple(drawn.items()) if isinstance(drawn, Mapping) else drawn, end)
        if key not in self._losses:
            weights, mixed = self._weights(drawn, end)
            given = self.evaluator.weights(weights)
            self._losses[key] = self.evaluator.measure(given, reestimate=mixed, label=f"{drawn!r}"[:80]).loss
        return self._losses[key]

    def reference(self, drawn: Any, end: str) -> float:
        """Return the loss that ``excess`` is above."""
        if isinstance(drawn, (float, int)):
            return chord(drawn, *(self.own(name).loss for name in self.ends))
        if isinstance(drawn, Mapping):
            return max(self.own(name).loss for name in self.ends)
        return self.own(end).loss

    def _weights(self, drawn: Any, end: str) -> tuple[Mapping[str, Tensor], bool]:
        """Return the weights of what was drawn, and whether they are mixed of several models."""
        if isinstance(drawn, Mapping):
            mean = RunningMean()
            for name, of in self.ends.items():
                mean.add(of.theta, drawn.get(name, 0.0))
            return mean.at(self.evaluator.dtype), True
        theta = self.ends[end].theta
        if isinstance(drawn, PermutedUnits):
            spec = self.on.network.spec
            return spec.apply(theta, members(spec, drawn)), False
        if isinstance(drawn, DroppedUnits):
            return self._dropped(theta, drawn), False
        module = self.on.network.module
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return noisy(theta, drawn, tied_names(module), parameters), False

    def _dropped(self, theta: Mapping[str, Tensor], drawn: DroppedUnits) -> Mapping[str, Tensor]:
        structure = self.on.network.droppable(f"{title(self.on)}: {DROPS}")
        factors = {}
        for group, units in drawn.units.items():
            if group not in structure.groups:
                near = nearest(group, structure.groups)
                raise LmcError(
                    f"{title(self.on)}: unit group {group!r}{near}; expected one of {list(structure.groups)}"
                )
            size = structure.sizes[group]
            if len(set(units)) >= size or not all(0 <= unit < size for unit in units):
                raise LmcError(
                    f"{title(self.on)}: units {units} of {group!r}; expected some of 0 to {size - 1}, not all"
                )
            factors[group] = torch.full((size,), size / (size - len(set(units))), dtype=torch.float64)
            factors[group][list(units)] = 0.0
        return structure.stored(multiplied(structure, structure.canonical(theta), factors)) if factors else theta


def _is_mixture(drawn: Mapping[str, float], ends: Mapping[str, Any]) -> bool:
    """Whether a dictionary gives weights to models; else it gives coefficients to layers."""
    return bool(drawn) and set(drawn) <= set(ends) and math.isclose(sum(drawn.values()), 1.0)


def members(spec: Any, drawn: PermutedUnits) -> dict[str, Tensor]:
    """Return the permutation of units that was drawn, a member of the spec's group, checked to be one."""
    permutation: dict[str, Tensor] = spec.random(drawn.seed) if drawn.seed else spec.identity()
    for group, *place in drawn.swaps:
        if group not in permutation:
            near = nearest(str(group), permutation)
            raise LmcError(f"permutation: unit group {group!r}{near}; expected one of {list(permutation)}")
        row = permutation[group] if len(place) == 2 else permutation[group][place[0]]
        i, j = place[-2:]
        row[[i, j]] = row[[j, i]]
    spec.check(permutation)
    return permutation


def noisy(
    theta: Mapping[str, Tensor], drawn: WeightNoise, tied: Mapping[str, str], parameters: set[str]
) -> dict[str, Tensor]:
    """Return weights with noise in each floating parameter, ‖noise‖ = size·‖w‖; tied names get the same."""
    done: dict[str, Tensor] = {}
    for name, value in theta.items():
        own = tied[name]
        if own in done:
            continue
        done[own] = value
        if drawn.size and own in parameters and value.is_floating_point() and value.numel():
            wide = value.double()
            z = normals(key_of("weights", drawn.seed, own), torch.tensor([0]), value.numel()).reshape(value.shape)
            done[own] = wide + drawn.size * wide.norm() / z.norm() * z
    return {name: done[tied[name]] for name in theta}


KINDS = "a number (a point of the line), a dictionary by layer or by model, or what a strategy drew"


@at_home
def loss(on: Any, drawn: Any, *, end: str | None = None, align: str = "none") -> float:
    """Return the mean loss, on the evaluation data, of what a strategy drew of a pair, a model, a set or a merge.

    ``drawn``: a t of the line from a to b; coefficients by layer, or weights by model; permuted or dropped units or
    noise, put into the endpoint called ``end`` (the first by default); rows, over which that endpoint's loss is
    averaged. ``align``: how b is aligned before anything is interpolated, by a method of ``lmccheck.align``. BatchNorm
    statistics are taken afresh wherever weights of several models are mixed. What was measured is remembered as long
    as ``on`` lives: the same value is never measured twice, and never comes out differently. Raises LmcError.
    """
    measurements = _measurements(on)
    return measurements.loss(_known(on, drawn), measurements.end(end), align)


@at_home
def height(on: Any, drawn: Any, *, end: str | None = None, align: str = "none") -> float:
    """Return ``loss(on, drawn)`` above what it is compared with, infinite where it is no number.

    That is the chord for a t, the worst endpoint for coefficients by layer and weights by model, and else the
    endpoint itself. Raises LmcError for rows, which are compared with nothing.
    """
    if isinstance(drawn, Rows):
        raise LmcError(f"{title(on)}: rows have no loss to be above; mend: compare loss(…, rows) of two endpoints")
    measurements = _measurements(on)
    name = measurements.end(end)
    found = measurements.loss(_known(on, drawn), name, align) - measurements.reference(drawn, name)
    return found if found == found else math.inf


def _measurements(on: Any) -> Measurements:
    if not hasattr(on, "once") or getattr(on, "kind", None) not in TITLES or on.kind == "widths":
        got = "a pair of two widths" if getattr(on, "kind", None) == "widths" else type(on).__name__
        raise LmcError(f"loss: got {got}, expected a pair, a single model, a set or a merge")
    found: Measurements = on.once(Measurements)
    return found


def _known(on: Any, drawn: Any) -> Any:
    """Return what was drawn where it is something that ``on`` has a loss for."""
    number = isinstance(drawn, (int, float)) and not isinstance(drawn, bool)
    if not number and not isinstance(drawn, (Mapping, PermutedUnits, DroppedUnits, Rows, WeightNoise)):
        raise LmcError(f"{title(on)}: got {type(drawn).__name__}, expected {KINDS}")
    if number and on.kind != "pair":
        raise LmcError(f"{title(on)}: t = {drawn!r}, but there is no one line in it; mend: name a pair")
    if number and not 0 <= drawn <= 1:
        raise LmcError(f"{title(on)}: t = {drawn!r}; expected a number from 0 to 1")
    if isinstance(drawn, Mapping) and on.kind != "pair" and not _is_mixture(drawn, on.named_endpoints):
        named = list(on.named_endpoints)
        raise LmcError(f"{title(on)}: got {dict(drawn)!r}, expected weights that sum to 1, by some of {named}")
    return drawn
