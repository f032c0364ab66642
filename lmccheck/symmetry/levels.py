"""The order of unit groups from input to output: by the tensors between them, or by the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.structure import Blocks
from lmccheck.symmetry.trace import Trace

Levels = tuple[tuple[str, ...], ...]
Feeds = Mapping[str, set[str]]  # per group, those that take what comes of it


def levels_by_weights(
    groups: Sequence[str], rows: Blocks, columns: Blocks, layers: Sequence[Layer], trace: Trace
) -> Levels:
    """Return groups in an order in which none feeds an earlier one, those on a circle together.

    A group feeds another where a tensor holds columns of the one and rows of the other.
    """
    feeds: dict[str, set[str]] = {group: set() for group in groups}
    for tensor, blocks in columns.items():
        for reader in rows.get(tensor, ()):
            for block in blocks:
                feeds[block.group].add(reader.group)
    position = {node.name: k for k, node in enumerate(trace.graph.nodes)}
    made = {b.group: position[layer.node] for layer in reversed(layers) for b in rows.get(layer.weight, ())}
    return _ordered(groups, feeds, dict.fromkeys(groups, 0) | made)


def levels_by_graph(groups: Sequence[str], rows: Blocks, columns: Blocks, trace: Trace) -> Levels:
    """Return groups in the order in which their blocks follow one another in the graph, those on a circle together.

    A group feeds another where what reads its columns comes before what makes the other: also through a stream that is
    left whole, which no tensor tells. Blocks that are read again and again follow one another both ways.
    """
    at = reading_nodes(trace)
    makers = {group: set(_nodes(group, rows, at)) for group in groups}
    feeds: dict[str, set[str]] = {}
    for group in groups:
        after = nodes_after(_nodes(group, columns, at))
        feeds[group] = {other for other in groups if other != group and not after.isdisjoint(makers[other])}
    position = {node: k for k, node in enumerate(trace.graph.nodes)}
    return _ordered(
        groups, feeds, {group: min((position[node] for node in makers[group]), default=0) for group in groups}
    )


def reading_nodes(trace: Trace) -> dict[str, list[fx.Node]]:
    """Return, per stored tensor, the ops in which it meets an activation, past views and functions of weights alone."""
    found: dict[str, list[fx.Node]] = {}
    of_weights: dict[fx.Node, set[str]] = {}  # nodes that weights alone decide, and which these are
    for node in trace.graph.nodes:
        name = stored_name(node, trace)
        if name is not None:
            of_weights[node] = {name}
            continue
        names = {name for source in node.all_input_nodes for name in of_weights.get(source, ())}
        if node.op == "call_function" and names and all(source in of_weights for source in node.all_input_nodes):
            of_weights[node] = names
            continue
        for name in names:
            found.setdefault(name, []).append(node)
    return found


def _nodes(group: str, blocks: Blocks, at: Mapping[str, Sequence[fx.Node]]) -> list[fx.Node]:
    tensors = [name for name, several in blocks.items() if any(block.group == group for block in several)]
    return [node for name in tensors for node in at.get(name, ())]


def nodes_after(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return nodes and all that depend on them."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.users
    return found


def _ordered(groups: Sequence[str], feeds: Feeds, first: Mapping[str, int]) -> Levels:
    reach = {group: _reachable(group, feeds) for group in groups}
    together: list[tuple[str, ...]] = []
    placed: set[str] = set()
    for group in groups:
        if group not in placed:
            circle = tuple(o for o in groups if o == group or (o in reach[group] and group in reach[o]))
            placed.update(circle)
            together.append(circle)
    ordered: list[tuple[str, ...]] = []
    while together:
        ready = [
            level
            for level in together
            if not any(level[0] in reach[other[0]] for other in together if other is not level)
        ]
        level = min(ready, key=lambda names: min(first[name] for name in names))
        together.remove(level)
        ordered.append(level)
    return tuple(ordered)


def _reachable(start: str, feeds: Feeds) -> set[str]:
    found: set[str] = set()
    waiting = list(feeds[start])
    while waiting:
        group = waiting.pop()
        if group not in found:
            found.add(group)
            waiting += feeds[group]
    return found
