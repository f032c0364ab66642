"""Losses of a network with the inputs of its layers multiplied, many multipliers at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import mapped, only_tensors, tensors_in
from lmccheck.errors import LmcError
from lmccheck.evaluate.graph import GraphRunner, Reading, followers, running, value_sizes
from lmccheck.modules.runner import Runner
from lmccheck.network.loss import LOSSES, logits_of, measured
from lmccheck.network.network import Network
from lmccheck.store.tensors import along, equal
from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.structure import Structure
from lmccheck.symmetry.trace import Trace

TOGETHER = 1 << 19  # numbers of the largest value of the graph, over all multipliers that are run together


class MaskedRuns:
    """Losses of one network with the inputs of its layers multiplied, many multipliers at a time.

    Multiplying what a layer reads equals multiplying the columns of its weight; other users of the same value (a
    residual sum) get it as it is. Weights that no single layer reads (of a state, of stacked experts, of a transposed
    convolution: ``Structure.by_weight``) are multiplied themselves. The network runs in evaluation mode, with its own
    BatchNorm statistics. What does not depend on a multiplier is computed once per batch; the rest under
    ``torch.func.vmap`` over the multipliers, or one by one where an op cannot be mapped: then ``vectorised`` is False.
    Where a loss of the user's own may read more than output tensors, the module itself runs, its weights multiplied.

    ``structure`` is that of the traced network; ``evaluations`` counts full passes over ``data``, one for every
    multiplier.
    """

    def __init__(
        self, network: Network, structure: Structure, data: Data | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network = network
        self.by_weight, self.tied = structure.by_weight, structure.trace.tied
        self.layers = {layer.weight: layer for layer in structure.layers if layer.weight not in self.by_weight}
        self.data = data if data is not None else network.data
        self.graph = GraphRunner.of(network, dtype, structure.trace)
        self.batches = rebatched(self.data)
        self.evaluations = 0
        self.vectorised = True
        self._weights: dict[str, Tensor] | None = None

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights, every name of the state dict."""
        self._weights = self.graph.weights(weights)

    def losses(self, lines: Mapping[str, Tensor]) -> Tensor:
        """Return per-sample losses, (k, n) float64 on the CPU.

        ``lines``: per weight name (k, inputs of that layer), what each of them is multiplied by; layers that are not
        named read what they always do. Where no single layer reads a weight: (k, length of its columns' dimension).
        Raises SourceError when the network or the loss cannot run.
        """
        if self._weights is None or not lines:
            raise LmcError("MaskedRuns: got no weights or no lines, expected load(weights) and one line per layer")
        held = self.graph.cast(dict(lines))
        count = len(next(iter(held.values())))
        self.evaluations += count
        if self._wrap is None:
            self.vectorised = False
            run = self.graph.loaded(self._weights)
            each = [{name: line[k] for name, line in held.items()} for k in range(count)]
            return torch.stack([self._as_it_runs(run, multiplied) for multiplied in each])
        result: list[list[Tensor]] = [[] for _ in range(count)]
        for batch in self.batches:
            targets = self.graph.cast(batch.targets)
            for start, outputs in self._outputs(batch, held, count):
                for k, output in enumerate(zip(*outputs, strict=True), start):
                    values, _ = measured(self.network.loss, self._wrap(output), targets, self.data.origin)
                    result[k].append(values.cpu())
        return torch.stack([torch.cat(parts) for parts in result])

    @cached_property
    def _wrap(self) -> Wrapping | None:
        """What the loss is given; None where it may read more than the tensors that the graph gives.

        That is where an output holds anything else, and where the loss of an output changes when other weights are run:
        it reads what the network notes beside.
        """
        assert self._weights is not None
        batch, loss, origin = self.batches[0], self.network.loss, self.data.origin
        run = self.graph.loaded(self._weights)
        own, targets = run(batch.inputs, origin), self.graph.cast(batch.targets)
        if loss == LOSSES.get(loss.name):
            return Wrapping(logits_of(own), tensors_in(own))  # of all that is returned, ours read these
        if not only_tensors(own):
            return None
        before, _ = measured(loss, own, targets, origin)
        run.draw(self.network.module, 1)
        run(batch.inputs, origin)
        after, _ = measured(loss, own, targets, origin)
        return Wrapping(own, tensors_in(own)) if equal(before, after) else None

    def _as_it_runs(self, run: Runner, lines: Mapping[str, Tensor]) -> Tensor:
        """Return per-sample losses, (n,), of the module itself with its weights' columns multiplied."""
        assert self._weights is not None
        dims = {name: 1 - layer.out for name, layer in self.layers.items()} | dict(self.by_weight)
        weights = dict(self._weights)
        for name, own in self.tied.items():
            if own in lines:
                weights[name] = weights[name] * along(lines[own], dims[own], weights[name].ndim)
        run.load(weights)
        found = []
        for batch in self.batches:
            given, targets = run(batch.inputs, self.data.origin), self.graph.cast(batch.targets)
            found.append(measured(self.network.loss, given, targets, self.data.origin)[0].cpu())
        return torch.cat(found)

    def _outputs(
        self, batch: Batch, lines: Mapping[str, Tensor], count: int
    ) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield (first multiplier, every output of it and the next ones (k, n, …)) of one batch."""
        assert self._weights is not None
        where = f"{self.data.origin}, with units multiplied"
        traced, given, _ = self.graph.prepared(self._weights, batch.inputs, (), where)
        reading = self.graph.layers(traced, [layer for name, layer in self.layers.items() if name in lines], where)
        first = {layer.node for layer in reading}
        held = {node: given[node] for node in _holders(traced, lines.keys() & self.by_weight.keys())}
        first |= {node.name for node in held}
        end = next(node for node in traced.graph.nodes if node.op == "output")
        after = followers(traced.module, {*first, end.name})  # the end even where none of these layers reaches it
        later = set(after)
        before = [node for node in traced.graph.nodes if node not in later]
        wanted = {source for node in after for source in node.all_input_nodes if source not in later}
        most = max(value_sizes(traced, {node.name for node in after}).values(), default=1)
        together = max(1, TOGETHER // max(1, most))
        with running(where):
            known = Reading(traced.module, ()).part(before, given, wanted)
            run = partial(self._last_part, traced, reading, after, {**known, **held})
            for start in range(0, count, together):
                part = {name: line[start : start + together] for name, line in lines.items()}
                yield start, self._mapped(run, part)

    def _last_part(
        self,
        traced: Trace,
        layers: Sequence[Layer],
        nodes: Sequence[fx.Node],
        known: Mapping[fx.Node, Any],
        lines: Mapping[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """Run the nodes that depend on the multipliers, for one multiplier per layer or weight; return the outputs."""

        def edit(layer: Layer, value: Tensor) -> Tensor:
            return value * across(layer, lines[layer.weight], value.ndim)

        def multiplied(name: str, weight: Tensor) -> Tensor:
            return weight * along(lines[name], self.by_weight[name], weight.ndim)

        held = {node: multiplied(str(name), known[node]) for node, name in _holders(traced, self.by_weight).items()
                if name in lines}  # fmt: skip
        reading = Reading(traced.module, layers, edit)
        return tuple(reading.part(nodes, {**known, **held}, nodes[-1:])[nodes[-1]])

    def _mapped(
        self, run: Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]], lines: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the rest of the graph for some multipliers, together where every op can be."""
        count = len(next(iter(lines.values())))
        if self.vectorised and count > 1:
            try:
                with _quiet(), sdpa_kernel([SDPBackend.MATH]):  # fused attention cannot be mapped
                    outputs: tuple[Tensor, ...] = torch.func.vmap(run)(dict(lines))
                return outputs
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                self.vectorised = False  # if it is not the mapping that fails, the run below says what does
        each = [run({name: line[k] for name, line in lines.items()}) for k in range(count)]
        return tuple(map(torch.stack, zip(*each, strict=True)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of ops that vmap itself runs one by one, which is only slow; torch says it past Python's warnings."""
    switch = getattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled", lambda enabled: None)
    switch(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        switch(True)


def _holders(traced: Trace, names: Collection[str]) -> dict[fx.Node, str]:
    """Return the placeholders that stand for some stored tensors, and which these are."""
    stored = ((node, stored_name(node, traced)) for node in traced.graph.nodes if node.op == "placeholder")
    return {node: name for node, name in stored if name is not None and name in names}


class Wrapping:
    """Puts output tensors into what a module returns them in, so that losses of the user's own can take it.

    ``like`` is what it has returned, ``places`` the tensors in it, in order.
    """

    def __init__(self, like: Any, places: Sequence[Tensor]) -> None:
        self._like, self._places = like, places

    def __call__(self, outputs: Sequence[Tensor]) -> Any:
        """Return output tensors as the module would."""
        new = {id(place): tensor for place, tensor in zip(self._places, outputs, strict=True)}
        return mapped(lambda tensor: new[id(tensor)], self._like)


def across(layer: Layer, line: Tensor, ndim: int) -> Tensor:
    """Return one number per input of a layer, (inputs,), as a tensor that broadcasts over what the layer reads."""
    return line if layer.window is None else line.reshape(-1, *[1] * (ndim - 2))
