"""Which layers carry a barrier: what it costs to move one of them alone to where a line is worst."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lmccheck.evaluate.box import layers_by_name
from lmccheck.evaluate.segment import Segment
from lmccheck.store.tensors import equal

MOST = 11  # layers that are moved one at a time; of more, as many parts of the network


def layer_costs(between: Segment, t: float, *, from_a: bool) -> dict[str, float]:
    """Return by layer L(θ with that layer as at t) − L(θ), for θ the segment's end at a (``from_a``) or at b.

    A layer is what has one prefix of names; those that are equal at both ends are left out, and where there are more
    than MOST, neighbours are moved together. Each is one evaluation, and θ one more. BatchNorm is re-estimated as on
    the segment. Source: Adilova et al. 2024, layer-wise linear mode connectivity.
    """
    start = between.first if from_a else between.second
    point, layer_of = between.weights(t), layers_by_name(between.evaluator.network.module)
    layers: dict[str, list[str]] = {}
    for name, tensor in between.first.items():
        if tensor.is_floating_point() and not equal(tensor, between.second[name]):
            layers.setdefault(layer_of[name], []).append(name)

    def loss(moved: Sequence[str], label: str) -> float:
        weights = {name: point[name] if name in moved else tensor for name, tensor in start.items()}
        return between.evaluator.measure(weights, reestimate=between.reestimates, label=label).loss

    own = loss((), "an end of the line")
    parts = _parts(list(layers))
    return {
        label: loss([name for layer in part for name in layers[layer]], f"{label} moved alone") - own
        for label, part in parts.items()
    }


def _parts(layers: list[str]) -> dict[str, list[str]]:
    """Return at most MOST runs of neighbouring layers, by what they are called."""
    count = min(MOST, len(layers))
    edges = [round(k * len(layers) / count) for k in range(count + 1)] if count else []
    runs = [layers[first:last] for first, last in pairwise(edges)]
    return {run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}": run for run in runs}
