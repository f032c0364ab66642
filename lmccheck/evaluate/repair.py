"""REPAIR of merged networks: it gives the hidden units of θ_t the means and deviations they ought to have.

Interpolation shrinks the variance of what hidden units do, layer after layer. REPAIR (Jordan et al. 2023,
arXiv 2211.08403) rescales and shifts every layer's output so that each unit's mean and standard deviation are those of
the endpoints, interpolated. A layer that a BatchNorm follows needs none of it: re-estimating the statistics does it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lmccheck.errors import SourceError
from lmccheck.evaluate.graph import GraphRunner, Look, Stop, even_batches, value_sizes
from lmccheck.evaluate.points import working_dtype
from lmccheck.network.network import Network
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.facts import evaluated_norm, result_of
from lmccheck.symmetry.sites import Layer, count_readers
from lmccheck.symmetry.trace import Trace

SOURCE = "REPAIR (Jordan et al. 2023, arXiv 2211.08403)"
STILL = 1e-7  # a unit whose deviation is a smaller share of its root mean square never varies


class UnitMoments:
    """Means and deviations of a layer's units over samples and positions, accumulated in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0  # Σ (y − mean)²

    def add(self, values: Tensor) -> UnitMoments:
        """Take a float64 matrix (samples and positions, units) in; return the moments of these values alone."""
        alone = UnitMoments()
        if len(values):
            variance, alone._mean = torch.var_mean(values, 0, correction=0)
            alone.count, alone._squares = len(values), variance * len(values)
            step = alone._mean - self._mean
            total = self.count + alone.count
            self._squares = self._squares + alone._squares + step**2 * (self.count * alone.count / total)
            self._mean = self._mean + step * (alone.count / total)
            self.count = total
        return alone

    @property
    def mean(self) -> Tensor:
        """The mean of each unit, float64 (units,)."""
        return torch.as_tensor(self._mean)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each unit, float64 (units,); exactly 0 for one that never varies."""
        variance = torch.as_tensor(self._squares) / max(1, self.count)
        return torch.where(variance > STILL**2 * (variance + self.mean**2), variance.sqrt(), 0.0)


class Repair:
    """REPAIR of the networks between θ_A and a θ_B, by what their layers do on the calibration data.

    Both endpoints are observed once, when this is made. Every merged network is then observed in one pass, in which
    each layer's output is at once given its target mean (1−t)·μ_A + t·μ_B and deviation (1−t)·σ_A + t·σ_B by its own
    batch's statistics, so that later layers see inputs that are mended already. The statistics of all batches together
    make the correction that is fused into the layer's weight and bias. BatchNorm layers are in training mode in all of
    these passes, since their statistics are taken afresh in what is merged; so near t = 0 nothing is left to correct.

    Raises SourceError without calibration data, or where it shows a hidden unit a single value.
    """

    def __init__(
        self,
        network: Network,
        derived: Traced,
        theta_a: Mapping[str, Tensor],
        theta_b: Mapping[str, Tensor],
        beside: Repair | None = None,
    ) -> None:
        if network.calibration is None:
            raise SourceError(
                f"pair {network.name}: repair = 'repair' needs calibration data and none is given; mend: give "
                "`calibration`, for example the training data, or use repair = 'bn'"
            )
        self.data = network.calibration
        self.tied = derived.trace.tied
        self.layers, self.left = repairable(derived)
        self.norms = live_norms(derived.trace)
        if beside is None:
            self.graph = GraphRunner.of(network, working_dtype(theta_a, theta_b), derived.trace)
            self.batches = even_batches(self.data, derived.trace, self._largest(derived.trace))
            self.a = self._observed(theta_a, "a")
        else:
            self.graph, self.batches, self.a = beside.graph, beside.batches, beside.a
        self.b = self._observed(theta_b, "b")

    def _largest(self, traced: Trace) -> Collection[str]:
        """Return the node with the largest of the values that are looked at: no more than one is held for long."""
        names = {layer.node for layer in self.layers} | {norm.node for norm in self.norms}
        sizes = value_sizes(traced, names)
        return {max(sizes, key=lambda name: sizes[name])} if sizes else set()

    def __call__(self, merged: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
        """Return ``merged`` = (1−t)·θ_A + t·θ_B with every layer's correction in its weight and bias.

        The ends are returned as they are. Tensors come back on the pair's device, in the working dtype.
        """
        weights = self.graph.weights(merged)
        if t == 0.0 or t == 1.0 or not self.layers:
            return weights
        units = {layer.node: layer.units for layer in self.layers}
        # what an endpoint never reaches, such as an expert that no sample goes to, has no target
        reached = [layer for layer in self.layers if self.a[layer.node].count and self.b[layer.node].count]
        targets = {layer.node: self._target(layer.node, t) for layer in reached}
        seen = {name: UnitMoments() for name in targets}

        def correct(name: str, value: Tensor) -> Tensor | None:
            if name not in targets:
                return None
            batch = seen[name].add(rows_of(value, units[name]))
            if batch.count < 2:  # the statistics of a single value would erase what it says: take all there were
                batch = seen[name]
            if batch.count < 2:
                return None
            scale, shift = (v.to(value.dtype) for v in correction(batch, *targets[name]))
            shape = [1] * value.ndim
            shape[units[name]] = -1
            return value * scale.view(shape) + shift.view(shape)

        self._run(weights, correct, f"{self.data.origin}, repairing the network at t = {t:.4g}")
        if not any(moments.count > 1 for moments in seen.values()):
            raise SourceError(
                f"{self.data.origin}: gives a hidden unit a single value, expected at least two; mend: give more "
                "samples"
            )
        for layer in reached:
            if seen[layer.node].count > 1:
                self._fuse(weights, layer, *correction(seen[layer.node], *targets[layer.node]))
        return weights

    def facts(self) -> dict[str, Any]:
        """Return which layers are repaired, which are left and why, and on how much data; JSON-able."""
        return {
            "source": SOURCE,
            "layers": [layer.weight for layer in self.layers],
            "left": dict(self.left),
            "samples": self.data.samples,
            "batches": len(self.batches),
        }

    def _target(self, node: str, t: float) -> tuple[Tensor, Tensor]:
        a, b = self.a[node], self.b[node]
        return torch.lerp(a.mean, b.mean, t), torch.lerp(a.deviation, b.deviation, t)

    def _observed(self, theta: Mapping[str, Tensor], which: str) -> dict[str, UnitMoments]:
        """Return what an endpoint's layers do."""
        found = {layer.node: UnitMoments() for layer in self.layers}
        units = {layer.node: layer.units for layer in self.layers}

        def see(name: str, value: Tensor) -> None:
            found[name].add(rows_of(value, units[name]))

        self._run(self.graph.weights(theta), see, f"{self.data.origin}, activations of {which}")
        return found

    def _run(self, weights: Mapping[str, Tensor], look: Look, where: str) -> None:
        """Show the layers' outputs on all of the calibration data to ``look``, BatchNorm layers in training mode."""
        if not self.layers:
            return
        ours = {layer.node for layer in self.layers}
        last = self.layers[-1].node
        norms = {norm.node: norm for norm in self.norms}
        read = {name: norm.node for norm in self.norms for name in norm.arguments}  # each name's last reader
        for batch in self.batches:
            held: dict[str, Tensor] = {}

            def see(name: str, value: Tensor, held: dict[str, Tensor] = held) -> Tensor | None:
                given = look(name, value) if name in ours else norms[name](held) if name in norms else None
                if name == last:
                    raise Stop
                if name in read:
                    held[name] = value if given is None else given
                if name in norms:
                    for argument in norms[name].arguments:
                        if read[argument] == name:
                            held.pop(argument, None)
                return given

            self.graph.run(weights, batch.inputs, ours | norms.keys() | read.keys(), see, where)

    def _fuse(self, weights: dict[str, Tensor], layer: Layer, scale: Tensor, shift: Tensor) -> None:
        """Make a layer's weight and bias give scale·y + shift in place of y; every name of a tied tensor gets it."""
        assert layer.bias is not None  # repairable leaves the others
        shape = [1] * weights[layer.weight].ndim
        shape[layer.out] = -1
        for stored, factor, offset in ((layer.weight, scale.view(shape), 0.0), (layer.bias, scale, shift)):
            old = weights[stored]
            new = (old.double() * factor + offset).to(old.dtype)
            weights.update({name: new for name in weights if self.tied.get(name, name) == stored})


def rows_of(value: Tensor, units: int) -> Tensor:
    """Return a layer's output as a float64 matrix (samples and positions, units)."""
    return value.movedim(units, -1).reshape(-1, value.shape[units]).double()


def correction(moments: UnitMoments, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, float64 (units,), that give units a mean and a deviation; no scale to still ones."""
    varies = moments.deviation > 0
    scale = torch.where(varies, deviation / torch.where(varies, moments.deviation, 1.0), 1.0)
    return scale, mean - scale * moments.mean


def repairable(derived: Traced) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the layers that REPAIR can mend, and for each of the others, by its weight, why it is left."""
    readers = count_readers(derived.trace)
    kept, left = [], {}
    for layer in derived.layers:
        reason = _why_left(layer, derived, readers)
        if reason is None:
            kept.append(layer)
        else:
            left[layer.weight] = reason
    return tuple(kept), left


def _why_left(layer: Layer, derived: Traced, readers: Mapping[str, int]) -> str | None:
    if readers[layer.weight] > 1:
        return "its weight is used more than once"
    if layer.out not in derived.spec.layouts.get(layer.weight, {}):
        return "its units are outputs of the network, or frozen"
    if layer.norm is not None:
        return "a BatchNorm follows, whose statistics are re-estimated"
    if layer.bias is None:
        return "it has no bias, so the mean cannot be set"
    return "its bias is used more than once" if readers[layer.bias] > 1 else None


@dataclass(frozen=True)
class LiveNorm:
    """A BatchNorm of the graph, to be run as in training; ``node`` is where its result is seen."""

    node: str
    source: str
    weight: str | None
    bias: str | None
    epsilon: float

    @property
    def arguments(self) -> tuple[str, ...]:
        """The nodes whose values it takes."""
        return tuple(name for name in (self.source, self.weight, self.bias) if name is not None)

    def __call__(self, held: Mapping[str, Tensor]) -> Tensor:
        """Return the normalised values, by the statistics of the batch."""
        weight, bias = (held[name] if name is not None else None for name in (self.weight, self.bias))
        return torch.batch_norm(held[self.source], weight, bias, None, None, True, 0.0, self.epsilon, False)


def live_norms(traced: Trace) -> tuple[LiveNorm, ...]:
    """Return the graph's BatchNorms in order; one that uses its batch's statistics anyway needs nothing."""
    return tuple(norm for node in traced.graph.nodes if node.op == "call_function" for norm in _live_norm(node))


def _live_norm(node: fx.Node) -> Iterator[LiveNorm]:
    arguments: list[Any] = list(node.args)
    facts = evaluated_norm(node.target, arguments)
    if facts is None:
        return
    seen = result_of(node)
    names = [argument.name if isinstance(argument, fx.Node) else None for argument in arguments[:3]]
    if seen is not None and names[0] is not None:
        yield LiveNorm(seen.name, names[0], names[1], names[2], float(arguments[facts.epsilon]))
