"""The approximate dimension of what each layer makes of the activations it reads, and its largest eigenvalue.

Ferbach et al. 2024: Dim(S) = tr(S)²/tr(S²) = (Σλ)²/Σλ², from 1 to the rank of S, for S = [W b]·Σ·[W b]ᵀ with Σ the
uncentred second moment of what the layer reads and a constant 1; without a bias that is W·Σ·Wᵀ. The fewer dimensions
the cloud of a layer's units has, the fewer units are enough for two networks to be matched. It is a fact about θ_A and
the calibration data, the same for every method. Since [W b]·(φ, 1) is what the layer gives, S is the second moment of
its outputs: that is how it is taken here, so that convolutions, grouped ones too, need no windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from lmccheck.errors import LmcError
from lmccheck.evaluate.output_moments import output_moments
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.sites import Layer

SOURCE = "tr(S)²/tr(S²) of S = [W b]·Σ·[W b]ᵀ in a, Σ the second moment of (φ, 1) (Ferbach et al. 2024)"
MOST = 1 << 27  # numbers of S, over all layers: what it may cost
HELD = 1 << 25  # of them, that are held together: 256 MB; the data are run once for every so many
NO_LAYER = "no linear layer or convolution takes it as it is stored"
LARGEST = 1 << 28  # numbers of a network
DENSE = 512  # units; of more, only the largest eigenvalue is sought


def dimension_facts(pair: ModelPair) -> dict[str, Any]:
    """Return what reports say of the dimension of a pair's layers, by weight; made once per pair; JSON-able.

    ``approximate_dimension`` and ``largest_eigenvalue`` hold a number per layer, ``dimension`` what they are of, on how
    many samples, the layers taken with the BatchNorm that follows, and those left out with the reason.
    """
    return pair.once(_facts)


def _facts(pair: ModelPair) -> dict[str, Any]:
    found: dict[str, tuple[float, float]] = {}
    about: dict[str, Any] = {"definition": SOURCE, "samples": 0, "with_batchnorm": [], "left_out": {}}
    if pair.calibration is None:
        about["why"] = "no calibration data"
    elif pair.symmetry is not None:
        about["why"] = "the symmetry is given, the network is not traced"
    elif (size := sum(tensor.numel() for tensor in pair.theta_a.values())) > LARGEST:
        about["why"] = f"the network has {size} numbers, of more than {LARGEST} no copy is run for a report alone"
    else:
        about["of"] = pair.calibration.samples
        try:
            _measure(pair, found, about)
        except LmcError as error:  # what is only reported decides no verdict
            found.clear()
            about |= {"samples": 0, "with_batchnorm": [], "left_out": {}, "why": str(error)}
    return {
        "approximate_dimension": {name: dimension for name, (dimension, _) in found.items()},
        "largest_eigenvalue": {name: largest for name, (_, largest) in found.items()},
        "dimension": about,
    }


def _measure(pair: ModelPair, found: dict[str, tuple[float, float]], about: dict[str, Any]) -> None:
    traced = pair.network.trace_for("approximate dimension: needs", "leave out `symmetry`")
    assert pair.calibration is not None
    layers, left = _measurable(traced.layers, traced.spec.shapes)
    for some in _parts(layers, traced.spec.shapes):
        moments, about["samples"] = output_moments(pair.a, traced.trace, some, pair.calibration)
        for layer in some:
            if layer.node not in moments:
                left[layer.weight] = "no sample reaches it"
                continue
            s = second_moment(layer, moments.pop(layer.node), pair.theta_a)
            if not bool(s.isfinite().all()):
                left[layer.weight] = "what it gives on the calibration data is not finite"
            elif not bool(s.diagonal().any()):
                left[layer.weight] = "all that it gives on the calibration data is zero"
            else:
                found[layer.weight] = approximate_dimension(s), largest_eigenvalue(s)
    named = {traced.spec.tied.get(name, name): p for name, p in pair.module.named_parameters(remove_duplicate=False)}
    taken = {layer.weight for layer in traced.layers}
    left |= {name: NO_LAYER for name, p in named.items() if p.ndim > 1 and name not in taken}
    about["with_batchnorm"] = [x.weight for x in layers if x.norm is not None and x.weight in found]
    about["left_out"] = left


def _parts(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[Layer]]:
    """Yield the layers, as many at a time as may be held together."""
    some: list[Layer] = []
    held = 0
    for layer in layers:
        numbers = (shapes[layer.weight][layer.out] + 1) ** 2
        if some and held + numbers > HELD:
            yield some
            some, held = [], 0
        some.append(layer)
        held += numbers
    yield some


def _measurable(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers whose S is taken, and for each of the others why not, by its weight."""
    uses = [layer.weight for layer in layers]
    kept: list[Layer] = []
    left: dict[str, str] = {}
    room = MOST
    for layer in layers:
        units = shapes[layer.weight][layer.out]
        if uses.count(layer.weight) > 1:
            left[layer.weight] = "its weight is used more than once"
        elif (units + 1) ** 2 > room:
            left[layer.weight] = f"its {units} units need a table that is too large beside those of other layers"
        else:
            room -= (units + 1) ** 2
            kept.append(layer)
    return kept, left


def second_moment(layer: Layer, moment: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
    """Return S of a layer, (units, units) float64, from the second moment of its outputs and a constant 1.

    With a BatchNorm behind it the layer's weight and bias are those of both together, by θ's own statistics: its
    outputs y become g·y + h, with g = γ/√(σ² + ε) and h = β − g·μ.
    """
    norm = layer.norm
    if norm is None:
        return moment[:-1, :-1]
    gain = (theta[norm.variance].double() + norm.epsilon).rsqrt()
    if norm.weight is not None:
        gain = gain * theta[norm.weight].double()
    shift = -gain * theta[norm.mean].double()
    if norm.bias is not None:
        shift = shift + theta[norm.bias].double()
    both = torch.cat([torch.diag(gain), shift[:, None]], 1)
    return both @ moment @ both.T


def approximate_dimension(s: Tensor) -> float:
    """Return tr(S)²/tr(S²) of a symmetric positive semidefinite matrix that is not zero.

    >>> approximate_dimension(torch.eye(3)), approximate_dimension(torch.ones(3, 3))
    (3.0, 1.0)
    """
    s = s.double() / s.diagonal().max()
    return min(max(float(s.trace() ** 2 / s.square().sum()), 1.0), float(len(s)))


def largest_eigenvalue(s: Tensor) -> float:
    """Return the largest eigenvalue of a symmetric positive semidefinite matrix.

    >>> round(largest_eigenvalue(torch.ones(3, 3)), 9)
    3.0
    """
    s = s.double()
    if len(s) <= DENSE:
        return float(torch.linalg.eigvalsh(s)[-1])
    start = torch.ones(len(s), dtype=torch.float64) + torch.arange(len(s)) / len(s)  # the same in every run
    return float(eigsh(s.numpy(), k=1, which="LA", v0=start.numpy(), return_eigenvectors=False)[0])
