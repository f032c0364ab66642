"""What a sample can lose on a cell: losses that are convex in the output, bounded from above between points of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.enclosed import ROUNDING, Enclosed, NoEnclosure
from lmccheck.network.loss import IGNORED

PARTS = 8  # of a cell, at whose edges losses are bounded: little work beside the network's


@dataclass(frozen=True)
class Bounds:
    """Losses of samples on a cell in ``PARTS`` equal parts: what none exceeds, and how much of that is slack.

    ``most``, (n, PARTS + 1): on every part the loss lies under the line that joins its edges' numbers. ``slack``,
    (n,): by how much ``most`` may be lowered by what a narrower cell knows. ``ends``, (n, 2): the losses at both ends.
    """

    most: Tensor
    slack: Tensor
    ends: Tensor

    def of(self, which: Tensor) -> Bounds:
        """Return those of some samples."""
        return Bounds(self.most[which], self.slack[which], self.ends[which])

    @classmethod
    def joined(cls, parts: Sequence[Bounds]) -> Bounds:
        """Return those of several batches as of one."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("most", "slack", "ends")))


def _bounds(output: Enclosed, least: Callable[[Tensor, Tensor | None], Tensor]) -> Bounds:
    """Return the bounds of a loss that is convex, ``least(q, r)`` being the largest of it within r of q.

    A bend above the chord of a part of the cell is at most v/(4·PARTS²) above.
    """
    bend = torch.zeros_like(output.first) if output.bend is None else output.bend
    slack = torch.zeros_like(output.first) if output.slack is None else output.slack
    spread = slack + bend.abs() / (4 * PARTS**2)
    most, known = [], []
    for k in range(PARTS + 1):
        s = k / PARTS
        at = (1 - s) * output.first + s * output.second + s * (1 - s) * bend
        most.append(least(at, spread))
        known.append(least(at, None))
    upper = torch.stack(most, 1)
    exact = torch.stack(known, 1)
    rounding = 64 * ROUNDING * (1 + upper.abs())
    return Bounds(upper + rounding, (upper - exact).amax(1), exact[:, [0, -1]])


def cross_entropy(margins: Enclosed, targets: Tensor) -> Bounds:
    """−log softmax at the targets, (n, classes, …) margins over the target's logit: log Σ exp(margins), increasing."""
    counted = targets != IGNORED

    def least(at: Tensor, spread: Tensor | None) -> Tensor:
        return _mean(torch.logsumexp(at if spread is None else at + spread, 1), counted)

    return _bounds(margins, least)


def margins(output: Enclosed, targets: Tensor) -> Enclosed:
    """Return logits over that of the target, (n, classes, …); of the target's own 0."""
    index = targets.clamp(min=0).unsqueeze(1)
    own = Enclosed(*(None if p is None else p.gather(1, index) for p in _parts(output)))  # type: ignore[arg-type]  # ends are there
    found = (output - own).rounded()
    at_target = torch.zeros_like(output.first, dtype=torch.bool).scatter(1, index, True)
    return Enclosed(*(None if p is None else p.masked_fill(at_target, 0.0) for p in _parts(found)))  # type: ignore[arg-type]  # as above


def squared_error(output: Enclosed, targets: Tensor) -> Bounds:
    """The mean of squared differences: |difference| + r is convex along a chord, and so is its square."""
    apart = output.plus(-targets.to(output.first.dtype)).rounded()

    def least(at: Tensor, spread: Tensor | None) -> Tensor:
        sizes = at.abs() if spread is None else at.abs() + spread
        return _mean(sizes.square(), None)

    return _bounds(apart, least)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean over all but the samples, of what is counted."""
    values = values.reshape(len(values), -1)
    if counted is None:
        return values.mean(1)
    which = counted.reshape(values.shape)
    return values.where(which, 0.0).sum(1) / which.sum(1).clamp(min=1)


def _parts(value: Enclosed) -> tuple[Tensor | None, ...]:
    return value.first, value.second, value.bend, value.slack


def bounded(name: str, output: Enclosed, targets: Tensor) -> Bounds:
    """Return the bounds of a built-in loss of that name. Raises NoEnclosure for another."""
    if name == "cross_entropy":
        return cross_entropy(margins(output, targets.long()), targets)
    if name == "mse":
        if targets.shape != output.shape:
            raise NoEnclosure("targets of another shape than the output")
        return squared_error(output, targets)
    raise NoEnclosure(f"the loss {name}")
