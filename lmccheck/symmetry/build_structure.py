"""The structure of a traced network, found in its unit groups, its layers and its graph, or refused with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.single_units import single_units
from lmccheck.symmetry.sites import Layer, count_readers, stored_name
from lmccheck.symmetry.slots import Frozen, Slot
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.structure import Block, Structure
from lmccheck.symmetry.trace import Trace, op_name

Blocks = Mapping[str, Sequence[Block]]  # per tensor


def build_structure(spec: PermutationSpec, trace: Trace, layers: Sequence[Layer]) -> Structure:
    """Return the structure of a traced network, also where its output comes from no last layer.

    Raises UnsupportedArchitecture, naming the op or tensor, where the theory does not hold: units combined other than
    by outgoing weights (LayerNorm, GroupNorm, RMSNorm), outgoing weights read by no linear layer or convolution,
    tensors that are read twice, grouped convolutions, products of units.
    """
    sizes, rows, columns = _placed(spec, trace, layers)
    head, headless = find_head(trace, layers)
    readers = count_readers(trace)
    _refuse_reuse({*rows, *columns, *head}, readers)
    _refuse_overlap(rows)
    _refuse_overlap(columns)
    grouped = next((layer.weight for layer in layers if layer.groups > 1 and layer.weight in columns), None)
    if grouped is not None:
        raise UnsupportedArchitecture(f"tensor {grouped!r} is a grouped convolution; the theory needs 1")
    if clash := set(head) & set(rows):
        raise UnsupportedArchitecture(f"tensor {min(clash)!r} is both a hidden layer's and the head's")
    levels = _levels(list(sizes), rows, columns, layers, trace)
    return Structure(
        tuple(group for level in levels for group in level),
        sizes,
        levels,
        {name: tuple(blocks) for name, blocks in rows.items()},
        {name: tuple(blocks) for name, blocks in columns.items()},
        head,
        headless,
        _uncovered(spec, trace, layers, rows, head),
        frozenset(name for name in trace.tied.values() if not readers.get(name)),
        frozenset(_variances(trace)),
        tuple(layers),
        spec.shapes,
        trace,
    )


def _placed(
    spec: PermutationSpec, trace: Trace, layers: Sequence[Layer]
) -> tuple[dict[str, int], dict[str, list[Block]], dict[str, list[Block]]]:
    """Return how many units the groups have, and their blocks along rows and along columns."""
    by_weight = {layer.weight: layer for layer in layers}
    sizes: dict[str, int] = {}
    rows: dict[str, list[Block]] = {}
    columns: dict[str, list[Block]] = {}
    for group in spec.groups:
        if group.within:
            continue  # its units lie inside the units of another group, which own all of their numbers
        if group.bound:
            raise UnsupportedArchitecture(
                f"units of group {group.name!r} cannot be dropped one by one: {group.bound}; the theory "
                "does not hold across them; mend: ask for linear_connectivity, which does not need it"
            )
        sizes[group.name] = group.size
        for slot in group.slots:
            block = Block(group.name, slot.dim, slot.positions()[0])
            if _makes(slot, block, by_weight, rows):
                rows.setdefault(slot.tensor, []).append(block)
            else:
                columns.setdefault(slot.tensor, []).append(block)
    for unit in single_units(trace, layers):
        sizes[unit.name] = 1
        for side, places in ((rows, unit.rows), (columns, unit.columns)):
            for tensor, dim, count in places:
                side.setdefault(tensor, []).append(Block(unit.name, dim, torch.arange(count).reshape(1, -1)))
    if not sizes:
        why = next((item.reason for item in spec.frozen if "network's" not in item.reason), "")
        raise UnsupportedArchitecture(
            f"the network has no hidden units that may be dropped{f' ({why})' if why else ''}"
        )
    return sizes, rows, columns


def _makes(slot: Slot, block: Block, by_weight: Mapping[str, Layer], rows: Blocks) -> bool:
    """Whether a slot makes units. A layer's weight is told by its layer: a unit may be on both its sides."""
    layer = by_weight.get(slot.tensor)
    if layer is not None:
        return slot.dim == layer.out
    if slot.role == "consumer":
        raise UnsupportedArchitecture(
            f"tensor {slot.tensor!r} holds outgoing weights of group {block.group!r} and is read by no "
            "linear layer or convolution of its own"
        )
    if any(other.dim != block.dim for other in rows.get(slot.tensor, ())):
        raise UnsupportedArchitecture(f"tensor {slot.tensor!r} has units along two of its dimensions")
    return True


def _refuse_reuse(names: Iterable[str], readers: Mapping[str, int]) -> None:
    twice = sorted(name for name in names if readers.get(name, 0) > 1)
    if twice:
        raise UnsupportedArchitecture(
            f"tensor {twice[0]!r} is read {readers[twice[0]]} times (tied, shared or recurrent); the theory "
            "needs each weight in one place"
        )


def _refuse_overlap(blocks: Blocks) -> None:
    for tensor, several in blocks.items():
        taken = torch.cat([block.positions.reshape(-1) for block in several])
        if len(taken) != len(torch.unique(taken)):
            groups = sorted({block.group for block in several})
            raise UnsupportedArchitecture(
                f"numbers of tensor {tensor!r} belong to several units at once (groups {groups}): products "
                "of units; the theory does not hold there"
            )


def _uncovered(
    spec: PermutationSpec, trace: Trace, layers: Sequence[Layer], rows: Blocks, head: Sequence[str]
) -> dict[str, str]:
    """Return the learned matrices and kernels some outputs of which are neither units nor the network's, and why."""
    out = {layer.weight: layer.out for layer in layers}
    frozen: dict[str, list[Frozen]] = {}
    for item in spec.frozen:
        frozen.setdefault(item.tensor, []).append(item)
    found = {}
    for node in trace.graph.nodes:
        name = stored_name(node, trace)
        if name is None or name in head or not node.users or trace.placeholders[node.name].kind != "parameter":
            continue
        shape = spec.shapes.get(name, ())
        if len(shape) < 2 or (name in rows and _covers(rows[name], shape)):
            continue
        reasons = [f.reason for f in frozen.get(name, ()) if name not in out or f.dim == out[name]]
        if not any("network's output" in reason for reason in reasons):
            found[name] = "; ".join(dict.fromkeys(reasons)) or "a layer of one unit among ops that are not followed"
    return found


def _covers(blocks: Sequence[Block], shape: tuple[int, ...]) -> bool:
    return sum(block.positions.numel() for block in blocks) == shape[blocks[0].dim]


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


def _levels(
    groups: Sequence[str],
    rows: Blocks,
    columns: Blocks,
    layers: Sequence[Layer],
    trace: Trace,
) -> tuple[tuple[str, ...], ...]:
    """Return groups in an order in which none feeds an earlier one, those on a circle together."""
    feeds: dict[str, set[str]] = {group: set() for group in groups}
    for tensor, blocks in columns.items():
        for reader in rows.get(tensor, ()):
            for block in blocks:
                feeds[block.group].add(reader.group)
    reach = {group: _reachable(group, feeds) for group in groups}
    together: list[tuple[str, ...]] = []
    placed: set[str] = set()
    for group in groups:
        if group not in placed:
            circle = tuple(o for o in groups if o == group or (o in reach[group] and group in reach[o]))
            placed.update(circle)
            together.append(circle)
    position = {node.name: k for k, node in enumerate(trace.graph.nodes)}
    first = {block.group: position[layer.node] for layer in reversed(layers) for block in rows.get(layer.weight, ())}
    ordered: list[tuple[str, ...]] = []
    while together:
        ready = [
            level
            for level in together
            if not any(level[0] in reach[other[0]] for other in together if other is not level)
        ]
        level = min(ready, key=lambda names: min(first.get(name, 0) for name in names))
        together.remove(level)
        ordered.append(level)
    return tuple(ordered)


def _reachable(start: str, feeds: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(feeds[start])
    while waiting:
        group = waiting.pop()
        if group not in found:
            found.add(group)
            waiting += feeds[group]
    return found
