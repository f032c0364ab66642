"""Coordinate descent: one group after the other is reassigned, all others held, until none improves.

Git Re-Basin, Algorithm 1 (Ainsworth et al. 2023), on any two sets of tensors. Differs in that a group is looked at
again only where one that shares a tensor with it has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.symmetry.spec import Permutation, PermutationSpec

MOST_SWEEPS = 200


@dataclass(frozen=True)
class Descent:
    """One coordinate descent: where it began and ended, ⟨A, π·θ_B⟩ after every sweep, and whether it came to rest."""

    start: str
    permutation: Permutation
    objectives: tuple[float, ...]
    converged: bool
    gap: float = 0.0  # the largest certified gap of its assignments

    @property
    def objective(self) -> float:
        """The objective it ended with."""
        return self.objectives[-1]

    def summary(self) -> dict[str, Any]:
        """Return what a report says about it; JSON-able."""
        facts = {"start": self.start, "objective": self.objective, "sweeps": len(self.objectives) - 1}
        return {**facts, "converged": self.converged, "gap": self.gap}


def descend(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    start: Permutation,
    name: str,
    generator: torch.Generator,
) -> Descent:
    """Return where coordinate descent on ⟨a, π·b⟩ from ``start`` ends."""
    state = WeightSimilarity(spec, a, b, start)
    exact = all(tensor.dtype == torch.float64 for tensor in a.values())
    slack = (1e-13 if exact else 1e-7) * (1 + sum(_length(a[k]) * _length(b[k]) for k in a))
    objectives = [state.objective()]
    neighbours = _neighbours(spec, state)
    waiting = {group.name for group in spec.groups if state.touched[group.name]}
    gap = 0.0
    while waiting and len(objectives) <= MOST_SWEEPS:
        for k in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[k]
            if group.name not in waiting:
                continue
            waiting.discard(group.name)
            step, taken = state.improve(group, slack)
            gap = max(gap, step.gap)
            if taken:
                waiting |= neighbours[group.name]
        objectives.append(state.objective())
        if objectives[-1] < objectives[-2] - 10 * len(spec.groups) * slack:
            raise AssertionError(f"descent from {name}: the objective fell from {objectives[-2]} to {objectives[-1]}")
    return Descent(name, state.permutation, tuple(objectives), not waiting, gap)


def _length(tensor: Tensor) -> float:
    """Return ‖tensor‖, of half precision in float32."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)))


def _neighbours(spec: PermutationSpec, state: WeightSimilarity) -> dict[str, set[str]]:
    """Return, per group, those whose similarity changes when it moves; itself only where it meets itself."""
    found = {}
    for group in spec.groups:
        touched = state.touched[group.name]
        found[group.name] = {
            other.name
            for other in spec.groups
            if touched & state.touched[other.name] and (other is not group or state.meets_itself(group))
        }
    return found
