"""The loss of a network bounded on a line between two points of weight space, on its evaluation data."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lmccheck.data.batches import in_parts, rebatched
from lmccheck.data.load import Batch
from lmccheck.errors import LmcError
from lmccheck.evaluate.enclosure.enclosed import NoEnclosure
from lmccheck.evaluate.enclosure.run import Enclosing
from lmccheck.evaluate.enclosure.search import PILOT, Search, Shown, Sought
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.network.network import Network
from lmccheck.symmetry.trace import Shaped, Trace, value_of

TOGETHER = 512  # samples at most that are run at a time
KEPT = 2**18  # numbers that a layer keeps of them, 2 MB: they stay in the caches, and the system takes no pages back
SAMPLES_TRACED = 2
HELD = 1 << 24  # losses of samples that are held together, 128 MB
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
    try:
        return _search(network, first, second, sought, evaluator).run()
    except NoEnclosure as error:
        return Shown.nothing(f"no enclosure is known of {error}")
    except LmcError as error:
        return Shown.nothing(str(error).partition("; mend:")[0])


def bounded_samples(
    network: Network, first: Mapping[str, Tensor], second: Mapping[str, Tensor], sought: Sought
) -> list[tuple[float, Tensor]]:
    """Return points of the line between two state dicts with losses of samples, (n,), that bound all of it.

    As ``Search.evenly`` has them: cells are as narrow as calibration data ask for. Raises NoEnclosure where there is
    no bound, LmcError as measuring does.
    """
    evaluator = Evaluator(network, first, dtype=torch.float64)
    search = _search(network, first, second, sought, evaluator)
    pilot: tuple[Batch, ...] = ()
    if network.labelled is not None:
        few = rebatched(network.labelled)[0]
        pilot = (ready(evaluator, few.take(slice(PILOT))),)
    found: list[tuple[float, Tensor]] = []
    for each in search.evenly(pilot):
        found.append(each)
        if len(found) * len(each[1]) > HELD:
            raise NoEnclosure(f"more than {HELD} losses at once")
    return found


def _search(
    network: Network,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    sought: Sought,
    evaluator: Evaluator | None = None,
) -> Search:
    if network.loss.name not in BOUNDED:
        raise NoEnclosure(f"the loss {network.loss.name}")
    traced = network.traced
    if traced is None:
        raise NoEnclosure("a network that is not traced, since its permutation spec is given")
    enclosing = Enclosing(traced.trace, min(SAMPLES_TRACED, network.data.batches[0].samples), network.loss.name)
    exact = evaluator or Evaluator(network, first, dtype=torch.float64)
    line = exact.line(first, second)
    together = _together(traced.trace, enclosing.traced, first)
    batches = [part for batch in exact.batches for part in _parts(exact, batch, together)]

    def losses(t: float) -> Tensor:
        label = f"the network at t = {t:.4g}, in float64"
        return exact.measure(line.at(t), reestimate=False, label=label).losses

    return Search(enclosing, line, batches, sought, losses)


def _together(trace: Trace, samples: int, weights: Mapping[str, Tensor]) -> int:
    """Return how many samples are run at a time, so that a layer keeps ``KEPT`` numbers of them; a trace is of some.

    More where there are more weights than that: their own bounds are made again for each such part of the samples.
    """
    shapes = [value.shape for node in trace.graph.nodes if isinstance(value := value_of(node), Shaped)]
    kept = max(1, *(prod(shape) // samples for shape in shapes if shape[:1] == (samples,)))
    number = max(KEPT, sum(tensor.numel() for tensor in weights.values())) // kept
    return min(TOGETHER, max(1, number))


def _parts(evaluator: Evaluator, batch: Batch, together: int) -> tuple[Batch, ...]:
    return in_parts(ready(evaluator, batch), -(-batch.samples // together), batch.samples)


def ready(evaluator: Evaluator, batch: Batch) -> Batch:
    """Return a batch as the network runs on it: in the evaluator's dtype, on its device."""
    return Batch(evaluator.runner.cast(batch.inputs), evaluator.runner.cast(batch.targets))
