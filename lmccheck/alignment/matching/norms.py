"""The tensors that count in a comparison; after a BatchNorm, the scale of a layer's weights means nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmccheck.alignment.contract import Problem
from lmccheck.symmetry.sites import Layer, Norm
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.stacks import stacked


def normed(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> list[tuple[Layer, Norm]]:
    """Return the layers among ``tensors`` that a BatchNorm follows, with it; weights used twice are left out."""
    uses = [layer.weight for layer in layers]
    return [
        (layer, layer.norm)
        for layer in layers
        if layer.norm is not None and uses.count(layer.weight) == 1 and layer.weight in tensors
    ]


def float64(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with floating tensors in float64."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def counted(spec: PermutationSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the learned tensors that have slots, once each, as they are stored; those of a stack as one tensor."""
    names = {slot.tensor for group in spec.groups for slot in group.slots if slot.learned}
    found = {name: weights[name].detach() for name in weights if name in names}
    return found | {pattern: value for pattern, value in stacked(spec.stacks, weights) if pattern in names}


def compared(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of A and of B that count, as weight matching compares them."""
    layers = problem.derived.layers if problem.derived is not None else ()
    pair, spec = problem.pair, problem.spec
    return rows_alone(counted(spec, pair.theta_a), layers), rows_alone(counted(spec, pair.theta_b), layers)


def rows_alone(tensors: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return ``tensors`` with every such layer's rows at one length, their mean, and γ, β and the bias left out."""
    result = dict(tensors)
    for layer, norm in normed(layers, tensors):
        weight = _wide(tensors[layer.weight])
        lengths = weight.movedim(layer.out, 0).flatten(1).norm(dim=1)
        result[layer.weight] = weight * (lengths.mean() / lengths.clamp(min=1e-30)).reshape(_along(layer, weight))
        for name in (layer.bias, norm.weight, norm.bias):
            if name is not None:
                result.pop(name, None)
    return result


def merged_norms(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], layers: Sequence[Layer]
) -> dict[str, Tensor]:
    """Return ``tensors`` with every such layer replaced by what it and its BatchNorm compute together.

    γ·(W·x + b − μ)/√(σ² + ε) + β = W'·x + b': W' stands in W's place and b' in β's, and b and γ no longer count.
    """
    result = dict(tensors)
    for layer, norm in normed(layers, tensors):
        weight = _wide(weights[layer.weight])
        scale = (_wide(weights[norm.variance]) + norm.epsilon).rsqrt()
        if norm.weight is not None:
            scale = scale * _wide(weights[norm.weight])
            result.pop(norm.weight, None)
        shift = -_wide(weights[norm.mean])
        if layer.bias is not None:
            shift = shift + _wide(weights[layer.bias])
            result.pop(layer.bias, None)
        result[layer.weight] = weight * scale.reshape(_along(layer, weight))
        if norm.bias is not None and norm.bias in result:
            result[norm.bias] = _wide(weights[norm.bias]) + scale * shift
    return result


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _along(layer: Layer, weight: Tensor) -> list[int]:
    """Return the shape that lays one number per unit along the weight's output dimension."""
    return [-1 if dim == layer.out else 1 for dim in range(weight.ndim)]
