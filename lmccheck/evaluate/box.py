"""The box between two endpoints: the networks in which each layer has a coefficient of its own, and their losses."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from torch import Tensor, nn

from lmccheck.errors import LmcError, nearest
from lmccheck.evaluate.batchnorm import reestimated_names
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.points import interpolate
from lmccheck.modules.constants import COUNTER
from lmccheck.modules.stored import overlapping_names, stored_tensors, tied_names
from lmccheck.network.pair import ModelPair
from lmccheck.store.tensors import equal, place

HELD = 1 << 22  # losses of samples that are kept, over all points: 32 MB; means are kept of every point


class Box:
    """The networks θ(c) between θ_A and θ_B, in which layer l is (1−c_l)·θ_A,l + c_l·θ_B,l, and what each loses.

    ``theta_b``: θ_B as it is to be met, aligned or not; the pair's own by default. A layer is what one module holds
    itself, parameters and buffers, see ``layers_by_name``. ``layers`` are those in which the ends differ, in the
    order of the state dict. A layer that has no coefficient stays θ_A's. c = (t, …, t) is the point t of the line.

    With ``reestimate`` BatchNorm statistics are taken afresh on calibration data at every point, corners included, as
    on lines. A point is measured once: the same coefficients always have the same loss. Raises SourceError where
    statistics are to be taken and there is nothing to take them on. Source of the box: Adilova et al. 2024,
    layer-wise linear mode connectivity.
    """

    def __init__(
        self,
        pair: ModelPair,
        theta_b: Mapping[str, Tensor] | None = None,
        *,
        evaluator: Evaluator | None = None,
        reestimate: bool = True,
    ) -> None:
        self.evaluator = evaluator or Evaluator(pair.network, pair.theta_a, pair.theta_b)
        self.first = self.evaluator.weights(pair.theta_a)
        self.second = self.evaluator.weights(pair.theta_b if theta_b is None else theta_b)
        self.reestimates = reestimate and self.evaluator.batchnorms > 0
        if self.reestimates:
            self.evaluator.require_calibration()
        module, title = pair.network.module, pair.title
        self._title = title
        self._layer_of = layers_by_name(module)
        differing = differing_layers(self.first, self.second, module, reestimates=self.reestimates)
        self.layers: tuple[str, ...] = tuple(differing)
        self._losses: dict[tuple[float, ...], float] = {}
        self._held: dict[tuple[float, ...], Measured] = {}

    def weights(self, coefficients: Mapping[str, float]) -> dict[str, Tensor]:
        """Return θ(c) on the device, in the working dtype; BatchNorm statistics are still interpolated ones.

        Exact at both ends; integer tensors are those of the nearer end. Raises LmcError for an unknown layer or for
        what is no number from 0 to 1.
        """
        point = dict(zip(self.layers, self._key(coefficients), strict=True))
        mixed: dict[str, Tensor] = {}
        for name, tensor in self.first.items():
            # what has no coefficient differs in nothing that is looked at: counters, statistics that are taken afresh
            t = point.get(self._layer_of[name], 0.0)
            mixed |= interpolate({name: tensor}, {name: self.second[name]}, t)
        return mixed

    def measure(self, coefficients: Mapping[str, float]) -> Measured:
        """Return losses and errors at θ(c), per sample."""
        key = self._key(coefficients)
        if (known := self._held.get(key)) is not None:
            return known
        label = "the network at independent coefficients"
        found = self.evaluator.measure(self.weights(coefficients), reestimate=self.reestimates, label=label)
        self._losses.setdefault(key, found.loss)
        if (len(self._held) + 1) * len(found.losses) <= HELD:
            self._held[key] = found
        return found

    def loss(self, coefficients: Mapping[str, float]) -> float:
        """Return the mean loss at θ(c), measured when these coefficients are first asked for."""
        key = self._key(coefficients)
        if key not in self._losses:
            self.measure(coefficients)
        return self._losses[key]

    def per_sample(self, coefficients: Mapping[str, float]) -> Tensor:
        """Return the loss of every sample at θ(c), (n,) float64."""
        return self.measure(coefficients).losses

    @property
    def points(self) -> int:
        """How many points were measured."""
        return len(self._losses)

    def _key(self, coefficients: Mapping[str, float]) -> tuple[float, ...]:
        for layer, value in coefficients.items():
            if layer not in self.layers:
                known = f"one of {list(self.layers)}" if self.layers else "none: no layer differs"
                raise LmcError(f"{self._title}: layer {layer!r}{nearest(str(layer), self.layers)}; expected {known}")
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
                raise LmcError(
                    f"{self._title}: coefficient {value!r} of layer {layer!r}; expected a number from 0 to 1"
                )
        return tuple(float(coefficients.get(layer, 0.0)) for layer in self.layers)


def differing_layers(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], module: nn.Module, *, reestimates: bool
) -> dict[str, list[str]]:
    """Return the names of each layer in which two networks differ, in the order of the state dict.

    Counters belong to no layer; nor do statistics of BatchNorm where they are taken afresh.
    """
    layer_of, fresh = layers_by_name(module), reestimated_names(module) if reestimates else set()
    found: dict[str, list[str]] = {}
    for name, tensor in first.items():
        if name not in fresh and not name.endswith(COUNTER) and not equal(tensor, second[name]):
            found.setdefault(layer_of[name], []).append(name)
    return found


def layers_by_name(module: nn.Module) -> dict[str, str]:
    """Return the layer of every name of the state dict: the path of the module that holds it.

    What the outermost module holds itself is a layer by its own name. All names of one tensor, and of tensors that
    overlap in memory, have the layer of the first of them.
    """
    tied, views = tied_names(module), overlapping_names(module)
    shared: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, tensor in stored_tensors(module).items():
        own = tied[name].rpartition(".")[0] or tied[name]
        found[name] = shared.setdefault(place(tensor), own) if name in views else own
    return found
