"""Gaussian noise put into what layers read, and how much of it is left further on (Arora et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmccheck.evaluate.graph import GraphRunner, Reading, running
from lmccheck.evaluate.masked import Wrapping
from lmccheck.network.loss import Loss, measured
from lmccheck.store.data import Batch
from lmccheck.symmetry.sites import Layer

if TYPE_CHECKING:
    from lmccheck.network.network import Network

Readers = Mapping[str, Mapping[str, Tensor]]  # per unit group: by weight, the positions of its units in what is read


class NoiseRuns:
    """Runs a network on one batch with Gaussian noise in a group's activations, and compares what follows.

    The noise is put into what the layers that own the group's outgoing weights read, per sample with
    ‖η‖ = size·‖x‖ exactly; layers that read one value get one noise.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], readers: Readers, batch: Batch, dtype: torch.dtype
    ) -> None:
        self.layers = tuple(layers)
        self.readers = readers
        self.batch = batch
        self.loss: Loss = network.loss
        self.graph = GraphRunner.of(network, dtype)
        self.where = f"{network.data.origin}, with noise in the activations"
        self._wrap = Wrapping(self.graph.runner)

    def profile(self, weights: Mapping[str, Tensor], size: float, seed: int) -> dict[str, dict[str, Any]]:
        """Return, per group that gets noise, what it does; JSON-able.

        ``loss_change``: of the mean loss. ``output_error`` and ``errors`` (per other group that the noise reaches): the
        relative squared error ‖Δ‖²/‖M(x)‖²; ``output_attenuation`` and ``attenuation``: ψ, the same over ‖η‖²/‖x‖². All
        are means over samples, without those where the clean value is zero.
        """
        state = self.graph.weights(weights)
        clean, clean_output, clean_loss = self._run(state, {}, None)
        found: dict[str, dict[str, Any]] = {}
        for number, group in enumerate(self.readers):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            noisy, output, loss = self._run(state, self.readers[group], (size, generator))
            others = [other for other in noisy if other != group]
            errors = {other: _relative(clean[other], noisy[other]) for other in others}
            reached = {other: error for other, error in errors.items() if error > 0}
            output_error = _relative(clean_output, output)
            scale = size**2 if size else 1.0
            found[group] = {
                "loss_change": loss - clean_loss,
                "output_error": output_error,
                "output_attenuation": output_error / scale,
                "errors": reached,
                "attenuation": {other: error / scale for other, error in reached.items()},
            }
        return found

    def _run(
        self, state: Mapping[str, Tensor], noisy: Mapping[str, Tensor], noise: tuple[float, torch.Generator] | None
    ) -> tuple[dict[str, Tensor], Tensor, float]:
        """Return each group's activations where they are read first, the output, and the mean loss."""
        seen: dict[str, Tensor] = {}
        drawn: dict[str, Tensor] = {}
        places = {weight: (group, where) for group, by in self.readers.items() for weight, where in by.items()}

        def edit(layer: Layer, value: Tensor) -> Tensor:
            dim = -1 if layer.window is None else 1
            if noise is not None and layer.weight in noisy:
                if layer.source not in drawn:
                    drawn[layer.source] = _noise(value, dim, noisy[layer.weight].to(value.device), *noise)
                value = value + drawn[layer.source]
            if layer.weight in places:
                group, where = places[layer.weight]
                seen.setdefault(group, value.index_select(dim, where.to(value.device)))
            return value

        traced, given = self.graph.prepared(state, self.batch.inputs, [layer.node for layer in self.layers], self.where)
        nodes = list(traced.graph.nodes)
        with running(self.where):
            output: Tensor = Reading(traced.module, self.layers, edit).part(nodes, given, nodes[-1:])[nodes[-1]][0]
        returned = self._wrap(output, self.batch.inputs, self.where)
        losses, _ = measured(self.loss, returned, self.graph.runner.cast(self.batch.targets), self.where)
        return seen, output, float(losses.mean())


def _noise(value: Tensor, dim: int, units: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Return noise for some units of a value, size·‖x‖ long for every sample's x, and zero elsewhere."""
    part = value.index_select(dim, units)
    drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(value)
    length = part.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
    scaled = drawn * (size * length).reshape(-1, *[1] * (value.ndim - 1))
    return torch.zeros_like(value).index_copy(dim, units, scaled)


def _relative(clean: Tensor, noisy: Tensor) -> float:
    """Return the mean over samples of ‖noisy − clean‖²/‖clean‖², without samples where clean is zero."""
    before = clean.double().flatten(1).square().sum(1)
    change = (noisy.double() - clean.double()).flatten(1).square().sum(1)
    alive = before > 0
    return float((change[alive] / before[alive]).mean()) if bool(alive.any()) else 0.0
