"""Activation matching: the permutation under which units respond alike to the same data.

Per unit group the assignment that maximises Σ_u corr(unit u of A, unit p[u] of B) over calibration data (Li et al.
2016; Ainsworth et al. 2023, §3.1). Differs from both in that correlations stand in place of cross-moments unless asked
for, and that groups inside units (head dimensions) are assigned along with them; see ``matching.activations``.
"""

from __future__ import annotations

from typing import Any

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.matching.activations import ActivationSimilarity, assign_once, observe
from lmccheck.alignment.methods import method
from lmccheck.data.batches import count_first


@method("activation-matching", needs=("calibration", "traced"), source="Li et al. 2016", start=3)
def match_activations(problem: Problem, kind: str = "correlation", samples: int | None = None) -> Found:
    """Return the permutation under which units correlate best on the calibration data.

    ``kind``: ``correlation`` or ``cross-moment`` (uncentred). Needs calibration data and a traced network; memory is
    one (width, width) float64 table per site. ``facts`` hold the mean correlation per group.
    """
    spec, moments = problem.spec, observe(problem, "activation-matching", samples)
    alike = ActivationSimilarity.instead(spec, problem.traced("activation-matching").sites, moments, kind)
    permutation, objective = assign_once(spec, alike)
    means = {g.name: float(alike.units(g, permutation).diagonal(dim1=1, dim2=2).mean()) for g in spec.groups}
    facts: dict[str, Any] = {"similarity": kind, f"mean_{kind}".replace("-", "_"): means, "sites": len(alike.tables)}
    data = problem.calibration("activation-matching")
    facts["calibration_samples"] = {"of": data.samples, "activations": count_first(data, samples)}
    facts["not_observed"] = [group.name for group in spec.groups if not alike.sites.get(group.name)]
    return Found(permutation, objective, facts)
