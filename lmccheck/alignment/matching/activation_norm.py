"""The norm of the activations that layers read: ‖W‖² = tr(W·Σ·Wᵀ), Σ the second moment of a layer's inputs in A.

Of two units it is the mean square of what their incoming weights make of the same inputs (Ferbach et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.evaluate.graph import GraphRunner, even_batches, finite
from lmccheck.evaluate.layer_data import unrolled
from lmccheck.evaluate.points import working_dtype
from lmccheck.network.endpoint import Endpoint
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Layer

WIDEST = 4608  # inputs of a layer whose second moment is taken; wider ones are matched by their weights
PATCHES = 20_000  # windows of a convolution, per batch, that its second moment is taken over
WINDOWS = 40_000  # and over all batches


@dataclass(frozen=True)
class ActivationNorm:
    """Weighs tensors by Σ: ``moments`` of what layers read, by the layer's node, with a constant 1 for biases."""

    layers: tuple[Layer, ...] = field(repr=False)
    moments: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, layers: Iterable[Layer], moments: Mapping[str, Tensor]) -> ActivationNorm:
        """Return the norm by those of the layers that have moments."""
        return cls(tuple(layer for layer in layers if layer.node in moments), moments)

    def weigh(self, tensors: Mapping[str, Tensor], unit_dims: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """Return W·Σ for every layer's weights and bias, float64; other matrices by the mean over what a unit owns.

        ``unit_dims``: the dimension of a tensor that holds the units, by default its largest.
        """
        result = {name: tensor.double() for name, tensor in tensors.items()}
        for name, tensor in result.items():
            if tensor.ndim > 1:
                units = max(tensor.shape) if unit_dims is None else tensor.shape[unit_dims[name]]
                result[name] = tensor / max(1, tensor.numel() // max(1, units))
        for layer in self.layers:
            if layer.weight not in tensors:
                continue
            weight = tensors[layer.weight].double().movedim(layer.out, 0)
            shift = _shift(layer, tensors)
            bias = tensors[shift].double() if shift else weight.new_zeros(len(weight))
            product = torch.cat([weight.reshape(len(weight), -1), bias[:, None]], 1) @ self.moments[layer.node]
            result[layer.weight] = product[:, :-1].reshape(weight.shape).movedim(0, layer.out)
            if shift:
                result[shift] = product[:, -1]
        return result

    def plain(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return the matrices that have no Σ: they are compared in the plain norm."""
        weighed = {layer.weight for layer in self.layers}
        return sorted(name for name, tensor in tensors.items() if tensor.ndim > 1 and name not in weighed)


def _shift(layer: Layer, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name under which a layer's bias counts: its own, or that of the BatchNorm taken with it."""
    name = layer.norm.bias if layer.norm is not None and layer.norm.bias in tensors else layer.bias
    return name if name in tensors else None


@dataclass(frozen=True)
class SecondMoments:
    """Per layer's node, E[xxᵀ] of what it reads with a constant 1 appended, (d + 1, d + 1) float64.

    ``samples`` says how many samples each is of (of a convolution, how many's windows were taken), ``weights`` under
    which weight; ``total`` is how many samples there were.
    """

    moments: dict[str, Tensor] = field(repr=False)
    samples: dict[str, int]
    weights: dict[str, str]
    total: int

    def facts(self) -> dict[str, Any]:
        """Return how many samples the moments are of, the fewest of any layer's, and of each layer where not all."""
        fewer = {self.weights[node]: n for node, n in self.samples.items() if n < self.total}
        facts: dict[str, Any] = {"second moments": min(self.samples.values(), default=self.total)}
        return {**facts, "layers": fewer} if fewer else facts


def second_moments(end: Endpoint, derived: Traced, data: Data) -> SecondMoments:
    """Return the second moments of what an endpoint's layers read, from one pass over all of the data.

    Convolutions have many windows a sample: about WINDOWS of them are taken, from samples evenly spread over the data,
    and from one sample of every batch at least.
    """
    shapes = derived.spec.shapes
    uses = [layer.weight for layer in derived.layers]
    wanted = [
        layer
        for layer in derived.layers
        if uses.count(layer.weight) == 1 and layer.groups == 1 and _reads(layer, shapes) <= WIDEST
    ]
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    samples: dict[str, int] = {}

    def look(name: str, value: Tensor) -> None:
        for layer in wanted:
            if layer.source == name:
                few = value if layer.window is None else spread(layer, value, shapes[layer.weight], most)
                rows = torch.cat([x := windows(layer, few, shapes[layer.weight]), x.new_ones(len(x), 1)], 1)
                moment = (rows.T @ rows).double().cpu()
                if not bool(moment.isfinite().all()):  # squares of large numbers overflow before float64 does
                    moment = (wide := finite(rows, f"{where} (layer {layer.weight})").double()).T @ wide
                totals[layer.node] = totals[layer.node] + moment if layer.node in totals else moment
                counts[layer.node] = counts.get(layer.node, 0) + len(rows)
                taken = current if few is value else len(few)
                samples[layer.node] = samples.get(layer.node, 0) + taken

    where = f"{data.origin}, inputs of layers of a"
    watched = {layer.source for layer in wanted}
    graph = GraphRunner.of(end.network, working_dtype(end.theta), derived.trace)
    theta = graph.weights(end.theta)
    batches = even_batches(data, derived.trace, watched)
    most = max(1, min(PATCHES, WINDOWS // len(batches)))
    for batch in batches:
        current = batch.samples
        graph.run(theta, batch.inputs, watched, look, where)
    found = {node: total / counts[node] for node, total in totals.items()}
    return SecondMoments(found, samples, {layer.node: layer.weight for layer in wanted}, data.samples)


def _reads(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> int:
    shape = shapes[layer.weight]
    return prod(n for dim, n in enumerate(shape) if dim != layer.out)


def spread(layer: Layer, value: Tensor, shape: Sequence[int], most: int) -> Tensor:
    """Return evenly spaced samples of what a convolution reads, as many as have about ``most`` windows."""
    assert layer.window is not None  # what a linear layer reads is taken whole
    kernel = shape[2:]
    value = value.unsqueeze(0) if value.ndim == len(kernel) + 1 else value
    views = unrolled(value[:1], kernel, layer.window)
    each = max(1, most // max(1, prod(views.shape[1 : 1 + len(kernel)])))
    return value[:: max(1, len(value) // each)]


def windows(layer: Layer, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the inputs of a layer as rows (samples, d); of a convolution its windows."""
    if layer.window is None:
        return value.reshape(-1, value.shape[-1])
    views = unrolled(value, shape[2:], layer.window)  # (n, *places, channels, *kernel)
    return views.reshape(-1, prod(views.shape[len(shape) - 1 :]))
