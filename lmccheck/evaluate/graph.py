"""Running the traced graph of a network with given weights, and looking at (or replacing) values on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.evaluate.curve import cut, upcast
from lmccheck.evaluate.forward import Runner, exact_float32
from lmccheck.sources import Batch, Data
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.trace import Shaped, Trace, quiet_logs, trace, value_of

Look = Callable[[str, Tensor], Tensor | None]
HELD = 1 << 25  # numbers of watched values held at a time: 128 MB in float32


class GraphRunner:
    """Runs a module's traced graph on batches of any shape; it is traced once per shape.

    What a node of the graph gives is shown to ``look(name, value)``, which may return a tensor to go on with instead.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.runner = Runner(module, device, dtype)
        self._traces: dict[Any, Trace] = {}

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights on the device, in the working dtype."""
        return upcast(state, self.runner.dtype, self.runner.device)

    def run(self, weights: Mapping[str, Tensor], inputs: Any, watched: Collection[str], look: Look, where: str) -> None:
        """Run the graph once; ``inputs`` is a tensor or a tuple of positional arguments.

        Raises SourceError, beginning with ``where``, when the graph cannot run, UnsupportedArchitecture when the
        network is another one on inputs of this shape.
        """
        if isinstance(inputs, dict):
            raise SourceError(
                f"{where}: got inputs as a dict, expected a tensor or a tuple; mend: give positional inputs"
            )
        given = self.runner.cast(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))
        traced = self._trace(given, where)
        names = {node.name for node in traced.graph.nodes}
        absent = next((name for name in watched if name not in names), None)
        if absent is not None:
            raise UnsupportedArchitecture(
                f"{where}: the network computes something else on inputs of this shape than on the first two samples "
                f"(no {absent!r}); mend: give batches of one shape"
            )
        leaves = iter(pytree.tree_leaves(given))
        values = [
            weights[holder.target] if holder.stored else next(leaves) if holder.kind == "input" else holder.value
            for holder in traced.placeholders.values()
        ]
        try:
            with torch.no_grad(), exact_float32(), quiet_logs():
                _Watching(traced.module, set(watched), look).run(*values)
        except Stop:
            pass
        except LmcError:
            raise
        except Exception as error:  # whatever the network's own ops raise
            said = (str(error).strip() or "no message").splitlines()[0]
            raise SourceError(f"{where}: running the traced model raised {said}; mend: check the data") from error

    def _trace(self, inputs: tuple[Any, ...], where: str) -> Trace:
        key = tuple((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in pytree.tree_leaves(inputs))
        if key not in self._traces:
            self.runner(inputs, where)  # inputs that do not fit say so, and where they come from
            self._traces[key] = trace(self.runner.module, inputs, RULES)
        return self._traces[key]


class Stop(Exception):
    """Raised by a look that has seen enough of a run."""


class _Watching(fx.Interpreter):
    """An interpreter that shows what the watched nodes give."""

    def __init__(self, module: fx.GraphModule, watched: set[str], look: Look) -> None:
        super().__init__(module)
        self._watched, self._look = watched, look

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self._watched or (n.op == "placeholder" and not isinstance(result, Tensor)):
            return result
        replaced = self._look(n.name, result)
        return result if replaced is None else replaced


def even_batches(data: Data, traced: Trace, watched: Collection[str], samples: int | None = None) -> tuple[Batch, ...]:
    """Return the first ``samples`` samples in batches of few shapes that keep the watched values within ``HELD``.

    ``traced`` is a trace on two samples, whose shapes tell how much a sample needs.
    """
    if not data.rebatch:
        return data.batches
    whole = data.batches[0]
    most = whole.samples if samples is None else min(samples, whole.samples)
    sizes = [value_of(node) for node in traced.graph.nodes if node.name in watched]
    each = sum(torch.Size(size.shape).numel() for size in sizes if isinstance(size, Shaped)) // min(2, whole.samples)
    limit = max(1, min(1024, HELD // max(1, each)))
    count = -(-most // limit)
    count = next((k for k in range(count, 2 * count + 1) if most % k == 0), count)
    edges = [round(k * most / count) for k in range(count + 1)]
    return tuple(Batch(cut(whole.inputs, start, stop), whole.targets[start:stop]) for start, stop in pairwise(edges))
