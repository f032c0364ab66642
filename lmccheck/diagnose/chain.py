"""A network that is a chain of weight layers: what each reads and makes, and the maps between pre-activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lmccheck.diagnose.jacobian import Between, lengths
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.evaluate.graph import GraphRunner, Reading, followers, running
from lmccheck.evaluate.masked import across
from lmccheck.evaluate.repair import live_norms
from lmccheck.modules.precision import exact_float32
from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.structure import Structure

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Stage:
    """A weight layer i of a chain: ``node`` gives its pre-activation xⁱ, ``source`` what it reads, φ(xⁱ⁻¹).

    A BatchNorm that follows belongs to the layer; ``shifts`` are the tensors that are added.
    """

    layer: Layer
    node: str
    shifts: tuple[str, ...]

    def scale(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """Return what a BatchNorm multiplies each unit by, None without one."""
        norm = self.layer.norm
        if norm is None:
            return None
        scale = (weights[norm.variance].double() + norm.epsilon).rsqrt()
        return scale if norm.weight is None else scale * weights[norm.weight].double()

    def folded(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return weight (units, inputs, …) and bias of the layer with its BatchNorm folded in, float64."""
        layer = self.layer
        weight = weights[layer.weight].double().movedim(layer.out, 0)
        bias = weights[layer.bias].double() if layer.bias is not None else None
        scale = self.scale(weights)
        if scale is not None and layer.norm is not None:
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = ((0.0 if bias is None else bias) - weights[layer.norm.mean].double()) * scale
            bias = bias if layer.norm.bias is None else bias + weights[layer.norm.bias].double()
        return weight, bias

    def frobenius(
        self, weights: Mapping[str, Tensor], read: Tensor, made: Tensor, augmented: bool, last: bool
    ) -> float:
        """Return ‖A‖_F of the layer as the matrix from all it reads to all it makes, per sample.

        A convolution counts each weight as often as it meets a number that is not padding; the augmented form has the
        bias at every position and, but for the last layer, a row for the constant 1.
        """
        weight, bias = self.folded(weights)
        positions = made[0].numel() // weight.shape[0]
        if self.layer.window is None:
            total = float(positions * weight.square().sum())
        else:
            stride, padding, dilation = self.layer.window
            ones = torch.ones((1, *read.shape[1:]), dtype=torch.float64, device=weight.device)
            met = _CONVOLUTIONS[weight.ndim - 2](ones, weight.square(), None, stride, padding, dilation)
            total = float(met.sum())
        if augmented:
            total += (float(positions * bias.square().sum()) if bias is not None else 0.0) + (0.0 if last else 1.0)
        return math.sqrt(total)


def chain_of(structure: Structure) -> tuple[Stage, ...] | str:
    """Return the layers of a chain network in order, or why the network is no chain."""
    if structure.obstacles:
        return f"{structure.obstacles[0]}: the network is no chain of layers"
    if not structure.sequential:
        return "units of one level feed one another (a residual stream): the network is no chain of layers"
    if len(structure.layers) != structure.depth:
        return f"{len(structure.layers)} layers for {len(structure.levels)} levels of units: the network is no chain"
    norms = {norm.source: norm.node for norm in live_norms(structure.trace)}
    stages = []
    for k, layer in enumerate(structure.layers):
        made = {block.group for block in structure.rows.get(layer.weight, ())}
        read = {block.group for block in structure.columns.get(layer.weight, ())}
        expected_read = set(structure.levels[k - 1]) if k else set()
        expected_made = set(structure.levels[k]) if k < len(structure.levels) else set()
        if made != expected_made or read != expected_read or layer.groups != 1:
            return f"layer {layer.weight!r} does not read all of one level and make the next: the network is no chain"
        norm = layer.norm
        shifts = (layer.bias, *((norm.bias, norm.mean) if norm is not None else ()))
        node = layer.node if norm is None else norms[layer.node]
        stages.append(Stage(layer, node, tuple(name for name in shifts if name is not None)))
    return tuple(stages)


class Chain:
    """A chain network at some weights on some samples: what its layers read and make, and the maps between them."""

    def __init__(
        self, stages: Sequence[Stage], graph: GraphRunner, weights: Mapping[str, Tensor], inputs: Any, where: str
    ) -> None:
        """Run the network on ``inputs`` (a tensor or a tuple); ``graph`` runs in float64."""
        self.stages = tuple(stages)
        self.weights = graph.weights(weights)
        shifts = {name for stage in stages for name in stage.shifts}
        self.augmented = bool(shifts)
        keep = {name for stage in stages for name in (stage.node, stage.layer.source)}
        self._trace, self._given, self._nodes = graph.prepared(self.weights, inputs, keep, where)
        self._shifts = [node for node in self._given if stored_name(node, self._trace) in shifts]
        with running(where):
            reader = Reading(self._trace.module, ())
            found = reader.part(list(self._trace.graph.nodes), self._given, list(self._nodes.values()))
        self._values: dict[str, Tensor] = {name: found[node] for name, node in self._nodes.items()}

    @property
    def depth(self) -> int:
        """d, the number of weight layers."""
        return len(self.stages)

    def made(self, i: int) -> Tensor:
        """xⁱ, 1 ≤ i ≤ d: the pre-activations of layer i, (n, …)."""
        return self._values[self.stages[i - 1].node]

    def read(self, i: int) -> Tensor:
        """φ(xⁱ⁻¹), 1 ≤ i ≤ d: what layer i reads, (n, …)."""
        return self._values[self.stages[i - 1].layer.source]

    def length(self, value: Tensor, i: int) -> Tensor:
        """‖value‖ per sample, of layer i (d: the output); in the augmented form of (value; 1) for hidden layers."""
        found = lengths(value)
        return torch.sqrt(found**2 + 1) if self.augmented and i < self.depth else found

    def between(self, i: int, j: int) -> Between:
        """M^{i,j}, i < j: xⁱ -> xʲ."""
        return self._map(self.stages[i - 1].node, self.stages[j - 1].node)

    def step(self, i: int, made: Tensor, line: Tensor | None = None) -> Tensor:
        """Return xⁱ from xⁱ⁻¹ (i ≥ 2), with what layer i reads times ``line``, (inputs,), if one is given."""
        before, stage = self.stages[i - 2], self.stages[i - 1]
        read = self._map(before.node, stage.layer.source)(made)
        if line is not None:
            read = read * across(stage.layer, line.to(read), read.ndim)
        return self._map(stage.layer.source, stage.node)(read)

    def _map(self, start: str, end: str) -> Between:
        """Return the map from what node ``start`` gives to what ``end`` gives, all else as it is.

        Raises UnsupportedArchitecture where ``end`` depends on the network's inputs in another way, too.
        """
        module, first, last = self._trace.module, self._nodes[start], self._nodes[end]
        behind = set(followers(module, [first.name])) - {first}
        needed = _ancestors(last)
        nodes = [node for node in module.graph.nodes if node in behind and node in needed]
        outside = [s for node in nodes for s in node.all_input_nodes if s not in behind and s is not first]
        fed = set(followers(module, [n.name for n in self._given if self._trace.placeholders[n.name].kind == "input"]))
        if last not in behind or any(node in fed for node in outside):
            raise UnsupportedArchitecture(f"what {end!r} gives does not depend on what {start!r} gives alone")
        before = set().union(*(_ancestors(node) for node in outside))
        with torch.no_grad(), exact_float32():
            constant = [node for node in module.graph.nodes if node in before]
            known = Reading(module, ()).part(constant, self._given, before)
        return Between(module, nodes, first, last, known, [node for node in self._shifts if node in known])


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Return a node and all that it depends on."""
    found = {node}
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
