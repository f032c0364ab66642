"""Ridge regression with a constant, from moments that are summed over batches in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARES = (1e-6, 1e-4, 1e-2)  # of the mean second moment of what is read, by which deviations from the start cost


class Moments:
    """Sums over rows of regressors x, (rows, k), and targets z, (rows, o): all that a linear fit needs to know."""

    def __init__(self) -> None:
        self.count = 0
        self.xx = self.xz = self.x = self.z = torch.zeros(0, dtype=torch.float64)
        self.zz = 0.0

    def add(self, x: Tensor, z: Tensor) -> None:
        """Take rows in, of any float dtype and device."""
        x, z = x.double(), z.double()
        if not self.count:
            self.xx, self.xz = (x.new_zeros(x.shape[1], n) for n in (x.shape[1], z.shape[1]))
            self.x, self.z = x.new_zeros(x.shape[1]), z.new_zeros(z.shape[1])
        self.count += len(x)
        self.xx += x.T @ x
        self.xz += x.T @ z
        self.x += x.sum(0)
        self.z += z.sum(0)
        self.zz += float((z * z).sum())

    def residual(self, weight: Tensor, constant: Tensor) -> float:
        """Return the mean of ‖x·weight + constant − z‖² over the rows; weight (k, o), constant (o,) float64."""
        square = (weight * (self.xx @ weight)).sum() - 2 * (weight * self.xz).sum() + self.zz
        linear = 2 * ((self.x @ weight) * constant).sum() - 2 * (self.z * constant).sum()
        return float(square + linear + self.count * (constant * constant).sum()) / max(1, self.count)


def ridge(moments: Moments, start: Tensor, share: float, *, constant: bool = True) -> tuple[Tensor, Tensor]:
    """Return the weight (k, o) and constant (o,) that minimise ‖X·V + c − Z‖² + λ‖V − start‖², float64.

    λ = ``share`` · tr(XᵀX)/k of the centred regressors, so that nothing depends on their scale; the constant is free,
    or zero without ``constant``. Equivalent to least squares on rows extended by √λ·I and √λ·start.
    """
    xx, xz = moments.xx, moments.xz
    mean, target = moments.x / moments.count, moments.z / moments.count
    if constant:
        xx = xx - moments.count * torch.outer(mean, mean)
        xz = xz - moments.count * torch.outer(mean, target)
    start = start.to(xx)
    weight = start
    if len(start) and bool(xx.isfinite().all()):
        scale = float(xx.diagonal().mean())
        level = share * scale if scale > 0 else 1.0
        unit = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        factor, failed = torch.linalg.cholesky_ex(xx + level * unit)
        while int(failed):  # rounding took a pivot below zero
            level = max(10 * level, 1e-12 * scale)
            factor, failed = torch.linalg.cholesky_ex(xx + level * unit)
        weight = start + torch.cholesky_solve(xz - xx @ start, factor)
    return weight, target - mean @ weight if constant else torch.zeros_like(target)


def chosen_ridge(
    fit: Moments, held: Moments, start: Tensor, *, constant: bool = True, shares: Sequence[float] = SHARES
) -> tuple[Tensor, Tensor, float]:
    """Return the ridge fit, and its share, that leaves the smallest residual on held out rows."""
    fits = [(*ridge(fit, start, share, constant=constant), share) for share in shares]
    return min(fits, key=lambda item: held.residual(item[0], item[1]))
