"""Annealed matching: a start for weight matching that decides on all groups together, the clearest units first.

Graduated assignment (Gold and Rangarajan 1996) on ⟨A, π·B⟩: every unit group has a doubly stochastic matrix P, uniform
at first; in turn P = Sinkhorn(S/T), where S is how alike units are while all other groups of B are mixed by *their* P,
and the temperature T falls. What is undecided in one layer is averaged over instead of guessed, so that noise does not
lock in, as it does where hard assignments are exchanged. At T = 0, the end, P is the best assignment. Sinkhorn Re-Basin
(Peña et al. 2023) relaxes likewise, at one temperature, by gradient steps. Where units have been seen at work, how they
correlate can be added to S: weights and activations err apart, and together less than either.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lmccheck.alignment.beyond.mix import mixed
from lmccheck.alignment.matching.reassign import by_assignment, nested_names
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

HOT, COLD, STEPS = 0.05, 0.004, 40  # of |unit of A|·|unit of B|: at HOT few units are decided, at COLD nearly all are
ROUNDS = 60  # of Sinkhorn's scaling, after the first in logarithms
MOST_SWEEPS = 20  # at T = 0


def annealed_start(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    start: Permutation,
    seen: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Permutation:
    """Return ``start`` with the groups that can be annealed placed anew; those inside units, or around them, stay.

    Groups take turns in a seeded random order.

    ``seen[group]``, (size, size), is what is added to the similarity of units of A and of B under ``start``, as a
    share of |unit of A|·|unit of B|.
    """
    fixed = {name: spec.moved(name, tensor, start).float().cpu() for name, tensor in b.items()}
    a = {name: tensor.float().cpu() for name, tensor in a.items()}
    state = WeightSimilarity(spec, a, b, start)
    nested = nested_names(spec)
    groups = [group for group in spec.groups if group.name not in nested and not state.meets_itself(group)]
    groups = [group for group in groups if state.touched[group.name]]
    soft = {group.name: torch.full((group.size, group.size), 1 / group.size) for group in groups}
    scale = {group.name: _scale(group, a, fixed) for group in groups}

    def similarity(group: UnitGroup) -> Tensor:
        """S[u, v] over |unit of A|·|unit of B|, with the other groups mixed as they now are."""
        found = _similarity(group, [other for other in groups if other is not group], a, fixed, soft)
        found = found / scale[group.name]
        return found + seen[group.name].float() if seen and group.name in seen else found

    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        temperature = HOT * (COLD / HOT) ** (step / (STEPS - 1))
        for k in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[k]
            soft[group.name] = sinkhorn(similarity(group) / temperature)
    hard: dict[str, Tensor] = {}
    for _ in range(MOST_SWEEPS):
        before = dict(hard)
        for group in groups:
            hard[group.name] = by_assignment(similarity(group)).permutation.cpu()
            soft[group.name] = torch.eye(group.size)[hard[group.name]]
        if before and all(torch.equal(before[name], order) for name, order in hard.items()):
            break
    return compose(spec, start, spec.identity() | hard)


def sinkhorn(scores: Tensor) -> Tensor:
    """Return exp(scores) with rows and columns scaled to sum to 1: (n, n), doubly stochastic up to rounds left out."""
    scores = scores - scores.logsumexp(1, keepdim=True)
    kernel = (scores - scores.logsumexp(0, keepdim=True)).exp()
    numbers = kernel.numpy()  # of few units, for which a call of torch takes longer than what it computes
    rows, columns = np.empty_like(numbers[:, 0]), np.ones_like(numbers[0])
    for _ in range(ROUNDS):
        np.reciprocal(np.maximum(np.dot(numbers, columns, out=rows), 1e-30, out=rows), out=rows)
        np.reciprocal(np.maximum(np.dot(numbers.T, rows, out=columns), 1e-30, out=columns), out=columns)
    return torch.from_numpy(rows)[:, None] * kernel * torch.from_numpy(columns)


def _slots(group: UnitGroup, tensors: Mapping[str, Tensor]) -> list[Slot]:
    return [slot for slot in group.slots if slot.tensor in tensors]


def _scale(group: UnitGroup, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the mean |unit of A| times the mean |unit of B|."""
    lengths = [sum(slot.units(x[slot.tensor])[0].square().sum(1) for slot in _slots(group, a)) for x in (a, b)]
    first, second = (float(torch.as_tensor(squares).sqrt().mean()) for squares in lengths)
    return max(first * second, 1e-30)


def _similarity(
    group: UnitGroup,
    others: list[UnitGroup],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    soft: Mapping[str, Tensor],
) -> Tensor:
    """Return S[u, v] = ⟨unit u of A, unit v of B⟩, (size, size), with the other groups of B mixed by their P."""
    total = torch.zeros(group.size, group.size)
    blurred: dict[str, Tensor] = {}
    for slot in _slots(group, a):
        name = slot.tensor
        if name not in blurred:
            blurred[name] = _blurred(name, b[name], others, soft)
        total += slot.units(a[name])[0] @ slot.units(blurred[name])[0].T
    return total


def _blurred(name: str, tensor: Tensor, others: list[UnitGroup], soft: Mapping[str, Tensor]) -> Tensor:
    """Return one tensor of B with the units of other groups mixed: unit u becomes Σ_v P[u, v]·(unit v)."""
    for other in others:
        done = set()
        for slot in other.slots:
            place = slot.dim, slot.piece
            if slot.tensor == name and place not in done:
                done.add(place)
                if len(slot.piece.parts) == 1 and tensor.shape[slot.dim] == other.size:
                    tensor = torch.tensordot(soft[other.name], tensor, ([1], [slot.dim])).movedim(0, slot.dim)
                else:
                    tensor = mixed(slot, tensor, soft[other.name][None], ())
    return tensor
