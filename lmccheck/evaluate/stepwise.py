"""A run of a network that stops at one layer after the other, so that each may be changed before it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from lmccheck.data.load import Batch
from lmccheck.evaluate.graph import GraphRunner, Reading, running
from lmccheck.symmetry.sites import Layer

LIVE = 1 << 28  # numbers that are held between layers, over all batches: 1 GB in float32


class Stepwise:
    """Runs batches up to what a layer reads, and from there to what the next one reads.

    Layers are asked for in the order of the graph. Weights of a layer may change until a later one is asked for; what
    has been run is not run again. Where values would take too much memory, batches are run from the start each time.
    """

    def __init__(self, graph: GraphRunner, batches: Sequence[Batch], where: str) -> None:
        self.graph, self.batches, self.where = graph, batches, where
        self._held: dict[int, tuple[int, dict[fx.Node, Any]]] = {}

    def inputs(self, weights: Mapping[str, Tensor], layer: Layer) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the batch, what the layer reads) for every batch. Raises as ``GraphRunner.run`` does."""
        given = self.graph.weights(weights)
        for number, batch in enumerate(self.batches):
            traced, placeholders, _ = self.graph.prepared(given, batch.inputs, (), self.where)
            source = self.graph.layers(traced, [layer], self.where)[0].source
            nodes = list(traced.module.graph.nodes)
            at = next(k for k, node in enumerate(nodes) if node.name == source)
            start, known = self._held.pop(number, (0, {}))
            stop = max(start, at + 1)
            later = set(nodes[stop:])
            run = [node for node in nodes[start:stop] if node.op != "placeholder"]
            live = [n for n in (*known, *run) if n is nodes[at] or any(user in later for user in n.users)]
            with running(self.where):
                kept = Reading(traced.module, ()).part(run, {**placeholders, **known}, live)
            if sum(_numbers(known) for _, known in self._held.values()) + _numbers(kept) <= LIVE:
                self._held[number] = stop, kept
            value: Tensor = kept[nodes[at]] if nodes[at] in kept else placeholders[nodes[at]]
            yield number, value


def _numbers(values: Mapping[fx.Node, Any]) -> int:
    return sum(value.numel() for value in values.values() if isinstance(value, Tensor))
