"""Does a permutation spec keep the function? Measured in float64 on random weights and random group elements."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmccheck.errors import SymmetryError
from lmccheck.modules.runner import Runner
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.trees import tensors_in

if TYPE_CHECKING:
    from lmccheck.symmetry.spec import PermutationSpec

TOLERANCE = 1e-9
_AMPLIFIED = 1e4  # a deviation this many times what rounding alone does to the output is no rounding


def deviation(
    spec: PermutationSpec,
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    weights: Mapping[str, Tensor] | None = None,
    trials: int = 3,
    seed: int = 0,
    only: str | None = None,
) -> float:
    """Return max |f(π·θ) − f(θ)| / (1 + max |f(θ)|) over ``trials`` random group elements, in float64.

    In the first trial every group moves; with ``only`` no group but that one ever does. With ``weights`` given these
    are used as they are (upcast); otherwise every trial draws its own, anew where a draw makes the network so unstable
    that mere rounding moves its output as much. Needs one float64 copy of the network.
    Raises SymmetryError when the spec is another module's, or when the network's output holds no number, is not
    finite, or is the same for all weights, since the measurement would then mean nothing.
    """
    if trials < 1:
        raise SymmetryError(f"verification: trials = {trials}, expected at least 1")
    stored = stored_tensors(module)
    for source, what in ((stored, "the module"), (weights if weights is not None else stored, "the weights")):
        absent = next((name for name in (*spec.shapes, *stored) if name not in source), None)
        if absent is not None:
            raise SymmetryError(f"verification: tensor {absent!r} is not in {what}; the spec is another network's")
    runner = Runner(module, dtype=torch.float64)
    where = f"model {type(module).__name__}, example inputs"

    def outputs() -> list[Tensor]:
        return tensors_in(runner(tuple(example_inputs), where))

    def trial(number: int) -> float:
        """One group element, on up to three draws of weights."""
        permutation = spec.moving(number) if number == seed else spec.random(number)
        if only is not None:
            permutation = {**spec.identity(), only: permutation[only]}
        worst = 0.0
        for strength in (1.0, 0.1, 0.01) if weights is None else (1.0,):  # ever nearer to the module's own weights
            fill(number, strength)
            before = outputs()
            _must_mean_something(before)
            if weights is None:
                seen.append(before)
            runner.change(lambda name, tensor: spec.move_(name, tensor, permutation))
            least = 1.0 if strength == 1.0 else 1e-30  # near its own weights a network's output may be tiny
            found = _relative(before, outputs(), least)
            if found <= TOLERANCE:
                return found
            worst = max(worst, found)
            fill(number, strength)
            runner.change(_round)
            if found > _AMPLIFIED * _relative(before, outputs(), least):
                break
        return worst

    def fill(number: int, strength: float) -> None:
        if weights is None:
            runner.draw(module, number, strength)
        else:
            runner.load(weights)

    seen: list[list[Tensor]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user's forward warns of was said when it was first run
        worst = max(trial(seed + k) for k in range(trials))
        if weights is None and not _respond(seen):
            for k in range(64):  # a tiny network may be dead in several draws, and in all that are like its own weights
                runner.draw(module, seed + trials + k, (1.0, 8.0, 64.0)[k % 3])
                seen.append(outputs())
                if _respond([seen[0], seen[-1]]):
                    break
            else:
                raise SymmetryError("verification: the network's output does not depend on its weights")
    return worst


def _must_mean_something(outputs: list[Tensor]) -> None:
    if not any(x.numel() for x in outputs):
        raise SymmetryError("verification: the network returns no floating tensor, so nothing can be compared")
    if not all(torch.isfinite(x).all() for x in outputs):
        raise SymmetryError("verification: the network's output is not finite on the example inputs")


def _relative(before: list[Tensor], after: list[Tensor], least: float) -> float:
    """Return the largest change over the size of the outputs, infinite where an output is no longer a number."""
    worst = 0.0
    for x, y in zip(before, after, strict=True):
        if x.numel():
            found = float((x - y).abs().max()) / (least + float(x.abs().max()))
            worst = max(worst, found) if isfinite(found) else inf
    return worst


def _round(name: str, tensor: Tensor) -> None:
    """Change every float by about its rounding error, up and down in turn."""
    if tensor.dtype.is_floating_point:
        signs = torch.ones(tensor.numel(), dtype=tensor.dtype)
        signs[::2] = -1.0
        tensor.mul_(1 + 2.0**-52 * signs.reshape(tensor.shape))


def _respond(seen: list[list[Tensor]]) -> bool:
    """Whether any two draws of weights gave different outputs."""
    return any(not torch.equal(x, y) for other in seen[1:] for x, y in zip(seen[0], other, strict=True))


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
