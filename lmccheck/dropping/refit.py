"""Ridge refit: the kept units' outgoing weights, fitted so that every later layer gives what it gave with all units.

Layers are processed in the order of the graph, each on what the already dropped and refitted network gives it. A weight
that several layers read (a state's, a shared block's) is fitted to all they read, as it was before this weight changed.
Source: the condition of Nguyen, Bréchet and Mondelli (2021) that some narrow network on a subset of features does well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lmccheck.dropping.edit import Multiplied, instead, keep_factors
from lmccheck.dropping.seen import SeenUnits
from lmccheck.evaluate.convex import polished_head
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.evaluate.layer_data import LayerData
from lmccheck.evaluate.regression import chosen_ridge
from lmccheck.evaluate.split import Split
from lmccheck.evaluate.stepwise import Stepwise
from lmccheck.network.network import Network
from lmccheck.network.targets import OF_TOKENS
from lmccheck.symmetry.sites import Layer, count_readers
from lmccheck.symmetry.structure import State, Structure, Units
from lmccheck.symmetry.trace import value_of

REGRESSORS = 4096  # a layer that reads more numbers keeps its weights, times one factor


class _Fitted:
    """A network that is refitted: ``state`` holds what differs from another one, ``run`` all that is run."""

    def __init__(self, graph: GraphRunner, state: State) -> None:
        self.state = instead(state, {})
        self.run = graph.stored(state)
        self._graph = graph

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.state[name] = tensor
        self.run |= self._graph.stored({name: tensor})

    def with_tensors(self, several: State) -> dict[str, Tensor]:
        """Return all that is run, with some tensors as they are given."""
        return {**self.run, **self._graph.stored(several)}


class Refit:
    """Refits of one network; what its layers give with all units is recorded once."""

    def __init__(self, network: Network, structure: Structure, theta: State, parts: Split, dtype: torch.dtype) -> None:
        self.network, self.structure, self.theta = network, structure, theta
        self.readers: dict[str, list[Layer]] = {}
        for layer in structure.layers:
            if layer.weight in structure.columns:
                self.readers.setdefault(layer.weight, []).append(layer)
        self.times = count_readers(structure.trace)
        self.readers = {name: several for name, several in self.readers.items() if self._fits(several)}
        layers = [layer for layer in structure.layers if layer.weight in self.readers]
        self._data = LayerData(network, structure, layers, parts, dtype)
        self.seen = SeenUnits(structure, theta, self._data, self.readers)

    @cached_property
    def layer_data(self) -> LayerData:
        """What the layers give with all units."""
        self._data.keep_targets(self._data.graph.stored(self.theta))
        return self._data

    def _fits(self, layers: Sequence[Layer]) -> bool:
        """Whether nothing but some layers, each with all its inputs, reads their weight."""
        first = layers[0]
        inputs = {block.dim for block in self.structure.columns[first.weight]} == {1 - first.out}
        return inputs and len(layers) == self.times[first.weight] and all(layer.groups == 1 for layer in layers)

    def __call__(self, level: int, keep: Units, *, polish: bool = True) -> tuple[State, dict[str, Any]]:
        """Return θ_i, canonical float64, that reads the units of ``keep`` (groups of ``level`` and later) alone.

        Columns of dropped units are zero; the kept ones of every layer that reads them solve
        min_{V,c} ‖H·V + c − Z‖² + λ‖V − V₀‖², H what the layer now reads and Z what it gave in θ; c goes into the bias,
        or into the running mean of a BatchNorm right behind. λ is chosen on held out data, and so is whether the head
        is then fitted a little more, to the class probabilities of θ. Rows of dropped units are left as they are.
        Weights that no layer reads (stacked experts, grouped and transposed convolutions) are scaled by units over kept
        ones.
        """
        scaled = Multiplied(self.structure, self.theta, keep_factors(self.structure, keep))
        new = _Fitted(self.layer_data.graph, scaled)
        facts: dict[str, Any] = {"layers": {}, "polished": False}
        run = self.layer_data.run()
        waiting = dict.fromkeys(self.readers)  # which those read that are fitted as a whole
        for name, layers in self.readers.items():
            dropped = [block for block in self.structure.columns[name] if block.group in keep]
            if dropped:
                several = len(layers) > 1
                own = self.layer_data.run() if several else run
                facts["layers"][name] = self._fit(own, layers, keep, new, waiting if several else ())
            del waiting[name]
        facts["layers"] |= self._scale(keep, new)
        if polish and self._head is not None:
            facts["polished"] = self._polish(run, self._head, keep, new)
        return new.state, facts

    def _scale(self, keep: Units, new: _Fitted) -> dict[str, str]:
        """Scale the columns of weights that are not fitted; return what was done to each."""
        factors = {group: torch.full((n,), n / max(1, len(keep[group])), dtype=torch.float64)
                   for group, n in self.structure.sizes.items() if group in keep}  # fmt: skip
        scaled = Multiplied(self.structure, new.state, factors)
        names = [name for name in self.structure.columns if name not in self.readers]
        for name in names:
            new[name] = scaled[name]
        return dict.fromkeys(names, "scaled only: no linear layer or convolution alone reads it")

    def _fit(
        self,
        run: Stepwise,
        layers: Sequence[Layer],
        keep: Units,
        new: _Fitted,
        waiting: Collection[str],
    ) -> float | str:
        """Change the weight of one or more layers in ``new``; return the share of λ, or why it was done otherwise.

        ``waiting``: weights that are those of θ while the layers are looked at.
        """
        layer = layers[0]
        weight = self.theta[layer.weight]
        reads, outs = self._used(layer, 1 - layer.out, keep), self._used(layer, layer.out, keep)
        matrix = weight.movedim(layer.out, 0)[outs].index_select(1, reads)
        place = self._constant(layers)
        numbers = matrix[0].numel() if len(outs) else 0
        if numbers > REGRESSORS or (layer.bias is not None and place is None):
            factor = weight.shape[1 - layer.out] / max(1, len(reads))
            new[layer.weight] = new[layer.weight] * factor
            return f"scaled by {factor:.3g} only: it reads {numbers} numbers, or its bias is used twice"
        weights = new.with_tensors({name: self.theta[name] for name in waiting})
        fit, held = self.layer_data.moments(run, weights, layers, reads, outs)
        fitted, constant, share = chosen_ridge(fit, held, matrix.flatten(1).T, constant=place is not None)
        self._write(layer, reads, outs, fitted.cpu(), new)
        if place is not None:
            name, sign = place
            base = self.theta[name][outs] if sign < 0 else 0.0  # the layer's own output is without the mean
            new[name] = new[name].index_copy(0, outs, base + sign * constant.cpu())
        return share

    def _write(self, layer: Layer, reads: Tensor, outs: Tensor, fitted: Tensor, new: _Fitted) -> None:
        turned = new[layer.weight].movedim(layer.out, 0).clone()
        rows = turned[outs]
        shape = rows.index_select(1, reads).shape
        turned[outs] = rows.index_copy(1, reads, fitted.T.reshape(shape))
        new[layer.weight] = turned.movedim(0, layer.out).contiguous()

    def _used(self, layer: Layer, dim: int, keep: Units) -> Tensor:
        """Return the positions along a dimension of a layer's weight that are not of dropped units."""
        used = torch.ones(self.structure.shapes[layer.weight][dim], dtype=torch.bool)
        for block in (*self.structure.rows.get(layer.weight, ()), *self.structure.columns[layer.weight]):
            if block.dim == dim and block.group in keep:
                used[block.of(self.structure.others(block.group, keep[block.group]))] = False
        return used.nonzero().flatten()

    def _constant(self, layers: Sequence[Layer]) -> tuple[str, int] | None:
        """Return the tensor that takes the constant and its sign; None where there is none of these layers' own."""
        layer = layers[0]
        if layer.bias is not None:
            # what a layer gives holds its bias already, so the fitted constant is the new bias
            alone = self.times[layer.bias] == len(layers) and all(other.bias == layer.bias for other in layers)
            return (layer.bias, 1) if alone else None
        if len(layers) > 1:
            return None
        units = self.structure.shapes[layer.weight][layer.out]
        if layer.norm is None or self.times[layer.norm.mean] != 1 or self.theta[layer.norm.mean].shape != (units,):
            return None
        value = value_of(next(n for n in self.structure.trace.graph.nodes if n.name == layer.node))
        along = 1 if layer.window is not None else len(getattr(value, "shape", ())) - 1
        return (layer.norm.mean, -1) if along == 1 else None

    @property
    def _head(self) -> Layer | None:
        """The last layer, where it is linear and gives the network's logits, a row for every loss."""
        if not self.structure.head:
            return None
        layer = next(layer for layer in self.structure.layers if layer.weight == self.structure.head[0])
        nodes = self.structure.trace.graph.nodes
        output = next(node for node in nodes if node.op == "output")
        last = next((node for node in output.all_input_nodes if node.name == layer.node), None)
        if last is None or layer.window is not None or layer.weight not in self.readers:
            return None
        dims = len(getattr(value_of(last), "shape", ()))
        fits = self.network.loss.name in OF_TOKENS or (self.network.loss.name == "cross_entropy" and dims == 2)
        return layer if fits else None

    def _polish(self, run: Stepwise, layer: Layer, keep: Units, new: _Fitted) -> bool:
        reads = self._used(layer, 1 - layer.out, keep)
        turned = new[layer.weight].movedim(layer.out, 0).index_select(1, reads)
        outs = torch.arange(len(turned))
        constant = new[layer.bias] if layer.bias is not None else torch.zeros(len(outs), dtype=torch.float64)
        rows = list(self.layer_data.rows(run, new.run, layer, reads, outs))
        found = polished_head(rows, turned.T, constant, free=layer.bias is not None)
        if found is None:
            return False
        self._write(layer, reads, outs, found[0], new)
        if layer.bias is not None:
            new[layer.bias] = found[1]
        return True
