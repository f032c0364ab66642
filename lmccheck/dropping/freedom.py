"""What θ_i may change of θ: the outgoing weights of the dropped levels' units and what a refit adjusts beside them.

Definition 1 of Kuditipudi et al. (2019) zeroes and scales outgoing weights; the condition of Nguyen et al. (2021), and
the construction of every path, let the layers that read the kept units be any others.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lmccheck.dropping.choose_units import Keep, unit_counts
from lmccheck.dropping.dropped import Dropped
from lmccheck.store.tensors import equal, mismatch
from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.levels import reading_nodes
from lmccheck.symmetry.sites import Layer, count_readers, stored_name
from lmccheck.symmetry.structure import State, Structure
from lmccheck.symmetry.trace import op_name


def groups_from(structure: Structure, level: int) -> list[str]:
    """Return the groups whose units θ_i drops, in order."""
    return [group for groups in structure.levels[level:] for group in groups]


def readers_of(structure: Structure, groups: Collection[str]) -> list[Layer]:
    """Return the layers that read units of some groups."""
    return [
        layer
        for layer in structure.layers
        if any(block.group in groups for block in structure.columns.get(layer.weight, ()))
    ]


def statistics_behind(structure: Structure, groups: Collection[str]) -> set[str]:
    """Return the running statistics of units that the outgoing weights of some groups reach: they change."""
    at = reading_nodes(structure.trace)
    read = [name for name, blocks in structure.columns.items() if any(block.group in groups for block in blocks)]
    behind = {node.name for name in read for node in at.get(name, ())}
    found: set[str | None] = set()
    for node in structure.trace.graph.nodes:
        if behind.isdisjoint(source.name for source in node.all_input_nodes):
            continue
        behind.add(node.name)
        if facts_of(node.target).batch_norm or "instance_norm" in op_name(node.target):
            found |= {stored_name(argument, structure.trace) for argument in node.args[3:5]}
    return {name for name in found if name is not None and name in structure.rows}


def movable(structure: Structure, dropped: Dropped) -> dict[str, Tensor]:
    """Return, per tensor that θ_i may change, a mask of its shape: True where it may.

    These are the weights of the layers that read a dropped level; their biases, but for those of dropped units; the
    statistics of BatchNorms behind them. Gains, shifts and whatever lies before stay as they are.
    """
    layers = readers_of(structure, dropped.keep)
    read = count_readers(structure.trace)
    weights = {n for n, blocks in structure.columns.items() if any(block.group in dropped.keep for block in blocks)}
    names = weights | statistics_behind(structure, dropped.keep)
    names |= {layer.norm.mean for layer in layers if layer.norm is not None}
    free = {name: torch.ones(structure.shapes[name], dtype=torch.bool) for name in names}
    biases = [layer.bias for layer in layers if layer.bias is not None]
    for bias in {bias for bias in biases if read.get(bias) == biases.count(bias)}:
        free[bias] = torch.ones(structure.shapes[bias], dtype=torch.bool)
        for block in structure.rows.get(bias, ()):
            if block.group in dropped.keep:
                gone = structure.others(block.group, dropped.keep[block.group])
                free[bias].index_fill_(block.dim, block.of(gone), False)
    return free


def unlike(theta: State, weights: State) -> str | None:
    """Return what sets a state apart from any with the tensors of ``theta``, as one clause: a name, a shape, a dtype.

    Numbers that are not those of ``theta`` must be finite.
    """
    return mismatch(weights, theta, "none of the network", "missing")


def misplaced(structure: Structure, dropped: Dropped, keep: Keep) -> str | None:
    """Return what is wrong with the choice of units that θ_i reads, as one clause; None where nothing is."""
    if dropped.level not in range(len(structure.levels)):
        return f"level {dropped.level} is none of the network's {len(structure.levels)}"
    groups = groups_from(structure, dropped.level)
    if set(groups) != set(dropped.keep):
        return f"units are kept in {sorted(dropped.keep)}, expected {sorted(groups)}"
    allowed = unit_counts(structure, keep)
    for group, units in dropped.keep.items():
        size = structure.sizes[group]
        if units.dtype != torch.int64 or units.ndim != 1 or len(torch.unique(units)) != len(units):
            return f"the kept units of {group} are no list of different units (int64)"
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < size:
            return f"a kept unit of {group} is none of its {size}"
        if len(units) > allowed[group]:
            return f"{len(units)} of {size} units are kept in {group}, expected at most {allowed[group]}"
    return None


def dropped_violation(structure: Structure, theta: State, dropped: Dropped, keep: Keep) -> str | None:
    """Return what keeps a network from being a θ_i of ``theta``, as one clause; None where it is one.

    At most ⌊keep·h⌋ units of every group of its levels are read, nothing but what is ``movable`` differs, and names,
    shapes and dtypes are those of θ.
    """
    wrong = misplaced(structure, dropped, keep) or unlike(theta, dropped.weights)
    if wrong is not None:
        return wrong
    below = next((n for n in structure.variances if bool((dropped.weights[n] < 0).any())), None)
    if below is not None:
        return f"running variance {below!r} is negative"
    for group, units in dropped.keep.items():
        gone = structure.others(group, units)
        for name, blocks in structure.columns.items():
            for block in blocks:
                if block.group == group and dropped.weights[name].index_select(block.dim, block.of(gone)).any():
                    return f"tensor {name!r} reads units of {group} that are not kept"
    free = movable(structure, dropped)
    for name, own in theta.items():
        its = dropped.weights[name]
        if its is own or equal(its, own):
            continue
        strange = (its != own) & ~free[name] if name in free else its != own
        if bool(strange.any()):
            return _where(structure, name, strange)
    return None


def _where(structure: Structure, name: str, strange: Tensor) -> str:
    """Say where a tensor differs that may not: of which units, if of any."""
    at = strange.nonzero()[0].tolist()
    for block in structure.rows.get(name, ()):
        if at[block.dim] in block.positions:
            return f"incoming weights of {block.group} in tensor {name!r} are not those of the network"
    return f"tensor {name!r} is not that of the network, and dropping units does not change it"
