"""How far outputs between two networks are from the line between the outputs of both: by what maps and paths learn.

A loss that is convex in the outputs stays on or below the chord where outputs go straight from A's to B's, as weights
do: this is then 0, and there is no barrier. A label is one draw of what a network says of a sample, its outputs are all
of it, so that fewer samples say which way to go (distillation, Hinton et al. 2015, with both ends as teachers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.data.load import Batch
from lmccheck.evaluate.gradient import Gradient
from lmccheck.network.loss import IGNORED, logits_of
from lmccheck.network.targets import OF_TOKENS

KNOWN = ("cross_entropy", "mse", *OF_TOKENS)  # losses of which it is known what they look at
HELD = 1 << 27  # numbers of outputs that are kept, both ends and all batches together: 512 MB in float32


class Imitation:
    """The distance of a network's outputs from (1 − t)·A's + t·B's, as a function that autograd can follow.

    Of logits it is the divergence KL of the softmax of the line from that of the network, in nats, of every target
    that counts, mean over a sample's targets and then over samples; of the mean square it is the mean square. Of losses
    that look at outputs in ways of their own it is the mean loss itself. Logits of −∞ rule classes out: of the line
    what either end rules out, and the divergence is over what the network does not rule out.
    """

    def __init__(self, gradient: Gradient, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        self._gradient, self._ends = gradient, (a, b)
        self._loss = gradient.network.loss
        self._held: dict[int, tuple[Batch, tuple[Tensor, Tensor]]] = {}
        self._room = HELD

    def __call__(self, weights: Mapping[str, Tensor], t: float, batch: Batch) -> Tensor:
        """Return the distance at ``weights``, a scalar. Raises SourceError where it cannot be differentiated."""
        if self._loss.name not in KNOWN:
            return self._gradient.loss(weights, batch)
        line = _between(*self._of_ends(batch), t)
        return self._gradient.mean(weights, batch, lambda outputs, targets: self._apart(outputs, line, targets))

    def _of_ends(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs of both ends on a batch, those of the first batches from memory."""
        if id(batch) in self._held:
            return self._held[id(batch)][1]
        with torch.no_grad():
            first, second = (logits_of(self._gradient.outputs(end, batch)) for end in self._ends)
        if first.numel() + second.numel() <= self._room:
            self._room -= first.numel() + second.numel()
            self._held[id(batch)] = batch, (first, second)  # the batch too, so that its id stays its own
        return first, second

    def _apart(self, outputs: Any, line: Tensor, targets: Tensor) -> Tensor:
        """Return the distance of every sample, (n,)."""
        given = logits_of(outputs)
        if self._loss.name == "mse":
            return (given - line).square().flatten(1).mean(1)
        if self._loss.name == "next_token":
            given, line, targets = given[:, :-1], line[:, :-1], targets[:, 1:]
        classes = 1 if self._loss.name == "cross_entropy" else -1
        line = line.masked_fill(given.detach() == -torch.inf, -torch.inf)
        ruled_out = line == -torch.inf  # where nothing is left of the line, there is nothing to be taught
        shares = line.log_softmax(classes).masked_fill(ruled_out, 0.0)
        own = given.log_softmax(classes).masked_fill(ruled_out, 0.0)
        each = F.kl_div(own, shares, reduction="none", log_target=True)
        counted = (targets != IGNORED).flatten(1) if targets.ndim > 1 else (targets != IGNORED)[:, None]
        apart = each.sum(classes).reshape(counted.shape).where(counted, 0.0)
        return apart.sum(1) / counted.sum(1).clamp(min=1)


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return (1 − t)·a + t·b, −∞ where an end is: between two of −∞ `lerp` gives no number."""
    return torch.lerp(a, b, t).masked_fill((a == -torch.inf) | (b == -torch.inf), -torch.inf)
