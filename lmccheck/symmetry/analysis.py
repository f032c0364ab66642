"""Abstract interpretation of a traced graph: every tensor becomes its axes, every op a rule that relates them.

Besides unifying and freezing, the analysis records *contexts*: which factors are found together. A factor that is
never seen without another one (a head dimension without its head) may be permuted differently for each of the
other's positions, unless an op mixes across those positions; that is what makes the group of attention heads a
wreath product rather than a product.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from lmccheck.symmetry.axes import (
    Axis,
    Factor,
    Reason,
    as_factor,
    concatenate,
    freeze,
    fresh,
    unify,
)
from lmccheck.symmetry.calls import bound_arguments, is_bookkeeping, mapped, refuse_ignored, symbols_in
from lmccheck.symmetry.companions import Families, companions, leaves
from lmccheck.symmetry.op import Instance, Op, Symbol, Uncovered, source_of
from lmccheck.symmetry.regions import region_of
from lmccheck.symmetry.trace import Placeholder, Shaped, Trace, op_name, value_of

RULE_FAILED = "its rule failed"


class Analysis:
    """Axes of every value of a graph, and everything known about how factors occur together."""

    def __init__(
        self,
        trace: Trace,
        rules: dict[str, Callable[..., Any]],
        clashing: set[str],
        constants: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.trace = trace
        self.rules = rules
        self.values: dict[fx.Node, Any] = {}
        self.params: dict[str, Symbol] = {}  # canonical name -> axes
        self.order: list[str] = []  # parameters in the order the network uses them
        self.consumed: dict[
            str, list[Axis]
        ] = {}  # parameter -> the axes of it that are read (its incoming side), per use
        self.readers: set[fx.Node] = set()  # ops in which weights read an activation
        self.uses: dict[str, int] = {}  # parameter -> how often it is used other than to be viewed
        self.binding: list[tuple[Axis, Reason]] = []  # axes whose positions an op combines other than by weights
        self.records: list[tuple[Axis, ...]] = []
        self.instances: list[Instance] = []
        self.unruled: dict[str, int] = {}
        self._clashing = clashing
        self._constants = constants

    # -- walking the graph -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Visit every node of the graph once, in order."""
        self._freeze_value(
            self._walk(self.trace.graph, None), Reason("output", "positions of the network's output are told apart")
        )
        used = set(self.order)
        for name, symbol in self.params.items():
            if name not in used:
                for axis in symbol.axes:
                    freeze(axis, Reason("unused", "the traced computation does not read this tensor"))

    def _walk(self, graph: fx.Graph, given: Sequence[Any] | None) -> Any:
        """Visit a graph's nodes, its placeholders standing for ``given`` (the module's own where None); return its
        output."""
        waiting = list(given or ())
        for node in graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node) if given is None else waiting.pop(0)
            elif node.op == "get_attr":
                self.values[node] = self._frozen_like(node, Reason("constant", "a constant tensor", ""))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                return mapped(self.values.get, node.args[0])
        return None

    def _placeholder(self, node: fx.Node) -> Any:
        holder = self.trace.placeholders[node.name]
        value = value_of(node)
        if not isinstance(value, Shaped):
            return value
        shape = value.shape
        if holder.kind == "input":
            return Symbol(
                tuple(fresh(n, Reason("input", "positions of the network's input are told apart")) for n in shape)
            )
        if not holder.stored:
            why = Reason("constant", f"{holder.target} is not stored in the checkpoint, so it cannot be permuted along")
            return Symbol(
                tuple(
                    fresh(n, None if same else why)
                    for n, same in zip(shape, _unstored(holder, len(shape)), strict=True)
                )
            )
        name = self.trace.tied.get(holder.target, holder.target)
        if name not in self.params:
            why_not = None
            if not value.dtype.is_floating_point:
                why_not = Reason("dtype", f"{str(value.dtype).removeprefix('torch.')} tensors are never permuted")
            elif holder.target in self._clashing:
                why_not = Reason("storage", "shares memory with a tensor of another shape")
            elif name in self._constants:
                return self._constant(name, self._constants[name])
            self.params[name] = Symbol(tuple(fresh(n, why_not) for n in shape), name)
        return self.params[name]

    def _constant(self, name: str, value: torch.Tensor) -> Symbol:
        """A stored constant: positions of a dimension may move where all of them hold the same."""
        why = Reason("constant", f"{name} is equal in all checkpoints, and no running statistic")
        axes = (fresh(n, None if same else why) for n, same in zip(value.shape, _alike(value), strict=True))
        self.params[name] = Symbol(tuple(axes), name)
        return self.params[name]

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = mapped(self.values.get, node.args[0]), node.args[1]
            known = isinstance(source, (tuple, list)) and isinstance(index, int)
            return source[index] if known else self._unruled(node, "picks from a value that is no tuple")
        region = region_of(node)
        if region is not None:
            return self._walk(region.inner.graph, mapped(self.values.get, region.given))
        op = Op(self, node)
        arguments = mapped(self.values.get, bound_arguments(node))
        for symbol in symbols_in(arguments):
            if symbol.param is not None and symbol.param not in self.order:
                self.order.append(symbol.param)
        rule = self.rules.get(op.name)
        if rule is None:
            return self._unruled(node, "has no rule")
        try:
            refuse_ignored(rule, arguments)
            result = rule(op, *arguments)
            self._check_shapes(node, result)
        except Uncovered as gap:
            return self._unruled(node, str(gap))
        except Exception as error:  # a call no rule foresaw must cost freedom, not the whole analysis
            return self._unruled(node, f"{RULE_FAILED} ({type(error).__name__}: {error})")
        results = symbols_in(result)
        for symbol in results:
            self.records.append(symbol.axes)
        viewed = {symbol.param for symbol in results}
        for name in {symbol.param for symbol in symbols_in(arguments)} - viewed:
            if name is not None:
                self.uses[name] = self.uses.get(name, 0) + 1
        return result

    def _unruled(self, node: fx.Node, why: str) -> Any:
        """Freeze what the call touches and what it returns; name the op."""
        name = op_name(node.target)
        reason = Reason(name, f"{name} {why}" if why == "has no rule" else why, source_of(node))
        if not is_bookkeeping(node):
            self.unruled[name] = self.unruled.get(name, 0) + 1
            self._freeze_value(mapped(self.values.get, bound_arguments(node)), reason)
        return self._frozen_like(node, reason)

    def _frozen_like(self, node: fx.Node, reason: Reason) -> Any:
        def symbol(value: Any) -> Any:
            if isinstance(value, Shaped):
                return Symbol(tuple(fresh(n, reason) for n in value.shape))
            return tuple(symbol(item) for item in value) if isinstance(value, tuple) else value

        return symbol(value_of(node))

    def _freeze_value(self, value: Any, reason: Reason) -> None:
        for symbol in symbols_in(value):
            for axis in symbol.axes:
                freeze(axis, reason)

    def _check_shapes(self, node: fx.Node, result: Any) -> None:
        expected = value_of(node)
        several = isinstance(result, (tuple, list))
        pairs = zip(result, expected or (), strict=False) if several else [(result, expected)]
        for symbol, value in pairs:
            if isinstance(symbol, Symbol) and isinstance(value, Shaped) and symbol.shape != value.shape:
                raise AssertionError(f"rule for {op_name(node.target)} gives {symbol.shape}, the op {value.shape}")

    # -- picking a position --------------------------------------------------------------------------------------

    def instance(self, factor: Factor, picked: Factor, index: int) -> Factor:
        """Return what ``factor`` is where position ``index`` of ``picked`` has been chosen."""
        root = factor.find()
        if root.kind == "product":
            return as_factor([self.instance(part, picked, index) for part in root.parts])
        if root.kind == "sum":
            return as_factor(concatenate([(self.instance(part, picked, index),) for part in root.parts]))
        if root.frozen is not None or root is picked.find():
            return root
        for known in self.instances:
            if known.factor.find() is root and known.picked.find() is picked.find() and known.index == index:
                return known.node.find()
        node = Factor(root.size)
        self.instances.append(Instance(root, picked.find(), index, node))
        return node

    # -- what occurs with what -----------------------------------------------------------------------------------

    def bound(self) -> dict[Factor, Reason]:
        """Return the leaves whose positions cannot be dropped one by one, and why.

        An op binds them (a norm over them, a product of two activations), or a tensor both makes and reads them.
        """
        binding = list(self.binding)
        for name, consumed in self.consumed.items():
            twice = Reason("tied", f"{name} both makes these units and reads them")
            for axis in self.params[name].axes:
                for leaf in leaves(axis):
                    reads = sum(leaf in leaves(factors) for factors in consumed)
                    if 0 < reads < self.uses.get(name, 0):
                        binding.append(((leaf,), twice))
        found: dict[Factor, Reason] = {}
        for axis, reason in binding:
            for leaf in self.inside(leaves(axis)):
                found.setdefault(leaf, reason)
        return found

    def inside(self, axis: Iterable[Factor]) -> set[Factor]:
        """Return the given leaves and all that they become where a position of another axis has been picked."""
        families = self.families()
        found: set[Factor] = set()
        waiting = list(axis)
        while waiting:
            leaf = waiting.pop()
            if leaf not in found:
                found.add(leaf)
                for by_index in families.get(leaf, {}).values():
                    waiting += leaves(tuple(by_index.values()))
        return found

    def settle(self) -> dict[Factor, set[Factor]]:
        """Resolve instances until nothing changes and return, for every leaf, the leaves it never occurs without.

        An instance stays on its own while its factor only ever occurs together with the axis picked from;
        otherwise both are the same factor.
        """
        while True:
            contexts = self.contexts()
            changed = False
            kept: dict[tuple[Factor, Factor, int], Instance] = {}
            picked_from: dict[Factor, set[Factor]] = {}
            for item in self.instances:
                picked_from.setdefault(item.factor.find(), set()).add(item.picked.find())
            waiting, self.instances = self.instances, []
            for item in waiting:
                factor, picked, node = item.factor.find(), item.picked.find(), item.node.find()
                reason = Reason("select", f"position {item.index} of an axis is picked")
                if factor is node:
                    continue
                if factor.kind != "leaf" and picked.kind == "leaf":
                    unify([node], [self.instance(factor, picked, item.index)], reason)
                    changed = True
                elif (
                    factor.kind != "leaf"
                    or picked.kind != "leaf"
                    or picked not in contexts.get(factor, set())
                    or len(picked_from.get(factor, ())) > 1  # picked from one axis here, from another there
                ):
                    unify([factor], [node], reason)
                    changed = True
                else:
                    if factor.frozen is not None and node.frozen is None:
                        freeze([node], factor.frozen)
                        changed = True
                    twin = kept.setdefault((factor, picked, item.index), item)
                    if twin is item:
                        self.instances.append(item)
                    elif twin.node.find() is not node:
                        unify([twin.node], [node], reason)
                        changed = True
            if not changed:
                return contexts

    def families(self) -> Families:
        """Return the instances that stand on their own."""
        table: Families = {}
        for item in self.instances:
            table.setdefault(item.factor.find(), {}).setdefault(item.picked.find(), {})[item.index] = item.node.find()
        return table

    def contexts(self, across: bool = False) -> dict[Factor, set[Factor]]:
        """Return, for every leaf, the leaves that are present (once, and whole) in every record it occurs in.

        The dimensions of a parameter are records of their own unless ``across`` is set.
        """
        stored = [symbol.axes for symbol in self.params.values()]
        if not across:
            stored = [(axis,) for axes in stored for axis in axes]
        return companions([*stored, *self.records], self.families())


def _unstored(holder: Placeholder, ndim: int) -> list[bool]:
    """Say for every dimension of a constant that is not stored whether its positions all hold the same."""
    value = holder.value
    if value is None or value.ndim != ndim or not value.numel():
        return [False] * ndim
    return _alike(value)


def _alike(value: torch.Tensor) -> list[bool]:
    """Say for every dimension of a constant whether its positions all hold the same; then it may be permuted."""
    return [n < 2 or torch.equal(value, value.narrow(d, 0, 1).expand_as(value)) for d, n in enumerate(value.shape)]
