"""Is a loss convex along the head segments of a path, as its author says? Tried on every sample; never proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.trees import mapped, only_tensors, tensors_in
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.network.loss import LOSSES, Loss, measured

GOLDEN = (5**0.5 - 1) / 2
CELLS = 16  # of the line between the outputs at both ends, of uneven lengths: no period of a loss meets all their ends
AT = (0.0, *((k + 0.8 * (k * GOLDEN % 1 - 0.5)) / CELLS for k in range(1, CELLS)), 1.0)
SLACK = 1e-6  # of a loss that is computed in float32 somewhere, relative to 1 + the largest


@dataclass(frozen=True)
class Claim:
    """What came of a loss's claim to be convex: whether it holds, a sentence that says so, and what was seen.

    ``heights``: per segment the largest mean loss at the points looked at, and where.
    """

    holds: bool
    says: str = ""
    heights: dict[int, tuple[float, float]] = field(default_factory=dict)


CONVEX = Claim(True)


def tried(loss: Loss, evaluator: Evaluator, weights: Callable[[int, float], Any], segments: Sequence[int]) -> Claim:
    """Return whether a loss may be taken to be convex along segments on which outputs are affine.

    That of the built-in ones is known. Another's claim is tried on the outputs at both ends, at which ``weights`` gives
    the weights (segment, 0.0 or 1.0): at ``CELLS`` − 1 points z_k between them ℓ(z_k) must lie, for every sample, on or
    below the line from ℓ(z_{k−1}) to ℓ(z_{k+1}), where z_k needs no run of the network. A finite number of points
    refutes such a claim and cannot prove it, which is said.
    """
    if not loss.convex or loss == LOSSES.get(loss.name):
        return Claim(loss.convex)
    heights, samples = {}, 0
    output = evaluator.runner(evaluator.batches[0].take(slice(1)).inputs, "outputs of the network")
    if not only_tensors(output):
        said = f"that the loss {loss.name!r} is convex cannot be tried on outputs that hold more than floating tensors"
        return Claim(False, f"{said}; head segments are sampled")
    for number in segments:
        values = _along(loss, evaluator, weights(number, 0.0), weights(number, 1.0), f"segment {number + 1} of a path")
        samples = values.shape[1]
        wrong = _bent(values)
        if wrong is not None:
            sample, k, ends = wrong
            return Claim(
                False,
                f"the loss {loss.name!r} says it is convex and is not: on sample {sample} along segment {number + 1} "
                f"it is {float(values[k, sample]):.4g} on the way from {ends[0]:.4g} to {ends[1]:.4g}; head segments "
                "are sampled",
            )
        means = values.mean(1)
        top = int(means.argmax())
        heights[number] = float(means[top]), AT[top]
    return Claim(
        True,
        f"that the loss {loss.name!r} is convex is its author's claim: tried on {samples} samples along {len(heights)} "
        f"segments, {CELLS - 1} points each, it held, which does not prove it",
        heights,
    )


def _along(loss: Loss, evaluator: Evaluator, first: Any, second: Any, label: str) -> Tensor:
    """Return losses at ``AT`` from the outputs under ``first`` to those under ``second``, (CELLS + 1, n)."""
    origin = evaluator.network.data.origin
    found = []
    for batch in evaluator.batches:
        ends = []
        for state in (first, second):
            evaluator.runner.load(state)
            output = evaluator.runner(batch.inputs, f"{origin}, {label}")
            ends.append(mapped(lambda tensor: tensor.clone(), output))
        targets = evaluator.runner.cast(batch.targets)
        outputs = (_mixed(ends[0], ends[1], s) for s in AT)
        rows = [measured(loss, output, targets, origin)[0].cpu() for output in outputs]
        found.append(torch.stack(rows))
    evaluator.evaluations += 2
    return torch.cat(found, 1)


def _mixed(first: Any, second: Any, s: float) -> Any:
    """Return (1 − s)·first + s·second of two outputs, in containers like theirs."""
    if s in (0.0, 1.0):
        return second if s else first
    others = iter(tensors_in(second))
    return mapped(lambda x: torch.lerp(x, next(others), s) if x.is_floating_point() else x, first)


def _bent(values: Tensor) -> tuple[int, int, tuple[float, float]] | None:
    """Return (sample, point, losses on both sides) of where losses, (points, n), are least convex, if they are not."""
    below, above = values[:-2], values[2:]
    at = torch.tensor(AT, dtype=values.dtype)[:, None]
    bend = 2 * (values[1:-1] - (below * (at[2:] - at[1:-1]) + above * (at[1:-1] - at[:-2])) / (at[2:] - at[:-2]))
    bend = torch.where((below.isinf() & (below > 0)) | (above.isinf() & (above > 0)), -torch.inf, bend)
    excess = bend - SLACK * (1 + values.nan_to_num(0.0, 0.0, 0.0).abs().amax(0))
    excess = excess.nan_to_num(torch.inf, torch.inf, -torch.inf)  # what is no number is not convex
    if not excess.numel() or float(excess.max()) <= 0:
        return None
    k, sample = divmod(int(excess.argmax()), values.shape[1])
    return sample, k + 1, (float(values[k, sample]), float(values[k + 2, sample]))
