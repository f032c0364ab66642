"""Linear assignment: exact by scipy where the matrix is small, by a certified auction where it is large.

Equivalent to ``scipy.optimize.linear_sum_assignment``; differs in that large matrices are read where they lie, and in
the gap that is then certified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmccheck.alignment.matching.auction import Search
from lmccheck.errors import LmcError


@dataclass(frozen=True)
class Assignment:
    """Unit u of A takes unit ``permutation[u]`` of B, (n,) int64.

    ``value`` is Σ_u S[u, permutation[u]], summed in float64; the optimum exceeds it by at most ``gap``, which is 0.0
    where ``solver`` is ``"scipy"`` and certified up to float64 rounding where it is ``"auction"``.
    """

    permutation: Tensor
    value: float
    gap: float
    solver: str


def assign(similarity: Tensor, *, exact_to: int = 4096, tolerance: float = 1e-6) -> Assignment:
    """Return the assignment of largest total similarity, on the CPU, reproducibly.

    ``similarity``: (n, n), finite, any device and number type; read in place where n > ``exact_to``, on its own device.
    There the search ends once ``gap`` ≤ ``tolerance`` · min(abs(value), value − n · min similarity), or at the optimum
    up to 1e-11 · n · (max − min). If neither comes within bounded work, and where n ≤ ``exact_to``, scipy solves a
    float64 copy exactly. Raises LmcError if the matrix is not square or not finite.
    """
    similarity = similarity.detach()
    if similarity.ndim != 2 or len(similarity) != similarity.shape[1]:
        raise LmcError(f"similarity must be a square matrix to assign units one to one, not {tuple(similarity.shape)}")
    if not len(similarity):
        return Assignment(torch.empty(0, dtype=torch.int64), 0.0, 0.0, "scipy")
    low, high = (float(end) for end in similarity.aminmax())
    if not math.isfinite(low + high):
        raise LmcError("similarity holds NaN or infinite values: no assignment is best; look at the tensors it is of")
    if len(similarity) > max(exact_to, 1):
        readable = similarity.cpu() if similarity.device.type == "mps" else similarity  # mps has no float64
        found = Search(readable, low, high).run(tolerance)
        if found is not None:
            return Assignment(*found, "auction")
    return exact(similarity)


def exact(similarity: Tensor) -> Assignment:
    """Return the optimum for ``similarity``, (n, n) finite, by scipy on one negated float64 copy: 8 n² bytes."""
    cost = torch.empty(similarity.shape, dtype=torch.float64).copy_(similarity).neg_().numpy()
    rows, columns = linear_sum_assignment(cost)
    value = float(-cost[rows, columns].sum())
    return Assignment(torch.from_numpy(columns.astype(np.int64, copy=False)), value, 0.0, "scipy")
