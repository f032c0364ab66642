"""Transport: optimal transport between the neurons of each layer, in the norm of the activations they read.

Ferbach et al. 2024: layer by layer, Π_ℓ = argmin ‖W_A − Π·W_B·Π_{ℓ−1}ᵀ‖² with ‖W‖² = tr(W·Σ_{ℓ−1}·Wᵀ) and
Σ_{ℓ−1} = E[φφᵀ] the uncentred second moment of what the layer reads in A; biases by the constant 1 among the inputs.
This is the empirical W₂² between both layers' neurons in that norm, and with equally many of them its optimal plan is a
permutation. Solved with POT. Differs from the authors' code in that biases count, BatchNorm is taken with its layer,
and groups inside units (head dimensions) are assigned along with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import ot  # type: ignore[import-untyped]  # POT ships without types
import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.assignment import Assignment, assign
from lmccheck.alignment.matching.norms import counted, merged_norms
from lmccheck.alignment.matching.reassign import nested_groups, reassign
from lmccheck.alignment.matching.similarity import Counts, WeightSimilarity
from lmccheck.alignment.methods.weight_matching import sharing
from lmccheck.evaluate.graph import GraphRunner, even_batches
from lmccheck.evaluate.points import working_dtype
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

WIDEST = 4608  # inputs of a layer whose second moment is taken; wider ones are matched by their weights
PATCHES = 20_000  # windows of a convolution, per batch, that its second moment is taken over
SAMPLES = 2_048
SWEEPS = 20


def match_transport(problem: Problem, *, outgoing: bool = False) -> Found:
    """Return the permutation that the layerwise recursion finds.

    With ``outgoing`` groups are then reassigned in turn, outgoing weights taken into account in the same norm, until
    none improves. ``facts`` hold, per group, the transport cost W₂² per unit, and per layer the approximate dimension
    tr(S)²/tr(S²) of the matched cloud, S = W·Σ·Wᵀ, on which the rate of convergence depends. Needs calibration data.
    """
    method = "transport-both" if outgoing else "transport"
    pair, spec = problem.pair, problem.spec
    derived = problem.traced(method)
    moments = second_moments(problem, method)
    layers = [layer for layer in derived.layers if layer.node in moments]
    a, b = (merged_norms(counted(spec, w), w, derived.layers) for w in (pair.theta_a, pair.theta_b))
    weigh = partial(_weighed, layers=layers, moments=moments)
    weighed = weigh(a)
    costs: dict[str, float] = {}
    permutation = _recursion(spec, a, b, weigh, costs)
    if outgoing:
        permutation = _both_ways(spec, weighed, b, permutation, problem.seed)
    objective = WeightSimilarity(spec, weighed, b, permutation).objective()
    dimensions = {layer.weight: _dimension(a, weighed, layer) for layer in layers if layer.weight in a}
    matched = {layer.weight for layer in layers}
    facts = {
        "transport_cost": costs,
        "approximate_dimension": dimensions,
        "plain_norm": sorted(name for name in a if a[name].ndim > 1 and name not in matched),
        "outgoing": outgoing,
    }
    return Found(permutation, objective, facts)


def second_moments(problem: Problem, method: str) -> dict[str, Tensor]:
    """Return, per layer of A, E[xxᵀ] of what it reads with a constant 1 appended: (d + 1, d + 1) float64."""
    pair, derived = problem.pair, problem.traced(method)
    data = problem.calibration(method)
    uses = [layer.weight for layer in derived.layers]
    wanted = [
        layer
        for layer in derived.layers
        if uses.count(layer.weight) == 1 and layer.groups == 1 and _reads(layer, problem.spec.shapes) <= WIDEST
    ]
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    shapes = problem.spec.shapes

    def look(name: str, value: Tensor) -> None:
        for layer in wanted:
            if layer.source == name:
                rows = torch.cat([x := windows(layer, value, shapes[layer.weight]), x.new_ones(len(x), 1)], 1)
                moment = (rows.T @ rows).double().cpu()
                totals[layer.node] = totals[layer.node] + moment if layer.node in totals else moment
                counts[layer.node] = counts.get(layer.node, 0) + len(rows)

    watched = {layer.source for layer in wanted}
    graph = GraphRunner(pair.module, pair.torch_device, working_dtype(pair.theta_a, pair.theta_b))
    theta_a = graph.weights(pair.theta_a)
    for batch in even_batches(data, derived.trace, watched, SAMPLES):
        graph.run(theta_a, batch.inputs, watched, look, f"{data.origin}, inputs of layers of a")
    return {node: total / counts[node] for node, total in totals.items()}


def _reads(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> int:
    shape = shapes[layer.weight]
    return prod(n for dim, n in enumerate(shape) if dim != layer.out)


def windows(layer: Layer, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the inputs of a layer as rows (samples, d); of a convolution evenly spaced windows, at most PATCHES."""
    if layer.window is None:
        return value.reshape(-1, value.shape[-1])
    kernel = shape[2:]
    flat = value.unsqueeze(0) if value.ndim == len(kernel) + 1 else value
    if len(kernel) == 1:
        flat, kernel = flat.unsqueeze(-2), (1, *kernel)
    stride, padding, dilation = (_pair(setting, len(shape) - 2, k) for k, setting in enumerate(layer.window))
    each = max(1, PATCHES // max(1, flat.shape[-1] * flat.shape[-2] // prod(stride)))
    flat = flat[:: max(1, len(flat) // each)]
    return F.unfold(flat, tuple(kernel), dilation, padding, stride).transpose(1, 2).flatten(0, 1)


def _pair(setting: Any, dims: int, which: int) -> tuple[int, int]:
    """Return a convolution's setting for two dimensions; stride and dilation are 1, padding 0, where it has one."""
    several = list(setting) if isinstance(setting, (list, tuple)) else [setting] * dims
    several = several * dims if len(several) == 1 else several
    first, *rest = several
    return (first, rest[0]) if rest else ((0 if which == 1 else 1), first)


def _weighed(a: Mapping[str, Tensor], layers: Sequence[Layer], moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return W·Σ for every layer's weights and bias; other tensors by the mean over their further positions."""
    result = {name: tensor.double() for name, tensor in a.items()}
    in_layer = {name for layer in layers for name in (layer.weight, _shift(layer, a)) if name}
    for name, tensor in a.items():
        if name not in in_layer and tensor.ndim > 1:
            result[name] = tensor.double() / (tensor.numel() / max(tensor.shape))
    for layer in layers:
        if layer.weight not in a:
            continue
        weight = a[layer.weight].double().movedim(layer.out, 0)
        shift = _shift(layer, a)
        bias = a[shift].double() if shift else torch.zeros(len(weight), dtype=torch.float64)
        product = torch.cat([weight.reshape(len(weight), -1), bias[:, None]], 1) @ moments[layer.node]
        result[layer.weight] = product[:, :-1].reshape(weight.shape).movedim(0, layer.out)
        if shift:
            result[shift] = product[:, -1]
    return result


def _shift(layer: Layer, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name under which a layer's bias counts: its own, or that of the BatchNorm taken with it."""
    name = layer.norm.bias if layer.norm is not None and layer.norm.bias in tensors else layer.bias
    return name if name in tensors else None


def _recursion(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    weigh: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    costs: dict[str, float],
) -> Permutation:
    """Place groups in the network's order by their incoming weights; fill in the transport cost of each."""
    weighed = weigh(a)
    state = WeightSimilarity(spec, weighed, b, spec.identity())

    on_tensor = sharing(spec)
    done: set[str] = set()
    for group in spec.groups:
        if group.name in done:
            continue
        nested = {child.name for child in nested_groups(spec, group)}
        placed = done | nested | {group.name, *group.within}

        known = any(s.role == "producer" and s.tensor in a and on_tensor[s.tensor] <= placed for s in group.slots)

        def incoming(slot: Slot, placed: set[str] = placed, known: bool = known) -> bool:
            """Weights that make the group from what has been placed; all that make it where there are none such."""
            return slot.role == "producer" and (not known or on_tensor[slot.tensor] <= placed)

        blocks = state.blocks(group, incoming)
        step = reassign(spec, group, state.permutation, state.units(group, incoming), blocks, by_transport)
        done |= {group.name, *nested}
        state.move(group, step.permutation, step.relative)
        if not blocks:
            names = {slot.tensor for slot in group.slots if incoming(slot) and slot.tensor in a}
            moved = {name: state.current(name) for name in names}
            rows = zip((a, moved, a), (weighed, weigh(moved), weigh(moved)), (1, 1, -2), strict=True)
            costs[group.name] = sum(factor * _product(group, incoming, x, y) for x, y, factor in rows)
    return state.permutation


def _product(group: UnitGroup, counts: Counts, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    """Return Σ ⟨x, y⟩ over the slots of a group that count, a unit's mean."""
    total = sum(
        float((slot.units(x[slot.tensor]).double() * slot.units(y[slot.tensor])).sum())
        for slot in group.slots
        if counts(slot) and slot.tensor in x
    )
    return total / (group.size * group.copies)


def by_transport(similarity: Tensor) -> Assignment:
    """Return the permutation p that maximises Σ_u similarity[u, p[u]], as an optimal transport plan.

    Equivalent to ``assign``: between equally many equal masses an optimal plan is a permutation (Birkhoff).
    """
    table = similarity.double().cpu().numpy()
    uniform = np.full(len(table), 1 / len(table))
    plan = ot.emd(uniform, uniform, table.max() - table, numItermax=10_000_000)
    order = torch.from_numpy(plan.argmax(1))
    if not torch.equal(
        order.sort().values, torch.arange(len(order))
    ):  # ties may be returned as a mixture of permutations
        return assign(similarity)
    return Assignment(order, float(table[np.arange(len(table)), order.numpy()].sum()), 0.0, "POT")


def _both_ways(
    spec: PermutationSpec, weighed: Mapping[str, Tensor], b: Mapping[str, Tensor], start: Permutation, seed: int
) -> Permutation:
    """Reassign groups in turn, outgoing weights included, until none improves or SWEEPS have passed."""
    state = WeightSimilarity(spec, weighed, b, start)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(SWEEPS):
        moved = False
        for k in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[k]
            step = reassign(spec, group, state.permutation, state.units(group), state.blocks(group))
            if state.gain(group, step.permutation, step.gain) > 1e-9 * (1 + abs(step.gain)):
                state.move(group, step.permutation, step.relative)
                moved = True
        if not moved:
            break
    return state.permutation


def _dimension(a: Mapping[str, Tensor], weighed: Mapping[str, Tensor], layer: Layer) -> float:
    """Return tr(S)²/tr(S²) of S = W·Σ·Wᵀ."""
    left, right = (x[layer.weight].double().movedim(layer.out, 0).flatten(1) for x in (a, weighed))
    s = left @ right.T
    return float(s.trace() ** 2 / (s * s.T).sum().clamp(min=1e-300))
