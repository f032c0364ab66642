"""The best of all methods: each is run once, and the lowest barrier on calibration data decides.

Equivalent to trying every method in turn; differs in that what a method found, and its barrier, are remembered with the
pair, so that ``learned``, which starts from the best of the others, shares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.methods import declared, method, starts
from lmccheck.evaluate.calibration import CalibrationBarrier


@method("best")
def match_best(problem: Problem) -> Found:
    """Run every method there is data for and return the one with the lowest barrier on calibration data.

    Evaluation data is never looked at. Without calibration data, or a traced network, this is weight matching.
    ``facts`` hold every candidate's objective and calibration barrier.
    """
    if problem.pair.calibration is None or problem.derived is None:
        why = "no calibration data" if problem.pair.calibration is None else "the symmetry is given, not traced"
        found = solve(problem, "weight-matching")
        return Found(found.permutation, found.objective, {"chosen": "weight-matching", "because": why, **found.facts})
    candidates = [_candidate(problem, name) for name in (*starts(), "learned")]
    best = _lowest(candidates)
    table = [{"method": c.method, "objective": c.found.objective, "calibration_barrier": c.barrier} for c in candidates]
    facts = {"chosen": best.method, "calibration_barrier": best.barrier, "candidates": table}
    return Found(best.found.permutation, best.found.objective, {**facts, "chosen_facts": best.found.facts})


def solve(problem: Problem, method: str) -> Found:
    """Return what a method finds; every method runs once per pair and seed.

    Raises UnsupportedArchitecture or SourceError where the problem lacks what the method needs.
    """
    cache = problem.pair.cache
    key = ("found", method, problem.seed)
    if key not in cache:
        chosen = declared(method)
        chosen.require(problem)
        cache[key] = chosen.run(problem)
    found: Found = cache[key]
    return found


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
    found = solve(problem, method)
    cache: dict[Any, Any] = problem.pair.cache
    if "calibration barrier" not in cache:
        cache["calibration barrier"] = CalibrationBarrier(problem.pair)
    key = ("calibration barrier", method, problem.seed)
    if key not in cache:
        cache[key] = cache["calibration barrier"](problem.spec.apply(problem.pair.theta_b, found.permutation))
    return Candidate(method, found, cache[key])
