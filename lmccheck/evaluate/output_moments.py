"""Second moments of what layers give on data, seen in one pass: no weights are multiplied, no windows unrolled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmccheck.data.load import Data
from lmccheck.data.trees import input_tensors
from lmccheck.evaluate.graph import GraphRunner, even_batches
from lmccheck.evaluate.points import working_dtype
from lmccheck.network.endpoint import Endpoint
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.trace import Trace

SHAPES = 8  # for each of which a network is traced anew


def output_moments(end: Endpoint, traced: Trace, layers: Sequence[Layer], data: Data) -> tuple[dict[str, Tensor], int]:
    """Return, by a layer's node, E[(y, 1)(y, 1)ᵀ] of its outputs y over samples and positions, (units + 1)² float64.

    All of the data is run, save batches of a user's own that come in more than SHAPES shapes; on how many samples is
    returned, too. A layer that no sample reaches is left out. Raises as ``GraphRunner.run`` does.
    """
    units = {layer.node: layer.units for layer in layers}
    totals: dict[str, Tensor] = {}

    def look(name: str, value: Tensor) -> None:
        rows = value.movedim(units[name], -1).reshape(-1, value.shape[units[name]]).double()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        moment = (rows.T @ rows).cpu()
        totals[name] = totals[name] + moment if name in totals else moment

    graph = GraphRunner.of(end.network, working_dtype(end.theta), traced)
    theta = graph.weights(end.theta)
    shapes: set[tuple[torch.Size, ...]] = set()
    samples = 0
    for batch in even_batches(data, traced, units):
        shape = tuple(tensor.shape for tensor in input_tensors(batch.inputs))
        if shape not in shapes and len(shapes) == SHAPES:
            continue
        shapes.add(shape)
        samples += batch.samples
        graph.run(theta, batch.inputs, units, look, f"{data.origin}, outputs of layers of a")
    # the last number is how many rows there were
    return {node: total.div_(float(total[-1, -1])) for node, total in totals.items() if total[-1, -1]}, samples
