"""Does a permutation spec keep the function? Measured in float64 on random weights and random group elements."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmccheck.errors import SymmetryError
from lmccheck.evaluate.forward import outputs_of, randomised
from lmccheck.module import stored_tensors

if TYPE_CHECKING:
    from lmccheck.symmetry.spec import PermutationSpec

TOLERANCE = 1e-9


def deviation(
    spec: PermutationSpec,
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    weights: Mapping[str, Tensor] | None = None,
    trials: int = 3,
    seed: int = 0,
) -> float:
    """Return max |f(π·θ) − f(θ)| / (1 + max |f(θ)|) over ``trials`` random group elements, in float64.

    With ``weights`` given these are used as they are (upcast); otherwise every trial draws its own. Raises
    SymmetryError when the spec is another module's, or when the network's output holds no number, is not finite, or
    is the same for all weights, since the measurement would then mean nothing.
    """
    if trials < 1:
        raise SymmetryError(f"verification: trials = {trials}, expected at least 1")
    stored = stored_tensors(module)
    for source, what in ((stored, "the module"), (weights if weights is not None else stored, "the weights")):
        absent = next((name for name in (*spec.shapes, *stored) if name not in source), None)
        if absent is not None:
            raise SymmetryError(f"verification: tensor {absent!r} is not in {what}; the spec is another network's")
    seen: list[list[Tensor]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user's forward warns of was said when it was first run
        worst = 0.0
        for trial in range(trials):
            base = dict(weights) if weights is not None else randomised(module, seed + trial)
            before = outputs_of(module, base, example_inputs, torch.float64)
            after = outputs_of(module, spec.apply(base, spec.random(seed + trial)), example_inputs, torch.float64)
            if not any(x.numel() for x in before):
                raise SymmetryError("verification: the network returns no floating tensor, so nothing can be compared")
            seen.append(before)
            for x, y in zip(before, after, strict=True):
                if not torch.isfinite(x).all():
                    raise SymmetryError("verification: the network's output is not finite on the example inputs")
                scale = 1.0 + float(x.abs().max()) if x.numel() else 1.0
                worst = max(worst, float((x - y).abs().max()) / scale if x.numel() else 0.0)
    if weights is None and not _responds(module, seen, example_inputs, seed + trials):
        raise SymmetryError("verification: the network's output does not depend on its weights")
    return worst


def _responds(module: nn.Module, seen: list[list[Tensor]], example_inputs: tuple[Any, ...], seed: int) -> bool:
    """Whether any two draws of weights give different outputs; a tiny network may be dead in several."""
    draws = (outputs_of(module, randomised(module, seed + k), example_inputs, torch.float64) for k in range(64))
    return any(
        not torch.equal(x, y)
        for outputs in itertools.chain(seen[1:], draws)
        for x, y in zip(seen[0], outputs, strict=True)
    )


def require(spec: PermutationSpec, module: nn.Module, example_inputs: tuple[Any, ...], *, seed: int = 0) -> float:
    """Return the deviation of ``spec``; raise SymmetryError when it is above 1e-9."""
    worst = deviation(spec, module, example_inputs, seed=seed)
    if not worst <= TOLERANCE:
        raise SymmetryError(
            f"model {type(module).__name__}: the derived permutation spec changes the output by {worst:.2e} "
            "(relative, float64), "
            f"expected at most {TOLERANCE:.0e}; this is a defect of lmccheck (ops without a rule: "
            f"{dict(spec.unruled) or 'none'}); "
            "mend: report the model, and use align = 'none' meanwhile"
        )
    return worst
