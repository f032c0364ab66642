"""What layers read and give on calibration data, row by row: the regressors and targets of a refit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.evaluate.graph import GraphRunner
from lmccheck.evaluate.regression import Moments
from lmccheck.evaluate.split import Split
from lmccheck.evaluate.stepwise import Stepwise
from lmccheck.network.network import Network
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.structure import Structure

Key = tuple[str, str]  # a weight and a group whose units its layers read
ROWS = 1 << 15  # rows per layer, of both parts together: positions of samples beyond it are left out
TARGETS = 1 << 27  # numbers of targets that are kept, over all layers: 512 MB in float32


class LayerData:
    """Layers of one network on the two parts of a split; what the original gives is kept as the target of refits."""

    def __init__(
        self,
        network: Network,
        structure: Structure,
        layers: Sequence[Layer],
        parts: Split,
        dtype: torch.dtype,
    ) -> None:
        self.graph = GraphRunner.of(network, dtype, structure.trace)
        self.layers = {layer.node: (k, layer) for k, layer in enumerate(layers)}
        self.parts, self.shapes = parts, structure.shapes
        self.batches = [(batch, True) for batch in parts.fit] + [(batch, False) for batch in parts.held]
        outputs = sum(self.shapes[layer.weight][layer.out] for layer in layers)
        self._most = max(1, min(ROWS, TARGETS // max(1, outputs)) // len(self.batches))  # rows of a batch and layer
        self._targets: dict[tuple[str, int], Tensor] = {}

    def keep_targets(self, weights: Mapping[str, Tensor]) -> None:
        """Keep what every layer gives with the original weights."""
        held, where = self.graph.weights(weights), f"{self.parts.origin}, what the layers give"
        for number, (batch, _) in enumerate(self.batches):

            def look(name: str, value: Tensor, number: int = number) -> None:
                _, layer = self.layers[name]
                rows = value.movedim(layer.units, -1).reshape(-1, value.shape[layer.units])
                self._targets[name, number] = rows[self._pick(name, number, len(rows))].clone()

            self.graph.run(held, batch.inputs, self.layers, look, where)

    def second_moments(
        self, weights: Mapping[str, Tensor], units: Mapping[Key, tuple[Sequence[Layer], Tensor]]
    ) -> dict[Key, Moments]:
        """Return second moments of what is read on what is fitted to, with the original weights.

        ``units``: per key, layers and where (units, numbers) the units lie in what they read; ``xx`` sums, over
        samples, positions and numbers of a unit, products of units.
        """
        found = {key: Moments() for key in units}
        readers: dict[str, list[tuple[Key, Layer, Tensor]]] = {}
        for key, (several, positions) in units.items():
            for layer in several:
                readers.setdefault(layer.source, []).append((key, layer, positions))
        held, where = self.graph.weights(weights), f"{self.parts.origin}, what the layers read"
        for number, (batch, fitted) in enumerate(self.batches):

            def look(name: str, value: Tensor, number: int = number) -> None:
                for key, layer, positions in readers[name]:
                    rows = value.movedim(1 if layer.window is not None else -1, -1)
                    rows = rows.reshape(-1, rows.shape[-1])
                    few = rows[self._pick(layer.node, number, len(rows))]
                    seen = few[:, positions.to(few.device)].movedim(2, 1).reshape(-1, len(positions))
                    seen = seen[:: 1 + len(seen) * len(self.batches) // (2 * ROWS)]
                    found[key].add(seen, seen[:, :0])

            if fitted:
                self.graph.run(held, batch.inputs, readers, look, where)
        return found

    def run(self) -> Stepwise:
        """Return a run of all batches from the start, for one network that is refitted layer by layer."""
        return Stepwise(self.graph, [batch for batch, _ in self.batches], f"{self.parts.origin}, what a layer reads")

    def moments(
        self, run: Stepwise, weights: Mapping[str, Tensor], layers: Sequence[Layer], reads: Tensor, outs: Tensor
    ) -> tuple[Moments, Moments]:
        """Return moments, of both parts, of the inputs ``reads`` of all layers of one weight under ``weights``.

        They are taken with the layers' original outputs. ``run`` goes from layer to layer. Regressors are in the order
        of ``weight.movedim(out, 0).flatten(1)``, restricted to ``reads``, a convolution's windows unrolled; targets are
        the output units ``outs``.
        """
        found = Moments(), Moments()
        for layer in layers:
            for x, target, fitted in self.rows(run, weights, layer, reads, outs):
                found[0 if fitted else 1].add(x, target)
        return found

    def rows(
        self, run: Stepwise, weights: Mapping[str, Tensor], layer: Layer, reads: Tensor, outs: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield, per batch, the rows ``moments`` sums over, (rows, k) and (rows, o), and whether they are fitted to."""
        for number, value in run.inputs(weights, layer):
            x = self._rows(layer, number, value, reads)
            target = self._targets[layer.node, number]
            yield x, target[:, outs.to(target.device)], self.batches[number][1]

    def _rows(self, layer: Layer, number: int, value: Tensor, reads: Tensor) -> Tensor:
        """Return the picked rows of what a layer reads, (rows, regressors)."""
        if layer.window is None:
            rows = value.reshape(-1, value.shape[-1])
            return rows[self._pick(layer.node, number, len(rows))].index_select(1, reads.to(value.device))
        shape = self.shapes[layer.weight]
        windows = unrolled(value.index_select(1, reads.to(value.device)), shape[2:], layer.window)
        places = windows.shape[: len(shape) - 1]
        picked = self._pick(layer.node, number, int(torch.Size(places).numel())).to(value.device)
        return windows[torch.unravel_index(picked, places)].flatten(1)

    def _pick(self, node: str, number: int, rows: int) -> Tensor:
        """Return which rows of a batch are looked at: the same ones in every pass."""
        if rows <= self._most:
            return torch.arange(rows)
        generator = torch.Generator().manual_seed(1_000_003 * self.layers[node][0] + number)
        return torch.randperm(rows, generator=generator)[: self._most]


def unrolled(value: Tensor, kernel: Sequence[int], window: tuple[Any, Any, Any]) -> Tensor:
    """Return a convolution's windows, (n, channels, *space) -> (n, *places, channels, *kernel), as a view.

    Equivalent to ``torch.nn.functional.unfold``; differs in the order of dimensions, and works in one to three of them.
    """
    dims = len(kernel)
    stride, padding, dilation = ([v] * dims if isinstance(v, int) else _full(list(v), dims) for v in window)
    value = F.pad(value, [p for side in reversed(padding) for p in (side, side)])
    for d in range(dims):
        reach = dilation[d] * (kernel[d] - 1) + 1
        value = value.unfold(2 + d, reach, stride[d])[..., :: dilation[d]]
    return value.movedim(1, 1 + dims)


def _full(several: list[int], dims: int) -> list[int]:
    return several * dims if len(several) == 1 else several
