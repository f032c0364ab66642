"""Weight matching: the permutation of θ_B whose weights lie closest to θ_A's.

Git Re-Basin, Algorithm 1 (Ainsworth et al. 2023): maximise ⟨θ_A, π·θ_B⟩ by coordinate descent over unit groups, each
step a linear assignment with all other groups held fixed. On the permutation spec it needs no knowledge of the network.
Differs in two ways. Where a BatchNorm follows a layer the scale of a unit's incoming weights means nothing, and the
BatchNorm's own vectors, alike in all networks, would drown the rest: units are matched by the direction of their
weights alone. Descents start from several places, the identity, an *anchored* assignment that first places the groups
known through inputs, outputs and groups already placed, an *annealed* one in which all groups settle together, and
where there is calibration data two that look at activations too, one of them at sensitivities (see ``together``); the
best objective is kept. From the identity alone, the groups of a wide network lock onto each other's noise before the
residual stream is placed, and a planted permutation is missed. Objectives of descents that share few units say little
about the loss: where there is calibration data, the loss half-way decides between the best objective and the descents
begun annealed or with other looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.annealed import annealed_start
from lmccheck.alignment.matching.descent import Descent, descend
from lmccheck.alignment.matching.norms import counted, rows_alone
from lmccheck.alignment.matching.reassign import affordable, in_turn, nested_groups
from lmccheck.alignment.matching.similarity import Counts, WeightSimilarity
from lmccheck.alignment.methods import method
from lmccheck.alignment.methods._joint import Joint
from lmccheck.data.batches import count_first
from lmccheck.evaluate.calibration import HalfWayLoss
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.slots import UnitGroup
from lmccheck.symmetry.spec import Permutation, PermutationSpec

MOST_STARTS = 8
START_BUDGET = 400_000_000  # cubed group sizes, as an assignment's cost grows, times descents


@dataclass(frozen=True)
class Matching:
    """What weight matching found: the best descent, all of them, and ⟨θ_A, θ_B⟩ with nothing moved."""

    best: Descent
    descents: tuple[Descent, ...]
    objective_before: float

    @property
    def permutation(self) -> Permutation:
        """The permutation of the best descent."""
        return self.best.permutation

    @property
    def objective(self) -> float:
        """⟨θ_A, π·θ_B⟩ over the tensors that count."""
        return self.best.objective


STARTING_SAMPLES = 1024  # of calibration data, for matches with other looks to begin descents from, and to choose by
STARTING_SHARES = {"activations": (0.2, 0.0), "sensitivities": (0.2, 0.5)}


@method("weight-matching", source="Ainsworth et al. 2023, Algorithm 1", start=1)
def match_weights(problem: Problem) -> Found:
    """Return the permutation of the best descent; ``facts`` tell how each of them went."""
    pair, derived = problem.pair, problem.derived
    more: dict[str, Permutation] = {}
    looked: dict[str, Any] = {}
    starts = affordable(problem.spec, START_BUDGET, MOST_STARTS)
    data, labelled = pair.calibration, pair.network.labelled
    if derived is not None and data is not None and labelled is not None and starts > 1:
        looks = Joint(problem, STARTING_SAMPLES)
        seen, judged = (count_first(part, STARTING_SAMPLES) for part in (data, labelled))
        counts = {"of": data.samples, "activations": seen, "losses half-way": judged}
        looked = {**looks.facts, "calibration_samples": counts}
        more = {name: looks.match(*shares) for name, shares in STARTING_SHARES.items()}
    layers = derived.layers if derived is not None else ()
    found = match(problem.spec, pair.theta_a, pair.theta_b, seed=problem.seed, layers=layers, more=more)
    rivals = [d for d in found.descents if d is not found.best and d.start in (*more, "annealed")]
    best, losses = found.best, []
    if more:
        half_way = HalfWayLoss(pair, STARTING_SAMPLES)
        tried = [found.best, *rivals]
        values = [half_way(problem.spec.apply(pair.theta_b, descent.permutation)) for descent in tried]
        best = tried[values.index(min(values))]
        losses = [(descent.start, loss) for descent, loss in zip(tried, values, strict=True)]
    descents = [descent.summary() for descent in found.descents]
    facts = {"objective_before": found.objective_before, "start": best.start, "descents": descents, **looked}
    return Found(best.permutation, best.objective, {**facts, "losses_half_way": losses} if losses else facts)


def match(
    spec: PermutationSpec,
    theta_a: Mapping[str, Tensor],
    theta_b: Mapping[str, Tensor],
    *,
    seed: int = 0,
    starts: int | None = None,
    layers: Sequence[Layer] = (),
    more: Mapping[str, Permutation] | None = None,
) -> Matching:
    """Match θ_B to θ_A by ``starts`` descents and keep the best.

    Only learned tensors count; ``layers`` says which layers a BatchNorm follows, of which only the direction of each
    unit's incoming weights counts. ``more`` gives further starts by name. Every descent visits all groups in a seeded
    random order until none improves; a step is taken only if it raises the objective, which therefore never falls. By
    default there are up to eight descents, fewer the wider the groups: for the widest one, from the anchored
    assignment.
    """
    a, b = (rows_alone(counted(spec, theta), layers) for theta in (theta_a, theta_b))
    starts = affordable(spec, START_BUDGET, MOST_STARTS) if starts is None else starts
    generator = torch.Generator().manual_seed(seed)
    identity = spec.identity()
    before = WeightSimilarity(spec, a, b, identity).objective()
    descents = [
        descend(spec, a, b, start, name, generator) for name, start in _starts(spec, a, b, more or {}, starts, seed)
    ]
    best = max(descents, key=lambda descent: descent.objective, default=Descent("identity", identity, (before,), True))
    if not best.objective > before:
        best = Descent("identity", identity, (before,), best.converged)
    return Matching(best, tuple(descents), before)


def _starts(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    more: Mapping[str, Permutation],
    count: int,
    seed: int,
) -> Iterator[tuple[str, Permutation]]:
    """Yield ``count`` starts: anchored, given ones, the identity; then annealed and anchored ones in turn."""
    if not spec.groups:
        return
    anchored = anchored_start(spec, a, b)
    first = [("anchored", anchored), *more.items(), ("identity", spec.identity())]
    yield from first[:count]
    for k in range(count - len(first)):
        yield ("anchored", anchored) if k % 2 else ("annealed", annealed_start(spec, a, b, anchored, seed=seed + k))


def anchored_start(spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Permutation:
    """Return an assignment that places groups one after the other, best-known first.

    A slot is anchored when every other group in its tensor has been placed; the next group is the one whose units are
    described by the most anchored numbers, and only those enter its assignment.
    """
    on_tensor: dict[str, set[str]] = {}
    for group in spec.groups:
        for slot in group.slots:
            on_tensor.setdefault(slot.tensor, set()).add(group.name)
    family = {g.name: {g.name, *g.within, *(child.name for child in nested_groups(spec, g))} for g in spec.groups}
    state = WeightSimilarity(spec, a, b, spec.identity())

    def anchored(group: UnitGroup, placed: Set[str]) -> Counts:
        known = placed | family[group.name]
        return lambda slot: on_tensor[slot.tensor] <= known

    def anchored_numbers(group: UnitGroup, placed: Set[str]) -> float:
        """How many describe a unit, and one, so that groups inside its units always come along."""
        counts = anchored(group, placed)
        slots = [slot for slot in group.slots if slot.tensor in a and counts(slot)]
        return 1 + sum(a[s.tensor].numel() / a[s.tensor].shape[s.dim] * s.repeat * s.block for s in slots)

    for group, placed in in_turn(spec, anchored_numbers):
        state.place(group, anchored(group, placed))
    return state.permutation
