"""The map from one value of a network to a later one, its Jacobian's products, and their spectral norm per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lmccheck.evaluate.graph import Reading
from lmccheck.modules.precision import exact_float32
from lmccheck.symmetry.facts import evaluated_norm


class _Affine(Reading):
    """An interpreter that writes an evaluated BatchNorm out, since torch gives no derivative by its mean."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        norm = evaluated_norm(target, args)
        if norm is None:
            return super().call_function(target, args, kwargs)
        result = _normalised(args, args[norm.epsilon])
        return (result, None, None) if norm.several else result


def _normalised(args: Sequence[Any], epsilon: float) -> Tensor:
    value, weight, bias, mean, variance = args[:5]
    shape = [-1 if dim == 1 else 1 for dim in range(value.ndim)]
    scale = (variance + epsilon).rsqrt() * (1.0 if weight is None else weight)
    result: Tensor = (value - mean.reshape(shape)) * scale.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


class Between:
    """M: one node's value (n, …) -> a later one's (n, …), every sample by itself; biases are multiplied by ``scale``.

    With ``scale`` as a coordinate of its own, M is homogeneous of degree one where activations are: the augmented form.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        nodes: Sequence[fx.Node],
        start: fx.Node,
        end: fx.Node,
        known: Mapping[fx.Node, Any],
        shifts: Sequence[fx.Node],
    ) -> None:
        self._reader = _Affine(module, ())
        self._nodes, self._start, self._end = nodes, start, end
        self._known, self._shifts = known, shifts

    def __call__(self, value: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        known = dict(self._known)
        known.update({node: known[node] * scale for node in self._shifts})
        known[self._start] = value
        with exact_float32():
            result: Tensor = self._reader.part(self._nodes, known, [self._end])[self._end]
        return result


class Jacobian:
    """J of a map at x and ∂M/∂scale, per sample: products with J and its transpose, for all samples at once.

    Jv is the derivative of u ↦ Jᵀu, so that no op needs a forward-mode rule.
    """

    def __init__(self, between: Between, x: Tensor) -> None:
        with torch.enable_grad():
            self._x = x.detach().clone().requires_grad_()
            scale = torch.ones((), dtype=x.dtype, device=x.device, requires_grad=True)
            self._y = between(self._x, scale)
            self._u = torch.zeros_like(self._y, requires_grad=True)
            self._back, shift = torch.autograd.grad(
                self._y, (self._x, scale), self._u, create_graph=True, allow_unused=True
            )
            self.shift = torch.zeros_like(self._y)
            if shift is not None and shift.requires_grad:
                self.shift = torch.autograd.grad(shift, self._u, retain_graph=True)[0]
        self.y = self._y.detach()

    def times(self, v: Tensor) -> Tensor:
        """Return Jv per sample."""
        return torch.autograd.grad(self._back, self._u, v, retain_graph=True)[0]

    def transposed(self, u: Tensor) -> Tensor:
        """Return Jᵀu per sample."""
        return torch.autograd.grad(self._y, self._x, u, retain_graph=True)[0]


DENSE = 32  # numbers per sample at the end of a map, up to which its Jacobian is made whole


def spectral_norms(
    jacobian: Jacobian, augmented: bool, last: bool, steps: int, seed: int, tolerance: float = 1e-6
) -> tuple[Tensor, float]:
    """Return ‖J‖ per sample, (n,), and the largest relative change of the last of ``steps`` at most of power iteration.

    ``augmented``: of J̄ = [[J, ∂M/∂scale], [0, 1]] instead, without its last row where the end is the output (``last``).
    The iteration, on JᵀJ, approaches the norm from below; a J of few rows is made whole, and its norm is exact.
    """
    if jacobian.y[0].numel() <= DENSE:
        return torch.linalg.matrix_norm(dense(jacobian, augmented, last), 2), 0.0
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(jacobian._x.shape, generator=generator, dtype=torch.float64).to(jacobian._x)
    r = torch.ones(len(v), dtype=v.dtype, device=v.device) if augmented else torch.zeros_like(v.flatten(1)[:, 0])
    found = torch.zeros_like(r)
    change = float("inf")
    for _ in range(steps):
        length = torch.sqrt(lengths(v) ** 2 + r**2).clamp(min=1e-300)
        v, r = v / spread(length, v), r / length
        u = jacobian.times(v)
        u = u + spread(r, u) * jacobian.shift  # r is zero where the form is not augmented
        new = torch.sqrt(lengths(u) ** 2 + (0.0 if last else r**2))
        change = float(((new - found).abs() / new.clamp(min=1e-300)).max())
        found = new
        if change < tolerance:
            break
        v = jacobian.transposed(u)
        if augmented:
            r = (u * jacobian.shift).flatten(1).sum(1) + (0.0 if last else r)
    return found, change


def dense(jacobian: Jacobian, augmented: bool, last: bool) -> Tensor:
    """Return J, or J̄ if ``augmented``, of every sample as a matrix, (n, outputs, inputs)."""
    rows = []
    for k in range(jacobian.y[0].numel()):
        unit = torch.zeros_like(jacobian.y).flatten(1)
        unit[:, k] = 1.0
        rows.append(jacobian.transposed(unit.reshape(jacobian.y.shape)).flatten(1))
    whole = torch.stack(rows, 1)
    if augmented:
        whole = torch.cat([whole, jacobian.shift.flatten(1)[:, :, None]], 2)
        if not last:
            constant = torch.zeros_like(whole[:, :1])
            constant[:, :, -1] = 1.0
            whole = torch.cat([whole, constant], 1)
    return whole


def lengths(value: Tensor) -> Tensor:
    """Return the Euclidean length of every sample, (n, …) -> (n,)."""
    found: Tensor = torch.linalg.vector_norm(value.flatten(1), dim=1)
    return found


def spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number per sample, (n,), as a tensor that broadcasts over (n, …)."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))
