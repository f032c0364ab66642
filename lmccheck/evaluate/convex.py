"""The last layer's weights, fitted a little more: to what the original network says instead of to its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PULLS = (0.1, 0.01, 0.001)  # back to the start, as a share of the mean square of what is read
STEPS = 10
MOST = 1 << 26  # numbers of features that are held


def polished_head(
    rows: Sequence[tuple[Tensor, Tensor, bool]], weight: Tensor, constant: Tensor, *, free: bool = True
) -> tuple[Tensor, Tensor] | None:
    """Return a head whose class probabilities are nearer to the original's on held out rows; None if none was found.

    min over (V, c) of mean KL(softmax z ‖ softmax(x·V + c)) + ½·pull·E[x²]·‖V − weight‖², convex, by a few steps of
    L-BFGS on the rows that are fitted to. The targets are what the original network says and not the labels: on data
    that it was trained on, labels would only make it more certain. ``rows``: per batch what the head reads (rows, k),
    the original's logits z (rows, o), and whether it is fitted to. ``weight`` (k, o), ``constant`` (o,) float64:
    where it starts; without ``free`` the constant stays.
    """
    if not weight.shape[0] or sum(x.numel() for x, _, _ in rows) > MOST:
        return None
    parts = []
    for part in (True, False):
        x = torch.cat([x.double() for x, _, fitted in rows if fitted == part])
        z = torch.cat([z.double() for _, z, fitted in rows if fitted == part])
        parts.append((x, z.log_softmax(1)))
    start, base = weight.to(parts[0][0]).contiguous(), constant.to(parts[0][0])
    square = float(parts[0][0].square().mean())

    def divergence(v: Tensor, c: Tensor, part: int) -> Tensor:
        x, known = parts[part]
        return F.kl_div((x @ v + c).log_softmax(1), known, reduction="batchmean", log_target=True)

    best, lowest = None, float(divergence(start, base, 1))
    for pull in PULLS:
        v, c = start.clone().requires_grad_(), base.clone().requires_grad_(free)
        search = torch.optim.LBFGS([v, c] if free else [v], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure(v: Tensor = v, c: Tensor = c, s: torch.optim.LBFGS = search, pull: float = pull) -> Tensor:
            s.zero_grad()
            value = divergence(v, c, 0) + 0.5 * pull * square * (v - start).square().sum()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            return value

        with torch.enable_grad():
            search.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it without types
        found = v.detach(), c.detach()
        reached = float(divergence(*found, 1))
        if reached < lowest and all(bool(t.isfinite().all()) for t in found):
            best, lowest = found, reached
    return None if best is None else (best[0].cpu(), best[1].cpu())
