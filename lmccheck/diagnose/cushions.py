"""Noise-stability constants of a chain of layers: cushions, contraction, smoothness, and Definition 4's formal ε.

They explain, and never decide: the formal ε is usually vacuous. Source: Kuditipudi et al. 2019, section 4 and
Definition 4, after Arora et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lmccheck.diagnose.chain import Chain
from lmccheck.diagnose.jacobian import Jacobian, lengths, spectral_norms

LIPSCHITZ = {"cross_entropy": math.sqrt(2)}  # β of the losses that have one


def cushions(
    chain: Chain, *, masks: Sequence[Mapping[str, Tensor]], t: Sequence[float], loss: str, seed: int, steps: int = 100
) -> dict[str, Any]:
    """Return the constants of a chain on its samples; JSON-able.

    ``layer_cushion`` μ_i (per layer), ``interlayer_cushion`` μ_{i,j} ("i,j"), ``minimal_interlayer_cushion`` μ_{i→},
    ``contraction`` c, ``smoothness`` ρ (median over ``masks``, at every ``t`` of θ·t + θᵏ·(1−t); a mask is what each
    layer's inputs are multiplied by, (inputs,) by weight) and ``formal_epsilon`` of Definition 4.
    ``homogeneity_error`` is max ‖M(x) − J̄x̄‖/‖M(x)‖: zero where activations are positively homogeneous, as the theory
    needs. Spectral norms are exact to the output where it is small, else by ``steps`` of power
    iteration at most, hence from below.
    """
    depth = chain.depth
    jacobians = {
        (i, j): Jacobian(chain.between(i, j), chain.made(i)) for i in range(1, depth) for j in range(i + 1, depth + 1)
    }
    layer = [_layer_cushion(chain, i) for i in range(1, depth + 1)]
    inter: dict[tuple[int, int], float] = {(i, i): 1.0 for i in range(1, depth + 1)}
    error, change = 0.0, 0.0
    for (i, j), jacobian in jacobians.items():
        norms, moved = spectral_norms(jacobian, chain.augmented, j == depth, steps, seed)
        change = max(change, moved)
        straight = _straight(chain, jacobian, i)
        inter[i, j] = _least(chain.length(straight, j), norms * chain.length(chain.made(i), i))
        error = max(error, _most(lengths(jacobian.y - straight), lengths(jacobian.y)))
    minimal = [min(inter[i, j] for j in range(i, depth + 1)) for i in range(1, depth + 1)]
    contraction = max(
        (_most(chain.length(chain.made(i), i), chain.length(chain.read(i + 1), i)) for i in range(1, depth)),
        default=1.0,
    )
    smooth = sorted(_smoothness(chain, jacobians, mask, t) for mask in masks)
    smoothness = smooth[(len(smooth) - 1) // 2] if smooth else math.inf
    widest = max((_flatness(chain.read(i)) for i in range(2, depth + 1)), default=1.0)
    return {
        "form": "augmented with a constant unit for biases" if chain.augmented else "without biases, as in the paper",
        "samples": len(chain.made(1)),
        "layer_cushion": layer,
        "interlayer_cushion": {f"{i},{j}": value for (i, j), value in sorted(inter.items())},
        "minimal_interlayer_cushion": minimal,
        "contraction": contraction,
        "smoothness": _plain(smoothness),
        "smoothness_needed": 3 * depth,
        "masks": len(masks),
        "flatness": widest,
        "homogeneity_error": error,
        "power_iteration_change": change,
        **_formal(chain, layer, minimal, contraction, loss),
    }


def _formal(
    chain: Chain, layer: Sequence[float], minimal: Sequence[float], contraction: float, loss: str
) -> dict[str, Any]:
    """Return Definition 4's ε = β·c·d^{3/2}·max‖f‖ / (√h_min · min_{2≤i≤d} μ_i·μ_{i→}), and what it is made of."""
    depth = chain.depth
    beta = LIPSCHITZ.get(loss)
    largest = float(lengths(chain.made(depth)).max())
    narrowest = min(stage.folded(chain.weights)[0].shape[0] for stage in chain.stages[:-1])
    least = min((layer[i] * minimal[i] for i in range(1, depth)), default=math.nan)
    formal = None
    if beta is not None and least > 0:
        formal = _plain(beta * contraction * depth**1.5 * largest / (math.sqrt(narrowest) * least))
    return {"lipschitz": beta, "largest_output": largest, "formal_epsilon": formal, "gated": False}


def _layer_cushion(chain: Chain, i: int) -> float:
    """μ_i = min_x ‖A_i φ(xⁱ⁻¹)‖ / (‖A_i‖_F ‖φ(xⁱ⁻¹)‖)."""
    stage, read, made = chain.stages[i - 1], chain.read(i), chain.made(i)
    frobenius = stage.frobenius(chain.weights, read, made, chain.augmented, i == chain.depth)
    return _least(chain.length(made, i), frobenius * chain.length(read, i - 1))


def _smoothness(
    chain: Chain, jacobians: Mapping[tuple[int, int], Jacobian], mask: Mapping[str, Tensor], t: Sequence[float]
) -> float:
    """Return, for one mask, the smallest ‖z−xⁱ‖‖xʲ‖ / (‖xⁱ‖‖M(z) − Jz‖) over samples, 2 ≤ i < j, t and z."""
    least = math.inf
    for x in t:
        state = chain.made(1)
        for i in range(2, chain.depth):
            whole = chain.step(i, state)  # x̂ⁱ with the inputs of layers 2 to i−1 dropped
            line = mask[chain.stages[i - 1].layer.weight]
            state = chain.step(i, state, x + (1 - x) * line)  # and those of layer i, too
            for z in (whole, state):
                step = z - chain.made(i)
                if float(step.abs().max()) == 0.0:
                    continue
                for j in range(i + 1, chain.depth + 1):
                    jacobian = jacobians[i, j]
                    linear = _straight(chain, jacobian, i) + jacobian.times(step)  # J̄z̄
                    rest = lengths(chain.between(i, j)(z) - linear)
                    top = lengths(step) * chain.length(chain.made(j), j)
                    least = min(least, _least(top, chain.length(chain.made(i), i) * rest))
    return least


def _straight(chain: Chain, jacobian: Jacobian, i: int) -> Tensor:
    """Return J̄x̄ at xⁱ: M(xⁱ) where activations are positively homogeneous."""
    return jacobian.times(chain.made(i)) + jacobian.shift


def _least(top: Tensor, bottom: Tensor) -> float:
    """Return the smallest ratio over samples, those with nothing below left out."""
    ratios = (top / bottom)[bottom > 0]
    return float(ratios.min()) if len(ratios) else math.inf


def _most(top: Tensor, bottom: Tensor) -> float:
    """Return the largest ratio over samples, those with nothing below left out."""
    ratios = (top / bottom)[bottom > 0]
    return float(ratios.max()) if len(ratios) else 0.0


def _flatness(value: Tensor) -> float:
    """Return max over samples of √h·‖φ‖_∞/‖φ‖: Definition 4 takes it to be O(1)."""
    flat = value.flatten(1)
    return _most(math.sqrt(flat.shape[1]) * flat.abs().amax(1), lengths(value))


def _plain(value: float) -> float | None:
    """Return a number that JSON has, None for an infinite one."""
    return value if math.isfinite(value) else None
