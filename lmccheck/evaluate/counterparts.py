"""Which node of another trace of a network is a given one: names alone are no answer.

Inputs of another shape may take a network another way (windows that are padded, sequences of several blocks), and ops
are then counted otherwise: ``relu_1`` of one trace may be ``relu_2`` of another, and another node may be called so.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import fx

from lmccheck.symmetry.sites import stored_name
from lmccheck.symmetry.trace import Shaped, Trace, value_of


class Counterparts:
    """Nodes of ``other`` that are those of ``known``, two traces of one module.

    A node that takes stored tensors is known by these, and by how many such nodes there were before it (a weight may be
    read several times, as often in both traces). Another node is known by its op and what it takes, numbers aside, up
    to such nodes, or by being what one of them reads; where the two are not one node there is no counterpart. An input
    of the network is what is read of it, whatever is done to it before.
    """

    def __init__(self, known: Trace, other: Trace) -> None:
        self._nodes = {node.name: node for node in known.graph.nodes}
        self._same = _listed(known) == _listed(other)
        self._others: dict[str, fx.Node] = {node.name: node for node in other.graph.nodes}
        if self._same:
            return
        numbers: dict[Any, int] = {}
        self._known, theirs = _Keys(known, numbers), _Keys(other, numbers)
        self._by_key: dict[int, fx.Node] = {key: node for node, key in theirs.of.items()}
        self._sure: set[fx.Node] = set()
        for node in known.graph.nodes:
            kind = self._known.kind[node]
            sources = self._known.sources[node]
            if self._known.counts[kind] == theirs.counts[kind] and self._sure.issuperset(sources):
                self._sure.add(node)

    def find(self, name: str) -> fx.Node | str:
        """Return the node, or why there is none."""
        if name not in self._nodes:
            return f"no {name!r}"
        if self._same:
            return self._others[name]
        node = self._nodes[name]
        found = dict.fromkeys(self._read(node))
        if node in self._sure and not (found and node in self._known.inputs):
            found[self._by_key[self._known.of[node]]] = None
        if len(found) != 1:
            weights = self._known.anchors.get(node)
            what = f"{name!r}, which takes {', '.join(map(repr, weights))}" if weights else repr(name)
            return f"{'several nodes' if found else 'none'} for {what}"
        other = next(iter(found))
        dims, others = (v.ndim if isinstance(v, Shaped) else None for v in (value_of(node), value_of(other)))
        return other if dims == others else f"{name!r} has {others} dimensions, not {dims}"

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """Return what the counterparts of the nodes with weights that read a node read in its place."""
        found = []
        for reader in node.users:
            if reader in self._known.anchors and reader in self._sure:
                pairs = zip(_taken(reader), _taken(self._by_key[self._known.of[reader]]), strict=True)
                found += [theirs for ours, theirs in pairs if ours is node]
        return found


class _Keys:
    """What nodes of a trace are known by; equal keys of two traces that share ``numbers`` are equal numbers."""

    def __init__(self, trace: Trace, numbers: dict[Any, int]) -> None:
        self.kind: dict[fx.Node, int] = {}  # of how many nodes, see ``counts``
        self.of: dict[fx.Node, int] = {}  # of one node: the kind, and which of the kind
        self.counts: Counter[int] = Counter()
        self.anchors: dict[fx.Node, tuple[str, ...]] = {}  # known whatever else they take, by these stored tensors
        self.sources: dict[fx.Node, list[fx.Node]] = {}  # what has to be known for a node to be
        self.inputs = {
            n for n in trace.graph.nodes if n.op == "placeholder" and trace.placeholders[n.name].kind == "input"
        }
        weights: dict[fx.Node, tuple[str, ...]] = {}  # what stored tensors alone make
        for node in trace.graph.nodes:
            taken = _taken(node)
            held = [weights.get(source) for source in taken]
            names = tuple(dict.fromkeys(name for several in held if several for name in several))
            if node.op == "placeholder":
                holder, stored = trace.placeholders[node.name], stored_name(node, trace)
                key: tuple[Any, ...] = (holder.kind, stored or (None if holder.kind == "constant" else holder.target))
                if stored is not None:
                    weights[node] = (stored,)
                if holder.kind != "constant":
                    self.anchors[node] = weights.get(node, ())
            elif names:
                key = (node.target, *(self.of[source] if h else None for source, h in zip(taken, held, strict=True)))
                if all(held):
                    weights[node] = names
                self.anchors[node] = names
            else:
                key = (node.op if node.op == "get_attr" else node.target, *(self.of[source] for source in taken))
            if node.target is operator.getitem:
                key = (*key, "item", node.args[1])
            self.sources[node] = [source for source, h in zip(taken, held, strict=True) if h or not names]
            kind = self.kind[node] = numbers.setdefault(key, len(numbers))
            self.of[node] = numbers.setdefault((kind, self.counts[kind], "th"), len(numbers))
            self.counts[kind] += 1


def _taken(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among a node's arguments, in order, as often as they are there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _listed(trace: Trace) -> list[tuple[str, Any, Mapping[str, Any] | list[str]]]:
    return [(node.name, node.target, [source.name for source in _taken(node)]) for node in trace.graph.nodes]
