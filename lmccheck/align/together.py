"""Weights and activations together: the annealed match on both similarities at once.

How alike two units' weights are and how their activations correlate are two noisy looks at one question. Of units that
do not belong together both are near 0 and err apart, so that their sum tells matches from chance where neither does:
annealed matching maximises Σ_u cos(unit u of A, unit p[u] of B) + SHARE·corr(…), see ``annealed``. Groups inside units,
or around them, stay where activations place them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmccheck.align.activations import ActivationSimilarity, assign_once, observe
from lmccheck.align.annealed import annealed_start
from lmccheck.align.method import Problem
from lmccheck.symmetry.spec import Permutation

SHARE = 0.2  # of a correlation: cosines of matched units, among hundreds of weights, are a fraction of it


def together_start(problem: Problem, a: Mapping[str, Tensor], b: Mapping[str, Tensor], samples: int) -> Permutation:
    """Return the permutation that weights ``a`` and ``b``, the tensors that count, and activations agree on best.

    Activations are those of the first calibration ``samples``. Needs a traced network.
    """
    spec = problem.spec
    moments = observe(problem, "weights and activations together", samples)
    sites = problem.traced("weights and activations together").sites
    tables = {site: found.similarity("correlation") for site, found in moments.items()}
    alike = ActivationSimilarity(spec, sites, tables)
    start, _ = assign_once(spec, alike)
    seen = {group.name: SHARE * alike.units(group, start)[0] for group in spec.groups if not group.within}
    return annealed_start(spec, a, b, start, seen)
