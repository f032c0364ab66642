"""Linear assignment, exact."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def best_assignment(similarity: Tensor) -> tuple[Tensor, float]:
    """Return the permutation p that maximises Σ_u similarity[u, p[u]], and that maximum.

    ``similarity``: (n, n) float. Equivalent to ``scipy.optimize.linear_sum_assignment(similarity, maximize=True)``;
    differs in that the matrix is negated once in float64, which spares the solver its own copy.
    """
    cost = -similarity.detach().to("cpu", torch.float64).numpy()
    rows, columns = linear_sum_assignment(cost)
    return torch.from_numpy(columns), float(-cost[rows, columns].sum())
