"""Does a permutation spec keep the function? Measured in float64 on random weights and random group elements."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmccheck.data.trees import tensors_in
from lmccheck.errors import SymmetryError, UnsupportedArchitecture
from lmccheck.modules.precision import StayDouble
from lmccheck.modules.runner import TWO_OUTPUTS, UNSTEADY, Runner
from lmccheck.modules.stored import stored_tensors
from lmccheck.symmetry.trace import Trace, another_graph

TOLERANCE = 1e-9
_FLOAT32 = 1e-4  # a graph computes in float32 what its model says it does
_AMPLIFIED = 1e4  # a deviation this many times what rounding alone does to the output is no rounding


class Spec(Protocol):
    """What verification asks of a permutation spec, which offers it as a method in turn."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def unruled(self) -> Mapping[str, int]: ...
    def random(self, seed: int = 0) -> dict[str, Tensor]: ...
    def moving(self, seed: int = 0) -> dict[str, Tensor]: ...
    @property
    def stacks(self) -> Mapping[str, tuple[str, ...]]: ...
    def move_(self, name: str, value: Tensor, permutation: Mapping[str, Tensor]) -> None: ...
    def move_members_(self, weights: Mapping[str, Tensor], permutation: Mapping[str, Tensor]) -> None: ...


def deviation(
    spec: Spec,
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    weights: Mapping[str, Tensor] | None = None,
    trials: int = 3,
    seed: int = 0,
) -> float:
    """Return max |f(π·θ) − f(θ)| / (1 + max |f(θ)|) over ``trials`` random group elements, in float64.

    In the first trial every group moves. With ``weights`` given these are used as they are (upcast); otherwise every
    trial draws its own. Needs one float64 copy of the network.
    Raises SymmetryError when the spec is another module's, or when the network's output holds no number, is not
    finite, or is the same for all weights, since the measurement would then mean nothing.
    """
    if trials < 1:
        raise SymmetryError(f"verification: trials = {trials}, expected at least 1")
    measured = Verification(spec, module, example_inputs, weights)
    elements = [spec.moving(seed), *(spec.random(seed + k) for k in range(1, trials))]
    worst = max(measured.change(element, seed + k) for k, element in enumerate(elements))
    measured.require_response(seed + trials)
    return worst


class Verification:
    """One float64 copy of a network: what elements of the group, acting on its weights, change in its outputs."""

    def __init__(
        self,
        spec: Spec,
        module: nn.Module,
        example_inputs: tuple[Any, ...],
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        stored = stored_tensors(module)
        held = [name for name in spec.shapes if name not in spec.stacks]
        held += [name for members in spec.stacks.values() for name in members]
        for source, what in ((stored, "the module"), (stored if weights is None else weights, "the weights")):
            absent = next((name for name in (*held, *stored) if name not in source), None)
            if absent is not None:
                raise SymmetryError(f"verification: tensor {absent!r} is not in {what}; the spec is another network's")
        self.spec, self.module, self.weights, self.inputs = spec, module, weights, tuple(example_inputs)
        self._runner = Runner(module, dtype=torch.float64)
        self._drawn: list[list[Tensor]] = []  # the outputs with every draw of weights

    def change(self, permutation: Mapping[str, Tensor], seed: int) -> float:
        """Return the relative change under one element of the group, the largest of up to three draws of weights.

        Weights are drawn anew where they make the network so unstable that mere rounding moves its output as much.
        """
        worst = 0.0
        for strength in (1.0, 0.1, 0.01) if self.weights is None else (1.0,):  # ever nearer to the module's own weights
            self._fill(seed, strength)
            before = self._outputs()
            _must_mean_something(before)
            self._drawn.append(before)
            least = 1.0 if strength == 1.0 else 1e-30  # near its own weights a network's output may be tiny
            self._runner.change(
                lambda name, tensor: self.spec.move_(name, tensor, permutation),
                lambda state: self.spec.move_members_(state, permutation),
            )
            found = relative_change(before, self._outputs(), least)
            if found <= TOLERANCE:
                return found
            worst = max(worst, found)
            self._fill(seed, strength)
            self._runner.change(_round)
            if found > _AMPLIFIED * relative_change(before, self._outputs(), least):
                break
        return worst

    def require_response(self, seed: int) -> None:
        """Raise SymmetryError where weights are drawn and none that are make a difference to the outputs."""
        if self.weights is not None or _respond(self._drawn):
            return
        for k in range(64):  # a tiny network may be dead in several draws, and in all that are like its own weights
            self._fill(seed + k, (1.0, 8.0, 64.0)[k % 3])
            if _respond([self._drawn[0], self._outputs()]):
                return
        raise SymmetryError("verification: the network's output does not depend on its weights")

    def _fill(self, seed: int, strength: float) -> None:
        if self.weights is None:
            self._runner.draw(self.module, seed, strength)
        else:
            self._runner.load(self.weights)

    def _outputs(self) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the user's forward warns of was said when it was first run
            return tensors_in(self._runner(self.inputs, f"model {type(self.module).__name__}, example inputs"))


def _must_mean_something(outputs: list[Tensor]) -> None:
    if not any(x.numel() for x in outputs):
        raise SymmetryError("verification: the network returns no floating tensor, so nothing can be compared")
    if not all((torch.isfinite(x) | (x == -inf)).all() for x in outputs):  # −∞: a class that is ruled out
        raise SymmetryError("verification: the network's output is not finite on the example inputs")
    if not any(torch.isfinite(x).any() for x in outputs):
        raise SymmetryError("verification: the network's output is −∞ all over on the example inputs")


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor], least: float) -> float:
    """Return max |after − before| / (``least`` + max |before|) over pairs of tensors, infinite where it is no number.

    What is −∞ in both, as a logit of a class that is ruled out, is the same, and gives no size.
    """
    worst = 0.0
    for x, y in zip(before, after, strict=True):
        if x.numel():
            ruled_out = (x == -inf) & (y == -inf)
            x, y = x.masked_fill(ruled_out, 0.0), y.masked_fill(ruled_out, 0.0)
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


def require(
    spec: Spec, module: nn.Module, example_inputs: tuple[Any, ...], *, seed: int = 0, graph: Trace | None = None
) -> float:
    """Return the deviation of ``spec``, derived from ``graph``; raise SymmetryError when it is above 1e-9.

    Raises UnsupportedArchitecture where the model is to blame: its outputs are no function of weights and inputs, or
    the graph holds what was computed from weights before it was traced.
    """
    worst = deviation(spec, module, example_inputs, seed=seed)
    if not worst <= TOLERANCE:
        blame_model(module, example_inputs, graph, seed)
        raise SymmetryError(
            f"model {type(module).__name__}: the derived permutation spec changes the output {too_much(worst)}; this "
            f"is a defect of lmccheck (ops without a rule: {dict(spec.unruled) or 'none'}); mend: report the model, "
            "and use align = 'none' meanwhile"
        )
    return worst


def blame_model(module: nn.Module, example_inputs: tuple[Any, ...], graph: Trace | None = None, seed: int = 0) -> None:
    """Raise UnsupportedArchitecture where a model's outputs do not follow its weights as its graph says they do."""
    what = f"model {type(module).__name__}"
    runner = Runner(module, dtype=torch.float64)
    runner.draw(module, seed)
    weights = {name: tensor.clone() for name, tensor in stored_tensors(runner.module).items()}

    def outputs() -> list[Tensor]:
        runner.load(weights)
        return [t.clone() for t in tensors_in(runner(example_inputs, f"{what}, example inputs"))]

    first = outputs()
    changed = runner.changed(weights)
    if changed:
        raise UnsupportedArchitecture(f"{what}: {UNSTEADY.format(changed)}")
    if relative_change(first, outputs(), 1e-30) > TOLERANCE:
        raise UnsupportedArchitecture(f"{what}: {TWO_OUTPUTS}")
    if graph is not None:
        traced: list[Tensor] = []
        with torch.no_grad(), StayDouble(), suppress(RuntimeError):  # constants of another dtype
            traced = graph.module(*graph.given(weights, runner.cast(example_inputs)).values())
        if not traced or relative_change(first, traced, 1e-30) > _FLOAT32:
            raise UnsupportedArchitecture(another_graph(module, graph))


def too_much(worst: float) -> str:
    """Say by how much outputs change, and how much they may."""
    return f"by {worst:.2e} (relative, float64), expected at most {TOLERANCE:.0e}"
