"""Losses of a network with the inputs of its layers multiplied, many multipliers at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from lmccheck.errors import LmcError
from lmccheck.evaluate.graph import GraphRunner, Reading, followers, running, value_sizes
from lmccheck.modules.runner import Runner
from lmccheck.network.loss import logits_of, measured
from lmccheck.store.batches import rebatched
from lmccheck.store.data import Batch, Data
from lmccheck.store.trees import input_tensors, mapped, tensors_in
from lmccheck.symmetry.sites import Layer

if TYPE_CHECKING:
    from lmccheck.network.network import Network

TOGETHER = 1 << 19  # numbers of the largest value of the graph, over all multipliers that are run together


class MaskedRuns:
    """Losses of one network with the inputs of its layers multiplied, many multipliers at a time.

    Multiplying what a layer reads equals multiplying the columns of its weight; other users of the same value (a
    residual sum) get it as it is. The network runs in evaluation mode, with its own BatchNorm statistics. What does
    not depend on a multiplier is computed once per batch; the rest under ``torch.func.vmap`` over the multipliers, or
    one by one where an op cannot be mapped: then ``vectorised`` is False.

    ``layers`` are the layers of the pair's traced network (``Traced.layers``, ``Structure.layers``); ``evaluations``
    counts full passes over ``data``, one for every multiplier.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], data: Data | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network = network
        self.layers = {layer.weight: layer for layer in layers}
        self.data = data if data is not None else network.data
        self.graph = GraphRunner.of(network, dtype)
        self.batches = rebatched(self.data)
        self.evaluations = 0
        self.vectorised = True
        self._weights: dict[str, Tensor] | None = None
        self._wrap = Wrapping(self.graph.runner)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights, every name of the state dict."""
        self._weights = self.graph.weights(weights)

    def losses(self, lines: Mapping[str, Tensor]) -> Tensor:
        """Return per-sample losses, (k, n) float64 on the CPU.

        ``lines``: per weight name (k, inputs of that layer), what each of them is multiplied by; layers that are not
        named read what they always do. Raises SourceError when the network or the loss cannot run.
        """
        if self._weights is None or not lines:
            raise LmcError("MaskedRuns: got no weights or no lines, expected load(weights) and one line per layer")
        held = self.graph.runner.cast(dict(lines))
        count = len(next(iter(held.values())))
        self.evaluations += count
        result: list[list[Tensor]] = [[] for _ in range(count)]
        for batch in self.batches:
            targets = self.graph.runner.cast(batch.targets)
            for start, outputs in self._outputs(batch, held, count):
                for k, output in enumerate(outputs, start):
                    given = self._wrap(output, batch.inputs, self.data.origin)
                    values, _ = measured(self.network.loss, given, targets, self.data.origin)
                    result[k].append(values.cpu())
        return torch.stack([torch.cat(parts) for parts in result])

    def _outputs(self, batch: Batch, lines: Mapping[str, Tensor], count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (first multiplier, outputs of it and the next ones (k, n, …)) of one batch."""
        assert self._weights is not None
        where = f"{self.data.origin}, with units multiplied"
        first = {self.layers[name].node for name in lines}
        traced, given = self.graph.prepared(self._weights, batch.inputs, first, where)
        end = next(node for node in traced.graph.nodes if node.op == "output")
        after = followers(traced.module, {*first, end.name})  # the end even where none of these layers reaches it
        later = set(after)
        before = [node for node in traced.graph.nodes if node not in later]
        wanted = {source for node in after for source in node.all_input_nodes if source not in later}
        most = max(value_sizes(traced, {node.name for node in after}).values(), default=1)
        together = max(1, TOGETHER // max(1, most))
        with running(where):
            known = Reading(traced.module, ()).part(before, given, wanted)
            run = partial(self._last_part, traced.module, after, known)
            for start in range(0, count, together):
                part = {name: line[start : start + together] for name, line in lines.items()}
                yield start, self._mapped(run, part)

    def _last_part(
        self,
        module: fx.GraphModule,
        nodes: Sequence[fx.Node],
        known: Mapping[fx.Node, Any],
        lines: Mapping[str, Tensor],
    ) -> Tensor:
        """Run the nodes that depend on the multipliers, for one multiplier per layer; return the output."""

        def edit(layer: Layer, value: Tensor) -> Tensor:
            return value * across(layer, lines[layer.weight], value.ndim) if layer.weight in lines else value

        output: Tensor = Reading(module, list(self.layers.values()), edit).part(nodes, known, nodes[-1:])[nodes[-1]][0]
        return output

    def _mapped(self, run: Callable[[Mapping[str, Tensor]], Tensor], lines: Mapping[str, Tensor]) -> Tensor:
        """Run the rest of the graph for some multipliers, together where every op can be."""
        if self.vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an op that vmap itself runs one by one is only slow
                    outputs: Tensor = torch.func.vmap(run)(dict(lines))
                return outputs
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                self.vectorised = False  # if it is not the mapping that fails, the run below says what does
        count = len(next(iter(lines.values())))
        return torch.stack([run({name: line[k] for name, line in lines.items()}) for k in range(count)])


class Wrapping:
    """Puts an output tensor into what the module returns it in, so that losses of the user's own can take it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known = False
        self._like: tuple[Any, Tensor] | None = None  # what the module returns, and the tensor in it

    def __call__(self, output: Tensor, inputs: Any, where: str) -> Any:
        """Return ``output`` as the module would; ``inputs`` are those of a batch, to see how that is."""
        if not self._known:
            own = self._runner(inputs, where)
            tensors = tensors_in(own)
            if len(tensors) == 1 and any(tensor is tensors[0] for tensor in input_tensors(own)):
                self._like = own, tensors[0]
            else:
                logits_of(own)  # says what is expected where there are no logits either
            self._known = True
        if self._like is None:
            return output
        own, place = self._like
        return mapped(lambda tensor: output if tensor is place else tensor, own)


def across(layer: Layer, line: Tensor, ndim: int) -> Tensor:
    """Return one number per input of a layer, (inputs,), as a tensor that broadcasts over what the layer reads."""
    return line if layer.window is None else line.reshape(-1, *[1] * (ndim - 2))
