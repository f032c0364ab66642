"""Hidden layers of one unit: they have no permutations, hence no unit group, but a unit that can be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from lmccheck.symmetry.facts import facts_of, result_of
from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.trace import Shaped, Trace, value_of

Placed = tuple[str, int, int]  # tensor, dimension, how many numbers


@dataclass(frozen=True)
class SingleUnit:
    """The unit of a hidden layer of one: where its incoming numbers are, and its outgoing ones."""

    name: str
    rows: tuple[Placed, ...]
    columns: tuple[Placed, ...]


def single_units(trace: Trace, layers: Sequence[Layer]) -> list[SingleUnit]:
    """Return the unit of every hidden layer of one unit.

    Only layers whose output goes, through elementwise ops, pooling and batch norms, to linear layers and convolutions
    alone are found; what else there is stays without a group, and is refused where it matters.
    """
    by_node = {layer.node: layer for layer in layers}
    nodes = {node.name: node for node in trace.graph.nodes}
    stored = ((stored_name(node, trace), value_of(node)) for node in trace.graph.nodes)
    shapes = {name: value.shape for name, value in stored if name is not None and isinstance(value, Shaped)}
    found = []
    for layer in layers:
        if shapes[layer.weight][layer.out] != 1 or layer.groups != 1:
            continue
        rows: list[Placed] = [(layer.weight, layer.out, 1)]
        if layer.bias is not None:
            rows.append((layer.bias, 0, 1))
        columns: list[Placed] = []
        waiting: list[fx.Node] = list(nodes[layer.node].users)
        while waiting:
            user = waiting.pop()
            reader = by_node.get(user.name)
            if reader is not None and reader.groups == 1:
                columns.append((reader.weight, 1 - reader.out, shapes[reader.weight][1 - reader.out]))
            elif reader is None and _passes(user):
                names = (stored_name(argument, trace) for argument in user.args[1:])  # the vectors of a batch norm
                rows += [(name, 0, 1) for name in names if name is not None]
                after = result_of(user)
                waiting += list(after.users) if after is not None else []
            else:
                break
        else:
            if columns:
                found.append(SingleUnit(layer.weight.rsplit(".", 1)[0], tuple(rows), tuple(columns)))
    return found


def _passes(node: fx.Node) -> bool:
    """Whether an op takes a unit by itself, with no other activation or stored tensor but those of a batch norm."""
    facts = facts_of(node.target)
    return facts.unitwise and (facts.batch_norm is not None or len(node.all_input_nodes) == 1)
