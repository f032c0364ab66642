"""The alignment methods by name, and the two that build on the others: learned, and the best of all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from lmccheck.alignment.contract import Found, Method, Problem
from lmccheck.alignment.methods.activation_matching import match_activations
from lmccheck.alignment.methods.joint import match_together
from lmccheck.alignment.methods.learned import match_learned
from lmccheck.alignment.methods.transport import match_transport
from lmccheck.alignment.methods.weight_matching import match_weights
from lmccheck.evaluate.calibration import CalibrationBarrier
from lmccheck.network.pair import ModelPair


def learn(problem: Problem) -> Found:
    """Return what learning makes of the best of the other methods."""
    start = _best_of(problem, STARTS)
    found = match_learned(problem, start.found.permutation)
    return Found(found.permutation, found.objective, {"start": start.method, **found.facts})


def match_best(problem: Problem) -> Found:
    """Run every method there is data for and return the one with the lowest barrier on calibration data.

    Evaluation data is never looked at. Without calibration data, or a traced network, this is weight matching.
    ``facts`` hold every candidate's objective and calibration barrier.
    """
    if problem.pair.calibration is None or problem.derived is None:
        why = "no calibration data" if problem.pair.calibration is None else "the symmetry is given, not traced"
        found = solve(problem, "weight-matching")
        return Found(found.permutation, found.objective, {"chosen": "weight-matching", "because": why, **found.facts})
    candidates = [_candidate(problem, method) for method in (*STARTS, "learned")]
    best = min(candidates, key=lambda candidate: candidate.barrier)
    table = [{"method": c.method, "objective": c.found.objective, "calibration_barrier": c.barrier} for c in candidates]
    facts = {"chosen": best.method, "calibration_barrier": best.barrier, "candidates": table}
    return Found(best.found.permutation, best.found.objective, {**facts, "chosen_facts": best.found.facts})


def stay(problem: Problem) -> Found:
    """Return the identity: θ_B as it is."""
    return Found(problem.spec.identity(), 0.0, {})


METHODS: dict[str, Method] = {
    "weight-matching": match_weights,
    "activation-matching": match_activations,
    "transport": match_transport,
    "transport-both": partial(match_transport, outgoing=True),
    "learned": learn,
    "best": match_best,
}
STARTS = ("identity", "weight-matching", "together", "activation-matching", "transport", "transport-both")
INNER: dict[str, Method] = {"identity": stay, "together": match_together}  # tried by others, not chosen by name


def solve(problem: Problem, method: str) -> Found:
    """Return what a method finds; every method runs once per pair and seed."""
    return problem.pair.once(_solved, method, problem.seed)


def _solved(pair: ModelPair, method: str, seed: int) -> Found:
    return {**METHODS, **INNER}[method](Problem(pair, seed))


@dataclass(frozen=True)
class Candidate:
    """A method's answer and its barrier on calibration data."""

    method: str
    found: Found
    barrier: float


def _candidate(problem: Problem, method: str) -> Candidate:
    return problem.pair.once(_measured, method, problem.seed)


def _measured(pair: ModelPair, method: str, seed: int) -> Candidate:
    problem = Problem(pair, seed)
    found = solve(problem, method)
    barrier = pair.once(CalibrationBarrier)(problem.spec.apply(pair.theta_b, found.permutation))
    return Candidate(method, found, barrier)


def _best_of(problem: Problem, methods: tuple[str, ...]) -> Candidate:
    problem.calibration("learned")
    return min((_candidate(problem, method) for method in methods), key=lambda candidate: candidate.barrier)
