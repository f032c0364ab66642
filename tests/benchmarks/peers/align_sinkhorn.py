"""Align a pair with PyPI's ``sinkhorn-rebasin`` (gradient descent on soft permutations), run by a Python that has it.

Its authors choose the learning rate per network, from 0.1 to 10, so three are tried, 60 iterations each, and the time
is that of all three. The permutations are hard at the end.
"""

from __future__ import annotations

import torch
from common import SHAPE, main
from rebasin import RebasinNet  # type: ignore[import-not-found]
from rebasin.loss import DistL2Loss  # type: ignore[import-not-found]
from torch import Tensor, nn

ITERATIONS = 60
RATES = (0.1, 1.0, 10.0)


def descend(a: nn.Module, b: nn.Module, rate: float) -> tuple[float, dict[str, Tensor]]:
    """Return the mean squared distance that one learning rate ends at, and b's state there."""
    net = RebasinNet(b, input_shape=SHAPE)
    net.identity_init()
    distance = DistL2Loss(a)
    optimizer = torch.optim.AdamW(net.p.parameters(), lr=rate)
    net.train()
    for _ in range(ITERATIONS):
        loss = distance(net())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        found = net()
        return distance(found).item(), {name: tensor.clone() for name, tensor in found.state_dict().items()}


def align(a: nn.Module, b: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return the nearest of the learning rates' results."""
    results = {rate: descend(a, b, rate) for rate in RATES}
    best = min(results, key=lambda rate: results[rate][0])
    return results[best][1], f"learning rate {best:g} of " + ", ".join(f"{r:g}: {v[0]:.4g}" for r, v in results.items())


if __name__ == "__main__":
    main("sinkhorn-rebasin", align)
