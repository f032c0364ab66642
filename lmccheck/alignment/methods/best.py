"""The best of all methods: each is run once, and the lowest barrier on calibration data decides.

Equivalent to trying every method in turn; differs in that what a method found, and its barrier, are remembered with the
pair, so that ``learned``, which starts from the best of the others, shares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.methods import declared, method, starts
from lmccheck.alignment.triage import Kinship, kinship
from lmccheck.evaluate.calibration import CalibrationBarrier, barrier_samples
from lmccheck.evaluate.gradient import unless_obstructed
from lmccheck.network.pair import ModelPair


@method("best")
def match_best(problem: Problem) -> Found:
    """Run every method there is data for and return the one with the lowest barrier on calibration data.

    It starts with triage: networks of one initialisation that have no barrier as they are stay as they are, and nothing
    else is run. Evaluation data is never looked at. Without calibration data, or a traced network, this is weight
    matching.
    Nothing is learned of a loss that autograd cannot follow. ``facts`` hold every candidate's objective and
    calibration barrier, and why nothing was learned.
    """
    if problem.pair.calibration is None or problem.derived is None:
        why = "no calibration data" if problem.pair.calibration is None else "the symmetry is given, not traced"
        found = solve(problem, "weight-matching")
        return Found(found.permutation, found.objective, {"chosen": "weight-matching", "because": why, **found.facts})
    kin, names, refused = problem.pair.once(_kinship), starts(), ""
    candidates = [_candidate(problem, name) for name in names[:1]]
    if kin.kind != "shared" or candidates[0].barrier > 0:  # no method does better than no barrier, and the first wins
        candidates += [_candidate(problem, name) for name in names[1:]]
        learn = partial(_candidate, problem, "learned")
        last = unless_obstructed(problem.pair.network, problem.pair.theta_a, learn)
        refused, more = (last, []) if isinstance(last, str) else ("", [last])
        candidates += more
    best = _lowest(candidates)
    table = [{"method": c.method, "objective": c.found.objective, "calibration_barrier": c.barrier} for c in candidates]
    facts: dict[str, Any] = {"chosen": best.method, "calibration_barrier": best.barrier, "candidates": table}
    facts["triage"] = kin.facts()
    facts |= {"not_learned": refused} if refused else {}
    facts["calibration_samples"] = barrier_samples(problem.pair.calibration)
    return Found(best.found.permutation, best.found.objective, {**facts, "chosen_facts": best.found.facts})


def solve(problem: Problem, method: str) -> Found:
    """Return what a method finds; every method runs once per pair and seed.

    Raises UnsupportedArchitecture or SourceError where the problem lacks what the method needs.
    """
    return problem.pair.once(_solved, method, problem.seed)


def _solved(pair: ModelPair, method: str, seed: int) -> Found:
    problem, chosen = Problem(pair, seed), declared(method)
    chosen.require(problem)
    return chosen.run(problem)


def _kinship(pair: ModelPair) -> Kinship:
    return kinship(pair.theta_a, pair.theta_b)


@dataclass(frozen=True)
class Candidate:
    """A method's answer and its barrier on calibration data."""

    method: str
    found: Found
    barrier: float


def best_start(problem: Problem) -> Candidate:
    """Return the candidate of the lowest calibration barrier among the methods to start from."""
    return _lowest([_candidate(problem, name) for name in starts()])


def _lowest(candidates: list[Candidate]) -> Candidate:
    return min(candidates, key=lambda candidate: candidate.barrier)


def _candidate(problem: Problem, method: str) -> Candidate:
    return problem.pair.once(_measured, method, problem.seed)


def _measured(pair: ModelPair, method: str, seed: int) -> Candidate:
    problem = Problem(pair, seed)
    found = solve(problem, method)
    barrier = pair.once(CalibrationBarrier)(problem.spec.apply(pair.theta_b, found.permutation))
    return Candidate(method, found, barrier)
