"""The structure of a traced network, found in its unit groups, its layers and its graph, with what stands in its way.

What no path of the theory covers is written down and not raised: dropping needs less than paths do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.levels import levels_by_graph, levels_by_weights, nodes_after, reading_nodes
from lmccheck.symmetry.single_units import single_units
from lmccheck.symmetry.sites import Layer, count_readers, stored_name
from lmccheck.symmetry.slots import Frozen, Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.structure import Block, Blocks, Structure
from lmccheck.symmetry.trace import Trace, op_name


def build_structure(spec: PermutationSpec, trace: Trace, layers: Sequence[Layer]) -> Structure:
    """Return the structure of a traced network, whatever of it can be dropped.

    ``obstacles`` name the op or tensor, in a clause each, where the theory of paths does not hold: units combined other
    than by outgoing weights (LayerNorm, GroupNorm, RMSNorm), outgoing weights read by no linear layer or convolution,
    tensors that are read twice, grouped convolutions, products of units.
    """
    placed = _placed(spec, trace, layers)
    sizes, rows, columns = placed.sizes, placed.rows, placed.columns
    head, headless = find_head(trace, layers)
    readers = count_readers(trace)
    obstacles = [*placed.obstacles, *_reuse({*rows, *columns, *head}, readers), *_overlap(rows), *_overlap(columns)]
    by_weight, grouped = _by_weight(columns, layers, readers)
    obstacles += [f"tensor {name!r} is a grouped convolution; the theory needs 1" for name in grouped]
    if clash := set(head) & set(rows):
        obstacles.append(f"tensor {min(clash)!r} is both a hidden layer's and the head's")
    uncovered = _uncovered(spec, trace, layers, placed.made, head)
    levels = levels_by_weights(list(sizes), rows, columns, layers, trace)
    if placed.whole or uncovered:  # a stream that is whole is no level, and joins all that it goes through
        levels = levels_by_graph(list(sizes), rows, columns, trace)
    usable = not clash and all(readers.get(name) == 1 for name in head)
    return Structure(
        tuple(group for level in levels for group in level),
        sizes,
        levels,
        {name: tuple(blocks) for name, blocks in rows.items()},
        {name: tuple(blocks) for name, blocks in columns.items()},
        head if usable else (),
        headless if usable else f"its last layer's {head[0]!r} is another layer's too",
        uncovered,
        frozenset(name for name in trace.tied.values() if not readers.get(name)),
        frozenset(_variances(trace)),
        tuple(layers),
        spec.shapes,
        trace,
        whole={**placed.whole, **uncovered},
        reread=_reread(columns, readers),
        by_weight=by_weight,
        obstacles=tuple(obstacles),
    )


def along_weights(structure: Structure) -> Structure:
    """Return a structure without obstacles with its levels in the order of the weights, as paths go along them."""
    if not structure.whole:
        return structure
    rows, columns = structure.rows, structure.columns
    levels = levels_by_weights(list(structure.sizes), rows, columns, structure.layers, structure.trace)
    return replace(structure, levels=levels, groups=tuple(group for level in levels for group in level))


@dataclass
class _Placed:
    """Unit groups over tensors: sizes and blocks of those that can be dropped, why others cannot.

    ``made`` are the blocks along rows of all of them.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[Block]] = field(default_factory=dict)
    columns: dict[str, list[Block]] = field(default_factory=dict)
    made: dict[str, list[Block]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)

    def add(self, group: UnitGroup, by_weight: Mapping[str, Layer]) -> None:
        """Place a group, or write down why its units are left whole."""
        sides = [(slot, _makes(slot, by_weight)) for slot in group.slots]
        for slot in (slot for slot, makes in sides if makes):
            self.made.setdefault(slot.tensor, []).append(Block(group.name, slot.dim, slot.positions()[0]))
        if group.bound:
            self.whole[group.name] = group.bound
            self.obstacles.append(
                f"units of group {group.name!r} cannot be dropped one by one: {group.bound}; the theory does not hold "
                "across them"
            )
            return
        alone = [slot for slot, makes in sides if not makes and slot.tensor not in by_weight]
        if alone:
            self.obstacles.append(
                f"tensor {alone[0].tensor!r} holds outgoing weights of group {group.name!r} and is read by no linear "
                "layer or convolution of its own"
            )
        for tensor in {slot.tensor for slot in alone}:
            dims = {slot.dim for slot in alone if slot.tensor == tensor}
            if len(dims | {block.dim for block in self.columns.get(tensor, ())}) > 1:
                self.whole[group.name] = f"tensor {tensor!r} reads units along two of its dimensions"
                return
        self.sizes[group.name] = group.size
        for slot, makes in sides:
            (self.rows if makes else self.columns).setdefault(slot.tensor, []).append(
                Block(group.name, slot.dim, slot.positions()[0])
            )


def _placed(spec: PermutationSpec, trace: Trace, layers: Sequence[Layer]) -> _Placed:
    """Return where the units of all groups lie."""
    by_weight = {layer.weight: layer for layer in layers}
    placed = _Placed()
    for group in spec.groups:
        if not group.within:  # else its units lie inside the units of another group, which own all of their numbers
            placed.add(group, by_weight)
    for unit in single_units(trace, layers):
        placed.sizes[unit.name] = 1
        for side, places in ((placed.rows, unit.rows), (placed.columns, unit.columns)):
            for tensor, dim, count in places:
                side.setdefault(tensor, []).append(Block(unit.name, dim, torch.arange(count).reshape(1, -1)))
        for tensor, dim, count in unit.rows:
            placed.made.setdefault(tensor, []).append(Block(unit.name, dim, torch.arange(count).reshape(1, -1)))
    if not placed.sizes:
        why = next((item.reason for item in spec.frozen if "network's" not in item.reason), "")
        placed.obstacles.append(f"the network has no hidden units that may be dropped{f' ({why})' if why else ''}")
    return placed


def _makes(slot: Slot, by_weight: Mapping[str, Layer]) -> bool:
    """Whether a slot makes units. A layer's weight is told by its layer: a unit may be on both its sides."""
    layer = by_weight.get(slot.tensor)
    return slot.role != "consumer" if layer is None else slot.dim == layer.out


def _reuse(names: Collection[str], readers: Mapping[str, int]) -> list[str]:
    twice = min((name for name in names if readers.get(name, 0) > 1), default=None)
    if twice is None:
        return []
    return [
        f"tensor {twice!r} is read {readers[twice]} times (tied, shared or recurrent); the theory needs each weight in "
        "one place"
    ]


def _overlap(blocks: Blocks) -> list[str]:
    found = []
    for tensor, several in blocks.items():
        if len({block.dim for block in several}) > 1:
            found.append(f"tensor {tensor!r} has units along two of its dimensions")
            continue
        taken = torch.cat([block.positions.reshape(-1) for block in several])
        if len(taken) != len(torch.unique(taken)):
            groups = sorted({block.group for block in several})
            found.append(
                f"numbers of tensor {tensor!r} belong to several units at once (groups {groups}): products of units; "
                "the theory does not hold there"
            )
    return found


def _by_weight(
    columns: Blocks, layers: Sequence[Layer], readers: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """Return the tensors whose columns are not the inputs of one layer alone, with these columns' dimension.

    With them those among them that are kernels of grouped convolutions.
    """
    of: dict[str, Layer] = {layer.weight: layer for layer in layers}
    grouped = [name for name in columns if name in of and of[name].groups > 1]
    alone = {name for name in columns if name in of and readers.get(name) == 1} - {*grouped}
    return {name: blocks[0].dim for name, blocks in columns.items() if name not in alone}, grouped


def _reread(columns: Blocks, readers: Mapping[str, int]) -> dict[str, str]:
    """Return the groups whose outgoing weights are read more than once, each with the first such tensor."""
    found: dict[str, str] = {}
    for name, blocks in columns.items():
        for block in blocks if readers.get(name, 0) > 1 else ():
            found.setdefault(block.group, name)
    return found


def _uncovered(
    spec: PermutationSpec, trace: Trace, layers: Sequence[Layer], rows: Blocks, head: Sequence[str]
) -> dict[str, str]:
    """Return the learned matrices and kernels some outputs of which are neither units nor the network's, and why."""
    out = {layer.weight: layer.out for layer in layers}
    frozen: dict[str, list[Frozen]] = {}
    for item in spec.frozen:
        frozen.setdefault(item.tensor, []).append(item)
    found = {}
    at = reading_nodes(trace)
    learned = {node for name, shape in spec.shapes.items() if len(shape) > 1 for node in at.get(name, ())}
    for node in trace.graph.nodes:
        name = stored_name(node, trace)
        if name is None or name in head or not node.users or trace.placeholders[node.name].kind != "parameter":
            continue
        shape = spec.shapes.get(name, ())
        made = rows.get(name, ())
        if len(shape) < 2 or (made and sum(block.positions.numel() for block in made) == shape[made[0].dim]):
            continue
        reasons = [f.reason for f in frozen.get(name, ()) if name not in out or f.dim == out[name]]
        own = set(at.get(name, ()))
        if (nodes_after(own) - own).isdisjoint(learned):
            continue  # no learned matrix reads what comes of it: it is the network's answer, and no hidden layer
        found[name] = "; ".join(dict.fromkeys(reasons)) or "a layer of one unit among ops that are not followed"
    return found


def find_head(trace: Trace, layers: Sequence[Layer]) -> tuple[tuple[str, ...], str]:
    """Return the weight and bias of the layer whose output, up to linear ops, is the network's only output.

    Where there is none, return nothing and why.
    """
    by_node = {layer.node: layer for layer in layers}
    output = next(node for node in trace.graph.nodes if node.op == "output")
    values = [node for node in output.all_input_nodes if node.op != "placeholder"]
    if len(values) != 1:
        return (), f"the network returns {len(values)} values; mend: wrap it to return the logits alone"
    node: fx.Node = values[0]
    while node.name not in by_node:
        facts = facts_of(node.target)
        scaled = facts.scales and len(node.args) > 1 and isinstance(node.args[1], int | float)
        if not (facts.linear or scaled) or not isinstance(node.args[0], fx.Node):
            return (), (
                f"the network's output comes from {op_name(node.target)}, expected a linear layer or convolution, so "
                "that the loss is convex in its weights; mend: end forward() with that layer"
            )
        node = node.args[0]
    layer = by_node[node.name]
    return ((layer.weight,) if layer.bias is None else (layer.weight, layer.bias)), ""


def _variances(trace: Trace) -> set[str]:
    """Return the running variances that batch norms read."""
    norms = [node for node in trace.graph.nodes if facts_of(node.target).batch_norm and len(node.args) > 4]
    return {name for node in norms if (name := stored_name(node.args[4], trace)) is not None}
