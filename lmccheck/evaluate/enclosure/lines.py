"""The loss of a network bounded on a line between two points of weight space, on its evaluation data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.data.batches import in_parts
from lmccheck.data.load import Batch
from lmccheck.errors import LmcError
from lmccheck.evaluate.enclosure.enclosed import NoEnclosure
from lmccheck.evaluate.enclosure.run import Enclosing
from lmccheck.evaluate.enclosure.search import Search, Shown, Sought
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.points import interpolate
from lmccheck.network.network import Network

TOGETHER = 512  # samples that are run at a time, so that what a layer keeps of them stays in the caches
SAMPLES_TRACED = 2
MOST_PARTS = 200  # of the samples, each of which has its own chord
BOUNDED = ("cross_entropy", "mse")  # losses of which convex bounds are known


def bounded_line(
    network: Network,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    sought: Sought,
    evaluator: Evaluator | None = None,
) -> Shown:
    """Return what can be shown of the loss on the line between two state dicts, BatchNorm statistics among them.

    Everything is in float64, with room for the rounding; ``evaluator``, a float64 one, is made where none is given.
    Where nothing can be said, ``why`` says why: an op without an enclosure, a loss, a graph that cannot be traced.
    """
    if len(sought.a) > MOST_PARTS:
        return Shown.nothing(f"the samples have {len(sought.a)} parts, and at most {MOST_PARTS} are bounded")
    if network.loss.name not in BOUNDED:
        return Shown.nothing(f"no bound is known of the loss {network.loss.name}")
    try:
        traced = network.traced
        if traced is None:
            return Shown.nothing("the permutation spec is given, so the network is not traced")
        enclosing = Enclosing(traced.trace, min(SAMPLES_TRACED, network.data.batches[0].samples), network.loss.name)
        evaluator = evaluator or Evaluator(network, first, dtype=torch.float64)
        ends = evaluator.weights(first), evaluator.weights(second)
        batches = [part for batch in evaluator.batches for part in _parts(evaluator, batch)]

        def losses(t: float) -> Tensor:
            label = f"the network at t = {t:.4g}, in float64"
            return evaluator.measure(interpolate(*ends, t), reestimate=False, label=label).losses

        return Search(enclosing, *ends, batches, sought, losses).run()
    except NoEnclosure as error:
        return Shown.nothing(f"no enclosure is known of {error}")
    except LmcError as error:
        return Shown.nothing(str(error).partition("; mend:")[0])


def _parts(evaluator: Evaluator, batch: Batch) -> tuple[Batch, ...]:
    ready = Batch(evaluator.runner.cast(batch.inputs), evaluator.runner.cast(batch.targets))
    return in_parts(ready, -(-ready.samples // TOGETHER), ready.samples)
