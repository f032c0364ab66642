"""Changing the weights of single units: drop, write, copy, switch, clear. Every function returns a new state.

Tensors that do not change are shared with the given state; none is ever changed in place.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import cast

import torch
from torch import Tensor

from lmccheck.store.tensors import along
from lmccheck.symmetry.structure import Block, State, Structure, Units

Scale = float | Mapping[str, float]  # what outgoing weights are multiplied by: all of them, or each group's
Places = Mapping[str, tuple[Tensor, Tensor]]  # per group: units in the source, and the units they become


class Multiplied(Mapping[str, Tensor]):
    """``state`` with every unit's outgoing weights times its factor, (units,) per group; rows stay.

    A tensor is made when it is asked for: networks of all levels, with a copy of the weights each, would be as many
    times as large as the model.
    """

    def __init__(self, structure: Structure, state: State, factors: Mapping[str, Tensor]) -> None:
        self._state = state
        several = lines(structure, {group: factor[None] for group, factor in factors.items()})
        self._lines = {name: (line[0], structure.columns[name][0].dim) for name, line in several.items()}

    def __getitem__(self, name: str) -> Tensor:
        value = self._state[name]
        if name not in self._lines:
            return value
        line, dim = self._lines[name]
        return value * along(line.to(value), dim, value.ndim)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def instead(state: State, several: dict[str, Tensor]) -> ChainMap[str, Tensor]:
    """Return ``state`` with ``several`` tensors instead of its own; what is put into it is put into these."""
    return ChainMap(several, cast("MutableMapping[str, Tensor]", state))  # it writes to the first alone


def multiplied(structure: Structure, state: State, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with every unit's outgoing weights times its factor, (units,) per group; rows stay."""
    return dict(Multiplied(structure, state, factors))


def lines(structure: Structure, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what factors, (k, units) per group, make of the inputs of each layer: (k, inputs) per weight."""
    result: dict[str, Tensor] = {}
    shapes = structure.shapes
    for name, blocks in structure.columns.items():
        for block in blocks:
            if block.group in factors:
                given = factors[block.group]
                line = result.setdefault(name, torch.ones(len(given), shapes[name][block.dim], dtype=given.dtype))
                line[:, block.positions.reshape(-1)] *= given.repeat_interleave(block.positions.shape[1], 1)
    return result


def keep_factors(structure: Structure, keep: Units, factor: Scale = 1.0) -> dict[str, Tensor]:
    """Return ``factor`` (of each group, or one) for kept units and 0 for the others, per group of ``keep``."""
    result = {}
    for group, units in keep.items():
        result[group] = torch.zeros(structure.sizes[group], dtype=torch.float64)
        result[group][units] = factor[group] if isinstance(factor, Mapping) else factor
    return result


def written(
    structure: Structure,
    target: State,
    source: State,
    rows: Places,
    columns: Places,
    *,
    head: bool = False,
    origin: Structure | None = None,
) -> dict[str, Tensor]:
    """Return ``target`` with units' rows taken from ``source``, their columns moved and all other columns zero.

    ``rows``: which units are written, from where in ``source``. ``columns``: where the units they read are; groups
    that are not in it are read as in the source. With ``head`` the head is written in the same way, bias included.
    ``origin`` is the structure of ``source`` where it has other widths.
    """
    result = dict(target)
    origin = origin or structure
    for name, blocks in structure.rows.items():
        value = None
        for block, given in zip(blocks, origin.rows[name], strict=True):
            if block.group not in rows:
                continue
            units, places = rows[block.group]
            taken = source[name].index_select(block.dim, given.of(units))
            taken = _moved(structure, origin, name, taken, target[name], columns)
            value = result[name].clone() if value is None else value
            value.index_copy_(block.dim, block.of(places), taken)
        if value is not None:
            result[name] = value
    if head:
        for name in structure.head:
            result[name] = _moved(structure, origin, name, source[name], target[name], columns)
    return result


def _moved(
    structure: Structure, origin: Structure, name: str, taken: Tensor, target: Tensor, columns: Places
) -> Tensor:
    """Return rows with the columns of moved groups at their new places, zero elsewhere in these groups."""
    blocks = [(b, g) for b, g in _paired(structure, origin, name) if b.group in columns]
    if not blocks:
        return taken
    dim = blocks[0][0].dim
    if structure is origin:
        fresh = taken
        for block, _ in blocks:
            fresh = fresh.index_fill(dim, block.positions.reshape(-1), 0.0)
    else:  # of another width: the lines are built anew
        fresh = taken.new_zeros([target.shape[dim] if d == dim else n for d, n in enumerate(taken.shape)])
    for block, given in blocks:
        units, places = columns[block.group]
        fresh = fresh.index_copy(dim, block.of(places), taken.index_select(dim, given.of(units)))
    return fresh


def _paired(structure: Structure, origin: Structure, name: str) -> list[tuple[Block, Block]]:
    return list(zip(structure.columns.get(name, ()), origin.columns.get(name, ()), strict=True))


def copied(structure: Structure, state: State, places: Places) -> dict[str, Tensor]:
    """Return ``state`` with the row of each unit copied, literally, to another unit of its group."""
    return written(structure, state, state, places, {})


def switched(structure: Structure, state: State, places: Places) -> dict[str, Tensor]:
    """Return ``state`` with the outgoing weights of units moved to others, whose own are overwritten."""
    result = dict(state)
    for name, blocks in structure.columns.items():
        for block in blocks:
            if block.group in places and len(places[block.group][0]):
                units, others = places[block.group]
                value = result[name]
                moved = value.index_select(block.dim, block.of(units))
                emptied = value.index_fill(block.dim, block.of(units), 0.0)
                result[name] = emptied.index_copy(block.dim, block.of(others), moved)
    return result


def cleared(structure: Structure, state: State, units: Units) -> dict[str, Tensor]:
    """Return ``state`` with rows set to zero; running variances to one, so that nothing is divided by zero.

    Matrices that no layer reads as they are (directions of a weight normalisation) stay: their zeros may be divided by,
    and nothing reads these units anyway.
    """
    result = dict(state)
    plain = {layer.weight for layer in structure.layers}
    for name, blocks in structure.rows.items():
        for block in blocks:
            if name not in plain and len(structure.shapes[name]) > 1:
                continue
            if block.group in units and len(units[block.group]) and state[name].is_floating_point():
                empty = 1.0 if name in structure.variances else 0.0
                result[name] = result[name].index_fill(block.dim, block.of(units[block.group]), empty)
    return result


def changed(names: Iterable[str], first: State, second: State) -> list[str]:
    """Return which of some tensors differ between two states."""
    return [n for n in names if first[n] is not second[n] and not torch.equal(first[n], second[n])]
