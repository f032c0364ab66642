"""Weights, activations and sensitivities together: annealed matches on all looks at once, and the best by its loss.

How alike two units' weights are, how their activations correlate, and how alike the networks' outputs feel them are
noisy looks at one question. Of units that do not belong together all are near 0 and err apart, so that their sum tells
matches from chance where none does alone: annealed matching maximises Σ_u cos(unit u of A, unit p[u] of B) +
share·corr(…) + share·cos(∂f_A/∂u, ∂f_B/∂p[u]), see ``annealed``. The looks do not say which shares serve a network
best; the loss half-way on calibration data does. Groups inside units, or around them, stay where activations place
them.
"""

from __future__ import annotations

from typing import Any

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.activations import (
    ActivationSimilarity,
    assign_once,
    observe,
    observe_sensitivities,
)
from lmccheck.alignment.matching.annealed import annealed_start
from lmccheck.alignment.matching.norms import compared
from lmccheck.alignment.matching.reassign import affordable
from lmccheck.alignment.matching.similarity import WeightSimilarity
from lmccheck.alignment.methods import method
from lmccheck.data.batches import count_first
from lmccheck.evaluate.calibration import HalfWayLoss
from lmccheck.evaluate.sensitivity import NotDifferentiable
from lmccheck.symmetry.spec import Permutation

SAMPLES = 2048
SHARES = (  # of correlations and of sensitivities; the first ones where not all are affordable
    (0.2, 0.5),
    (0.4, 1.0),
    (0.4, 0.5),
    (0.2, 1.0),
    (0.2, 0.0),
    (0.3, 0.7),
    (0.6, 0.7),
    (0.3, 0.3),
)
BUDGET = 2_500_000_000  # cubed group sizes, as an assignment's cost grows, times matches
_WHAT = "weights and activations together"


class Joint:
    """All looks at a pair, on the first calibration ``samples``. Needs a traced network.

    ``facts`` say what could not be looked at.
    """

    def __init__(self, problem: Problem, samples: int) -> None:
        spec, derived = problem.spec, problem.traced(_WHAT)
        self.problem = problem
        self.a, self.b = compared(problem)
        alike = ActivationSimilarity.instead(spec, derived.sites, observe(problem, _WHAT, samples), "correlation")
        self._start, _ = assign_once(spec, alike)
        self.facts: dict[str, Any] = {}
        try:
            moments = observe_sensitivities(problem, _WHAT, samples)
        except NotDifferentiable as error:
            moments, self.facts = {}, {"no_sensitivities": str(error)}
        feeling = ActivationSimilarity.instead(spec, derived.made if moments else {}, moments, "cosine")
        self._looks = {
            group.name: tuple(look.units(group, self._start)[0] for look in (alike, feeling))
            for group in spec.groups
            if not group.within
        }

    def match(self, activations: float, sensitivities: float) -> Permutation:
        """Return the permutation that weights and, with these shares, both other looks agree on best."""
        seen = {name: activations * alike + sensitivities * felt for name, (alike, felt) in self._looks.items()}
        return annealed_start(self.problem.spec, self.a, self.b, self._start, seen)


@method("together", needs=("calibration", "traced"), start=2, inner=True)
def match_jointly(problem: Problem) -> Found:
    """Return the match of the lowest calibration loss half-way; the objective is that of the weights.

    One match per pair of ``SHARES``, fewer the wider the groups. ``facts`` hold every match's objective and loss.
    """
    spec, pair = problem.spec, problem.pair
    looks, loss = Joint(problem, SAMPLES), HalfWayLoss(pair, SAMPLES)
    shares = SHARES[: affordable(spec, BUDGET, len(SHARES))]
    matches = [looks.match(*several) for several in shares]
    objectives = [WeightSimilarity(spec, looks.a, looks.b, match).objective() for match in matches]
    losses = [loss(spec.apply(pair.theta_b, match)) for match in matches]
    best = losses.index(min(losses))
    table: list[dict[str, Any]] = [
        {"share_of_activations": alike, "share_of_sensitivities": felt, "objective": objective, "loss_half_way": value}
        for (alike, felt), objective, value in zip(shares, objectives, losses, strict=True)
    ]
    data = problem.calibration(_WHAT)
    seen = count_first(data, SAMPLES)
    facts: dict[str, Any] = {"samples": seen, "chosen": table[best], "matches": table}
    facts["calibration_samples"] = {"of": data.samples, "activations": seen, "losses half-way": seen}
    return Found(matches[best], objectives[best], {**facts, **looks.facts})
