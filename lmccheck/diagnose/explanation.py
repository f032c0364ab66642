"""Why a line is too high or a merge too bad, as plain data: which layers, which units, which samples, which parent.

It explains a verdict and feeds none. Everything is measured from a base: the better end of a line, the better parent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.diagnose.delta import Budget, SpentError, minimal
from lmccheck.diagnose.samples import hurt, hurt_most, sample_facts
from lmccheck.evaluate.layerwise import Exchange
from lmccheck.symmetry.slots import UnitGroup

RESERVED = 4  # one in so many evaluations is kept for the units


@dataclass(frozen=True)
class Lost:
    """What a network loses sample by sample: ``heights``, (n,), make up the value; ``worse_than``, (n,) by parent.

    ``which``, (n,) bool: the samples that are judged, None for all of ``data``.
    """

    data: Data
    heights: Tensor = field(repr=False)
    worse_than: Mapping[str, Tensor] = field(repr=False)
    which: Tensor | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return which samples carry half of it, and which parent answers best where it is lost; JSON-able."""
        hurts = hurt(self.worse_than, self.which)
        return {
            "samples": sample_facts(self.heights, self.data, self.which),
            "parent": hurt_most(hurts),
            "hurt": hurts,
        }


@dataclass(frozen=True)
class Case:
    """What is to be explained: the ``exchange`` of a base, called ``base``, with what is too bad.

    ``bound``: the limit of what the exchange measures, None where nothing exceeds it. ``groups``: the network's units.
    ``suspected``: by layer, how much it is thought to matter. ``budget``: of which the exchange takes.
    """

    exchange: Exchange
    base: str
    bound: float | None
    groups: Sequence[UnitGroup]
    suspected: Mapping[str, float]
    budget: Budget

    def breaks(self, layers: Collection[str]) -> bool:
        """Whether the base with these layers moved exceeds the limit; what is no number does."""
        return self.bound is not None and not self.exchange.with_layers(layers) <= self.bound


def explanation(case: Case, lost: Lost) -> dict[str, Any]:
    """Return what carries a value; JSON-able.

    ``minimal_layers``: layers that, moved alone, all else as in the base (``from``), exceed the limit, and of which no
    one may be left out; empty where that is not known. ``breaking_layers``: the fewest known that exceed it.
    ``layers``: how many differ. ``groups``: by unit group (where there is none, by layer), of the value the ``share``
    that goes when it is put back alone, and the share that is there when it is moved ``alone``; ``groups_of``: how many
    there are. ``samples``, ``parent``, ``hurt``: see ``samples.py``. ``evaluations``: of the data, in all; ``budget``:
    the same in words, and what it did not suffice for.
    """
    few, proven = _layers(case)
    groups = _groups(case, few)
    return {
        "from": case.base,
        "groups": groups,
        "groups_of": len(case.groups) or len(case.exchange.layers),
        "minimal_layers": list(few) if proven else [],
        "breaking_layers": list(few),
        "layers": len(case.exchange.layers),
        **lost.facts(),
        "evaluations": case.budget.used,
        "budget": _spent(case, few, proven, groups),
    }


def _layers(case: Case) -> tuple[tuple[str, ...], bool]:
    """Return few layers that alone exceed the limit, and whether none of them may be left out; none where none do."""
    layers = list(case.exchange.layers)
    reserved = min(2 * len(case.groups), case.budget.left // RESERVED)
    case.budget.most -= reserved
    try:
        if not layers or not case.breaks(layers) or case.breaks(()):
            return (), False
        few, proven = minimal(_suspected(case, layers), case.breaks)
        return tuple(layer for layer in layers if layer in few), proven
    except SpentError:
        return (), False
    finally:
        case.budget.most += reserved


def _suspected(case: Case, layers: Sequence[str]) -> list[str]:
    """Return layers in the order in which they are suspected: by what is known of them, then by how far they moved."""
    exchange = case.exchange

    def rank(layer: str) -> tuple[float, float]:
        known = case.suspected.get(layer, 0.0)
        return -(math.inf if math.isnan(known) else known), -exchange.distance(layer)

    return sorted(layers, key=rank)


def _groups(case: Case, few: Sequence[str]) -> list[dict[str, Any]]:
    """Return what each unit group carries, the most first; those of the layers that matter are measured first."""
    exchange, found = case.exchange, []
    if not exchange.layers:  # the worst is an end
        return []
    names = {name for layer in few for name in exchange.layers[layer]}
    layers = sorted(_suspected(case, list(exchange.layers)), key=lambda layer: layer not in few)
    groups = sorted(case.groups, key=lambda group: not any(slot.tensor in names for slot in group.slots))
    try:
        base, value = exchange.with_layers(()), exchange.with_layers(exchange.layers)
        for one in groups or layers:
            if isinstance(one, UnitGroup):
                kind, without, alone = "units", exchange.without_units(one), exchange.with_units(one)
            else:
                kind, without, alone = "layer", exchange.without_layers([one]), exchange.with_layers([one])
            share, lonely = _share(value, without, value), _share(alone, base, value)
            name = one if isinstance(one, str) else one.name
            found.append({"name": name, "kind": kind, "share": share, "alone": lonely})
    except SpentError:
        pass
    return sorted(found, key=lambda group: -group["share"])


def _share(high: float, low: float, value: float) -> float:
    """Return (high − low) / value; of what is no number, or infinite, all goes or nothing."""
    if not (math.isfinite(high) and math.isfinite(low) and math.isfinite(value) and value):
        return float(math.isfinite(low) and not math.isfinite(high))
    return (high - low) / value


def _spent(case: Case, few: Sequence[str], proven: bool, groups: Sequence[Any]) -> str:
    """Say how many evaluations were made of how many, and what they did not suffice for."""
    short = []
    if few and not proven:
        short.append("whether fewer layers are enough")
    if (total := len(case.groups) or len(case.exchange.layers)) > len(groups):
        short.append(f"{total - len(groups)} of {total} groups")
    text = f"{case.budget.used} of at most {case.budget.most} evaluations of the data"
    return f"{text}; not measured: {' and '.join(short)}" if short else text
