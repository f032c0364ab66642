"""Hidden layers of one unit: they have no permutations, hence no unit group, but a unit that can be dropped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.trace import Shaped, Trace, op_name, value_of

Placed = tuple[str, int, int]  # tensor, dimension, how many numbers

_PASSED = {
    "aten.relu", "aten.relu_", "aten.gelu", "aten.tanh", "aten.sigmoid", "aten.silu", "aten.elu", "aten.celu",
    "aten.selu", "aten.leaky_relu", "aten.softplus", "aten.hardtanh", "aten.hardsigmoid", "aten.hardswish",
    "aten.mish", "aten.erf", "aten.sin", "aten.cos", "aten.abs", "aten.softsign", "aten.relu6", "aten.log_sigmoid",
    "aten.exp", "aten.dropout", "aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.flatten",
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.avg_pool1d", "aten.avg_pool2d",
    "aten.avg_pool3d", "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.batch_norm",
    "aten._native_batch_norm_legit_no_training",
}  # fmt: skip


def lone_units(traced: Trace, layers: Sequence[Layer]) -> list[tuple[str, int, list[Placed], list[Placed]]]:
    """Return (name, 1, row tensors, column tensors) of every hidden layer of one unit.

    Only layers whose output goes, through elementwise ops, pooling and batch norms, to linear layers and convolutions
    alone are found; what else there is stays without a group, and is refused where it matters.
    """
    by_node = {layer.node: layer for layer in layers}
    nodes = {node.name: node for node in traced.graph.nodes}
    found = []
    for layer in layers:
        weight = _shape(layer.weight, traced)
        if weight is None or weight[layer.out] != 1 or layer.groups != 1:
            continue
        rows: list[Placed] = [(layer.weight, layer.out, 1)]
        if layer.bias is not None:
            rows.append((layer.bias, 0, 1))
        columns: list[Placed] = []
        waiting = list(nodes[layer.node].users)
        ends = True
        while waiting and ends:
            user = waiting.pop()
            if user.name in by_node and by_node[user.name].source in {n.name for n in user.all_input_nodes}:
                reader = by_node[user.name]
                shape = _shape(reader.weight, traced)
                if shape is None or reader.groups != 1:
                    ends = False
                    continue
                columns.append((reader.weight, 1 - reader.out, shape[1 - reader.out]))
            elif user.op == "call_function" and op_name(user.target) in _PASSED:
                rows += _vectors(user, traced)
                waiting += list(user.users)
            else:
                ends = False
        if ends and columns:
            found.append((layer.weight.rsplit(".", 1)[0], 1, rows, columns))
    return found


def _vectors(node: fx.Node, traced: Trace) -> list[Placed]:
    """Return the stored vectors that an op between layers reads: those of a batch norm."""
    names = (stored_name(argument, traced) for argument in node.args[1:])
    return [(name, 0, 1) for name in names if name is not None]


def _shape(name: str, traced: Trace) -> tuple[int, ...] | None:
    for node in traced.graph.nodes:
        if node.op == "placeholder" and stored_name(node, traced) == name:
            value = value_of(node)
            return value.shape if isinstance(value, Shaped) else None
    return None
