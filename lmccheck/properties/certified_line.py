"""A line that passes at its points, certified between them: over all t, where an enclosure of the network is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.curves import Curve
from lmccheck.errors import LmcError
from lmccheck.evaluate.line import Point
from lmccheck.finding import Compared, Finding, bound_of
from lmccheck.properties.measured_line import Apart, Line, compared, measure_point
from lmccheck.shown import rounded_up

if TYPE_CHECKING:
    from lmccheck.evaluate.enclosure.search import Shown, Sought
    from lmccheck.evaluate.segment import Segment

Certify = Literal["auto", "always", "never"]
GRIDS = {  # of what measuring the line itself costs, by profile: what proving it may cost
    "auto": {"dev": 0.0, "ci": 1.0, "thorough": 10.0},
    "always": {"dev": 100.0, "ci": 100.0, "thorough": 1000.0},
}
ROUNDING = 1e-4  # relative, of losses in float32, generously: what is above a bound by more is of another network


@dataclass(frozen=True)
class Proof:
    """What was shown of a line, as ``certify`` asked; ``shown`` is None where nothing was asked of it."""

    asked: str
    shown: Shown | None
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the barrier is at most the limit for all t."""
        return self.shown is not None and self.shown.bound <= self.limit

    @property
    def why(self) -> str:
        """Why it is not certified, "" where it is."""
        if self.holds or self.shown is None:
            return ""
        return self.shown.why


def proven(
    between: Segment, line: Line, limit: float | str, certify: str, profile: str, apart: Apart | None, *, traced: bool
) -> tuple[Line, Proof]:
    """Return the line and what can be shown of it over all t, at the cost that ``certify`` and the profile allow.

    ``traced``: whether the network was traced anyway, to be aligned; what ``auto`` may cost in ci is less than a trace.

    Where the search meets a point that is above the limit, the line returned holds it, and fails.
    """
    part = line.worst_part
    judged = line if part is None else line.part(part)
    bound = bound_of(limit, max(judged.a.loss, judged.b.loss))
    budget = 0.0 if certify == "never" else GRIDS[certify][profile] * len(line.points)
    if not (judged.highest[0] <= bound and budget > 0):
        return line, Proof(certify, None, bound)
    traced = traced or certify == "always" or profile == "thorough"
    shown = _shown(between, _sought(between, line, judged, bound, budget, apart), traced)
    if shown.above is not None:
        found = replace(measure_point(between, shown.above, apart), chosen=True)
        points = sorted([*(p for p in line.points if p.t != found.t), found], key=lambda point: point.t)
        line = replace(line, points=points)
    return line, Proof(certify, shown, bound)


def _shown(between: Segment, sought: Sought, traced: bool) -> Shown:
    from lmccheck.evaluate.enclosure.lines import bounded_line
    from lmccheck.evaluate.enclosure.search import Shown

    if between.reestimates:
        return Shown.nothing("BatchNorm is re-estimated at every point, so that what is measured is no straight line")
    if between.method == "repair" and between.facts().get("layers"):
        return Shown.nothing("REPAIR mends every point, so that what is measured is no straight line")
    if not traced:
        return Shown.nothing("nothing was aligned, so that the network was not traced; mend: certify = 'always'")
    shown = bounded_line(between.evaluator.network, between.first, between.second, sought)
    loss = max(*sought.a, *sought.b) + sought.height
    if sought.height > shown.bound + ROUNDING * (1 + loss):  # it bounds something else
        return Shown.nothing(f"no enclosure is known of a network that is above its bound at t = {sought.likely:.4g}")
    return shown


def everywhere(
    between: Segment, line: Line, own: tuple[Any, Any], apart: Apart | None, proof: Proof, profile: str
) -> tuple[list[Compared], str]:
    """Return bounds of samples' losses all along the line beside its chord, or why there are none.

    ``own``: what both endpoints lose, (n,) each. Between the edges of a part of a cell both are straight, so that the
    edges are enough.
    """
    from lmccheck.evaluate.enclosure.enclosed import NoEnclosure
    from lmccheck.evaluate.enclosure.lines import bounded_samples

    budget = 0.0 if proof.asked == "never" else GRIDS[proof.asked][profile] * len(line.points)
    if budget == 0:
        return [], ""
    if not proof.holds:
        return [], proof.why or "these data themselves are not certified"
    network = between.evaluator.network
    sought = _sought(between, line, line, proof.limit, budget, None)
    try:
        edges = bounded_samples(network, between.first, between.second, sought)
    except NoEnclosure as error:
        return [], f"no enclosure is known of {error}"
    except LmcError as error:
        return [], str(error).partition("; mend:")[0]
    return compared([Point(t, 0.0, None, losses=losses) for t, losses in edges], own, apart=apart), ""


def _sought(between: Segment, line: Line, judged: Line, bound: float, budget: float, apart: Apart | None) -> Sought:
    """Return what is to be shown: the same of all samples, or of every part."""
    import numpy as np

    from lmccheck.evaluate.enclosure.search import Sought

    if apart is None:
        samples = between.evaluator.network.data.samples
        return Sought.of_all(samples, line.a.loss, line.b.loss, bound, judged.highest, budget)
    ends = [[end.loss for end in apart.ends[name]] for name in line.parts]
    a, b = np.array(ends).T
    return Sought(apart.slices.index, a, b, bound, judged.highest[1], judged.highest[0], budget, bound / 8)


def with_proof(found: Finding, line: Line, proof: Proof) -> Finding:
    """Return a finding about a line with what was shown of it; inconclusive where a proof was asked for and is none."""
    if proof.shown is None:
        return found
    shown = proof.shown
    certified = max(shown.bound, found.value) if math.isfinite(shown.bound) else None
    facts = {
        "certified_bound": certified,
        "certified_lower": found.value,
        "cells": shown.cells,
        "certify": {"asked": proof.asked, "passes": shown.passes, "why": proof.why or None},
    }
    found = replace(found, facts={**found.facts, **facts})
    if proof.holds:
        if isinstance(found.curve, Curve):
            names = list(line.parts)
            k = names.index(str(line.worst_part)) if names else 0
            found = replace(found, curve=_bounded(found.curve, shown, k))
        return replace(found, known=f"certified ≤ {rounded_up(max(shown.bound, found.value))} over all t")
    if certified is not None:
        found = replace(found, known=f"{found.known}; a bound over all t came to {rounded_up(certified)}")
    if proof.asked != "always" or found.judged != "pass":
        return found
    says = f"{found.known}, and not certified between them: {proof.why}"
    failure = [
        f"inconclusive: {says}",
        "mend: certify = 'auto', which passes by the points alone, profile = 'thorough', which may cost more, or "
        "fewer samples",
    ]
    return replace(found, verdict="inconclusive", notes=[*found.notes, f"not certified: {proof.why}"], failure=failure)


def _bounded(curve: Curve, shown: Shown, part: int) -> Curve:
    """Return the curve of a part of the samples with what none of its losses exceeds, measured ones included."""
    t, losses = curve.t, curve.losses
    around = [(max(0, k - 1), min(len(t) - 1, k + 1)) for k in range(len(t))]
    upper = [max(shown.top(t[i], t[j], part), *losses[i : j + 1]) for i, j in around]
    return replace(curve, highest=max(shown.highest[part], *losses), upper=upper)
