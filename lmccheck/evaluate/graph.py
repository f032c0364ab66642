"""Running the traced graph of a network with given weights, and looking at (or replacing) values on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lmccheck.data.batches import in_parts
from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import moved, positional, tensors_in
from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.evaluate.counterparts import Counterparts
from lmccheck.evaluate.points import upcast
from lmccheck.modules.memory import give_back
from lmccheck.modules.precision import exact_float32
from lmccheck.modules.runner import Runner, as_source_error
from lmccheck.network.network import Network
from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.sites import Layer, layers
from lmccheck.symmetry.trace import Shaped, Trace, another_graph, quiet_logs, trace, value_of

Look = Callable[[str, Tensor], Tensor | None]
ANOTHER = "the network computes something else on inputs of this shape than on the first two samples"
ONE_SHAPE = "mend: give batches of one shape, that of the evaluation data"
HELD = 1 << 25  # numbers of watched values held at a time: 128 MB in float32


class GraphRunner:
    """Runs a module's traced graph on batches of any shape; it is traced once per shape, by all runners of a network.

    What a node of the graph gives is shown to ``look(name, value)``, which may return a tensor to go on with instead.
    Nodes go by their names in ``names``, whatever they are called in the trace of a batch (without it: in that trace).
    ``traces`` are those that are known already, and take the new ones. It holds no weights.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        traces: dict[Any, Trace] | None = None,
        names: Trace | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._names = names
        self._counterparts: dict[int, Counterparts] = {}  # traces are kept, so their ids are their own
        self._layers: dict[int, dict[str, Layer]] = {}
        self._module = module
        self._traces = {} if traces is None else traces

    @classmethod
    def of(cls, network: Network, dtype: torch.dtype, names: Trace) -> GraphRunner:
        """Return a runner of a network's module, on its device, that shares the network's traces."""
        return cls(network.module, network.torch_device, dtype, network.traces, names)

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights on the device, in the working dtype."""
        return upcast(state, self.dtype, self.device)

    def cast(self, value: Any) -> Any:
        """Return inputs or targets on the device, floating tensors in the working dtype."""
        return moved(value, self.device, self.dtype)

    def loaded(self, weights: Mapping[str, Tensor]) -> Runner:
        """Return a runner of the module itself with these weights, for as long as somebody holds it."""
        runner = Runner(self._module, self.device, self.dtype)
        runner.load(weights)
        return runner

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by their canonical names as ``weights`` would, under every name that they are stored by.

        They are asked for one by one, so that a state that makes them as they are asked for is not held as a whole.
        """
        assert self._names is not None
        tied = self._names.tied
        held = {own: self.weights({own: state[own]})[own] for own in dict.fromkeys(tied.values()) if own in state}
        return {name: held[own] for name, own in tied.items() if own in held}

    def run(self, weights: Mapping[str, Tensor], inputs: Any, watched: Collection[str], look: Look, where: str) -> None:
        """Run the graph once; ``inputs`` is a tensor or a tuple of positional arguments.

        Raises SourceError, beginning with ``where``, when the graph cannot run, UnsupportedArchitecture when the
        network is another one on inputs of this shape.
        """
        traced, given, nodes = self.prepared(weights, inputs, watched, where)
        with running(where), quiet_logs(), suppress(Stop):
            Watching(traced.module, nodes, look).run(*given.values())

    def prepared(
        self, weights: Mapping[str, Tensor], inputs: Any, watched: Collection[str], where: str
    ) -> tuple[Trace, dict[fx.Node, Any], dict[str, fx.Node]]:
        """Return the trace for inputs of this shape, what its placeholders stand for, in order, and watched nodes.

        ``inputs`` is a tensor or a tuple of positional arguments; the nodes of ``watched`` have to be in the graph.
        Raises as ``run`` does.
        """
        arguments = self.cast(positional(inputs, where))
        traced = self._trace(weights, arguments, where)
        return traced, traced.given(weights, arguments), {name: self.node(traced, name, where) for name in watched}

    def node(self, traced: Trace, name: str, where: str) -> fx.Node:
        """Return a node as a trace has it. Raises UnsupportedArchitecture, beginning with ``where``, without one."""
        if id(traced) not in self._counterparts:
            self._counterparts[id(traced)] = Counterparts(self._names or traced, traced)
        found = self._counterparts[id(traced)].find(name)
        if isinstance(found, str):
            raise UnsupportedArchitecture(f"{where}: {ANOTHER} ({found}); {ONE_SHAPE}")
        return found

    def layers(self, traced: Trace, expected: Sequence[Layer], where: str) -> list[Layer]:
        """Return layers as a trace has them: with the names of its nodes. Raises as ``node`` does."""
        if id(traced) not in self._layers:
            self._layers[id(traced)] = {layer.node: layer for layer in layers(traced)}
        there = self._layers[id(traced)]
        found = []
        for layer in expected:
            node = self.node(traced, layer.node, where)
            other = there.get(node.name)
            if other is None or (other.weight, other.groups) != (layer.weight, layer.groups):
                said = f"no layer of {layer.weight!r} at {node.name!r}"
                raise UnsupportedArchitecture(f"{where}: {ANOTHER} ({said}); {ONE_SHAPE}")
            found.append(other)
        return found

    def _trace(self, weights: Mapping[str, Tensor], inputs: tuple[Any, ...], where: str) -> Trace:
        """Return the trace for inputs of this shape: made with random weights, tried with these.

        Raises UnsupportedArchitecture where it holds what the module computed from the random ones.
        """
        shapes = ((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in pytree.tree_leaves(inputs))
        key = (self.dtype, *shapes)
        if key not in self._traces:
            drawn = Runner(self._module, self.device, self.dtype)
            drawn.draw(self._module, 1)
            try:
                traced = trace(drawn.pristine, inputs, RULES, lines=False, private=True)
            except LmcError:
                self.loaded(weights)(inputs, where)  # inputs that do not fit say so, and where they come from
                raise
            with running(where):
                found = traced.module(*traced.given(weights, inputs).values())
            expected = tensors_in(self.loaded(weights)(inputs, where))
            if any(not _close(x, y) for x, y in zip(expected, found, strict=True)):
                raise UnsupportedArchitecture(another_graph(self._module, traced))
            give_back()
            self._traces[key] = traced
        return self._traces[key]


def finite(value: Tensor, where: str) -> Tensor:
    """Return what a network gave, on the CPU, if it is finite. Raises SourceError, beginning with ``where``."""
    value = value.cpu()
    if not bool(value.isfinite().all()):
        raise SourceError(
            f"{where}: the network gives NaN or infinite values there, expected finite ones; mend: look at the data, "
            "whose inputs may be too large, and at the checkpoint"
        )
    return value


def _close(first: Tensor, second: Tensor) -> bool:
    """Whether outputs agree to what float32 on the way leaves; those that are no numbers say nothing."""
    size = 1 + float(first.abs().max()) if first.numel() else 1.0
    return not first.numel() or not float((first - second).abs().max()) > 1e-3 * size


@contextmanager
def running(where: str) -> Iterator[None]:
    """Run (a part of) a traced model without gradients; what its ops raise becomes a SourceError."""
    doing = f"{where}: running the traced model"
    with as_source_error(doing, "; mend: check the data"), torch.no_grad(), exact_float32():
        yield


class Stop(Exception):
    """Raised by a look that has seen enough of a run."""


class Watching(fx.Interpreter):
    """An interpreter that shows what the watched nodes give, by the names they are watched under."""

    def __init__(self, module: fx.GraphModule, watched: Mapping[str, fx.Node], look: Look) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be written into the messages of errors raised on purpose
        self._look = look
        self._watched: dict[fx.Node, list[str]] = {}
        for name, node in watched.items():
            self._watched.setdefault(node, []).append(name)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder" and not isinstance(result, Tensor):
            return result
        for name in self._watched.get(n, ()):
            replaced = self._look(name, result)
            result = result if replaced is None else replaced
        return result


Edit = Callable[[Layer, Tensor], Tensor]


class Reading(fx.Interpreter):
    """An interpreter of parts of a graph, in which ``edit(layer, value)`` gives each layer what it reads.

    A layer's input is changed for that layer alone: what else takes the same value gets it as it is.
    """

    def __init__(self, module: fx.GraphModule, layers: Sequence[Layer], edit: Edit | None = None) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._layers = {layer.node: layer for layer in layers}
        self._edit = edit

    def part(self, nodes: Sequence[fx.Node], known: Mapping[fx.Node, Any], keep: Collection[fx.Node]) -> dict[Any, Any]:
        """Run those of ``nodes`` that are not ``known``, in order; return the values of ``keep``, others are let go."""
        self.env: dict[fx.Node, Any] = dict(known)
        ours, held = dict.fromkeys(node for node in nodes if node not in known), set(keep)
        for node in ours:
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, ()):
                if dead in ours and dead not in held:
                    del self.env[dead]
        return {node: self.env[node] for node in keep}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op; a view becomes a reshape, since under a transform memory may lie in another order."""
        if facts_of(target).views:
            return torch.reshape(args[0], args[1])
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        layer = self._layers.get(n.name)
        if layer is None or self._edit is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        place = next(k for k, argument in enumerate(n.args) if getattr(argument, "name", None) == layer.source)
        changed = self._edit(layer, args[place])
        return self.call_function(n.target, (*args[:place], changed, *args[place + 1 :]), kwargs)


def followers(module: fx.GraphModule, first: Collection[str]) -> list[fx.Node]:
    """Return the nodes of these names and all that depend on them, in order."""
    found: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        if node.name in first or any(source in found for source in node.all_input_nodes):
            found[node] = None
    return list(found)


def value_sizes(traced: Trace, names: Collection[str]) -> dict[str, int]:
    """Return how many numbers nodes gave when the network was traced, without those that give no single tensor."""
    values = {node.name: value_of(node) for node in traced.graph.nodes if node.name in names}
    return {name: prod(value.shape) for name, value in values.items() if isinstance(value, Shaped)}


def even_batches(
    data: Data, traced: Trace, watched: Collection[str], samples: int | None = None, held: int | None = None
) -> tuple[Batch, ...]:
    """Return the first ``samples`` samples in batches of few shapes, each of at most ``held`` watched numbers.

    ``traced`` is a trace on two samples, whose shapes tell how much a sample needs; ``held`` is ``HELD`` by default.
    """
    if not data.rebatch:
        return data.batches
    whole = data.batches[0]
    most = whole.samples if samples is None else min(samples, whole.samples)
    each = sum(value_sizes(traced, watched).values()) // min(2, whole.samples)
    limit = max(1, min(1024, (HELD if held is None else held) // max(1, each)))
    count = -(-most // limit)
    count = next((k for k in range(count, 2 * count + 1) if most % k == 0), count)
    return in_parts(whole, count, most)
