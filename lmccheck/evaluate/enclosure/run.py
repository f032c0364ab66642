"""A network over a cell of a line: its traced graph, run on enclosures instead of numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lmccheck.data.imports import say
from lmccheck.data.load import Batch
from lmccheck.data.trees import positional
from lmccheck.evaluate.enclosure.cell import Cell
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure
from lmccheck.evaluate.enclosure.losses import Bounds, bounded, cross_entropy
from lmccheck.evaluate.enclosure.rules import ENCLOSURES
from lmccheck.evaluate.enclosure.rules.linear import margins_of
from lmccheck.evaluate.points import Line, interpolated
from lmccheck.modules.precision import exact_float32
from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.trace import Trace, op_name, value_of


@dataclass
class Enclosing:
    """Runs the graph of a network, traced on ``traced`` samples, on cells of lines; ``loss`` names how it is judged."""

    trace: Trace
    traced: int
    loss: str

    def __call__(
        self, line: Line, batches: Sequence[Batch], lo: float = 0.0, hi: float = 1.0
    ) -> tuple[list[Bounds], Cell]:
        """Return what the samples of batches lose on [lo, hi] of a line, and the work that took.

        The line is in float64. Raises NoEnclosure, naming what has no rule.
        """
        held = {name: _Stretch(line, name, lo, hi) for name in line.first}
        total, found = Cell(), []
        with torch.no_grad(), exact_float32():
            for batch in batches:
                cell = Cell(batch.samples, self.traced)
                given = self.trace.given(held, positional(batch.inputs, "data"))
                try:
                    found.append(_Interpreter(self.trace.module, cell, self.loss, batch.targets)(given))
                except (RuntimeError, LookupError, ValueError, AttributeError, ArithmeticError) as error:
                    raise NoEnclosure(f"this network and loss: running its graph raised {say(error)}") from error
                total.work, total.plain = total.work + cell.work, total.plain + cell.plain
        return found, total


@dataclass(frozen=True)
class _Stretch:
    """A weight on a stretch of the line, enclosed where an op reads it and let go behind the last that does."""

    line: Line
    name: str
    lo: float
    hi: float

    def enclosed(self) -> Any:
        ends = self.line.ends(self.name)
        if torch.equal(*ends):
            return ends[0]
        first, second = (interpolated(*ends, t) for t in (self.lo, self.hi))
        if not first.is_floating_point():
            return first if torch.equal(first, second) else _Unsteady()
        return Enclosed(first, second)


class _Unsteady:
    """An integer tensor that differs between the ends; what reads it has no enclosure."""


class _Interpreter(fx.Interpreter):
    """Runs rules in place of ops wherever something enclosed comes in."""

    def __init__(self, module: fx.GraphModule, cell: Cell, loss: str, targets: Tensor) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._cell, self._loss, self._targets = cell, loss, targets
        self._last = _margin_layer(module) if loss == "cross_entropy" and targets.ndim == 1 else None
        self._bounds: Bounds | None = None

    def __call__(self, given: Mapping[fx.Node, Any]) -> Bounds:
        found = self.run(*given.values())
        if self._bounds is not None:
            return self._bounds
        output = found[0] if isinstance(found, (list, tuple)) else found
        if not isinstance(output, Enclosed):
            output = Enclosed(output, output)
        return bounded(self._loss, output, self._targets)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        for node in n.all_input_nodes:
            if isinstance(value := self.env[node], _Stretch):
                self.env[node] = value.enclosed()
        return super().fetch_args_kwargs_from_env(n)

    def run_node(self, n: fx.Node) -> Any:
        if n is self._last:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self._bounds = cross_entropy(margins_of(self._cell, self._targets, *args, **kwargs), self._targets)
            return None
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reads = _flat((args, kwargs))
        if any(isinstance(value, _Unsteady) for value in reads):
            raise NoEnclosure(f"{op_name(target)} of integers that differ")
        if not any(isinstance(value, Enclosed) for value in reads):
            if facts_of(target).views or op_name(target) == "aten.reshape":
                return args[0].reshape(self._cell.sized(args[1]))
            return super().call_function(target, args, kwargs)
        if target is operator.getitem:
            return args[0][args[1]]
        rule = ENCLOSURES.get(op_name(target))
        if rule is None:
            raise NoEnclosure(f"the op {op_name(target)}")
        try:
            return rule(self._cell, *args, **kwargs)
        except TypeError as error:
            raise NoEnclosure(f"the op {op_name(target)} as it is called here") from error


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _flat(part)]
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, (list, tuple)) else [value]


def _margin_layer(module: fx.GraphModule) -> fx.Node | None:
    """Return the linear layer whose output is all that the network gives, None where something else is."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    found = output.args[0]
    found = found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found
    last = isinstance(found, fx.Node) and op_name(found.target) == "aten.linear" and value_of(found).ndim == 2
    return found if last and len(found.users) == 1 else None
