"""Where a run of the traced network shows what the weights alone do not: activations of units, inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from lmccheck.symmetry.analysis import Analysis
from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.facts import evaluated_norm, facts_of
from lmccheck.symmetry.op import Symbol
from lmccheck.symmetry.slots import Piece
from lmccheck.symmetry.trace import Trace


@dataclass(frozen=True)
class Site:
    """A value of the graph in which groups have units: the ``piece`` of dimension ``dim`` of what ``node`` gives.

    ``read`` is True where outgoing weights read the value, False where it is what incoming weights made.
    """

    node: str
    dim: int
    piece: Piece
    read: bool

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups whose units the piece holds, outermost first."""
        return tuple(part.group for part in self.piece.parts if part.group)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm that is all a layer's output goes to: the names of its tensors (None where it has none)."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution: y = W·x + b, its output units along dimension ``out`` of the weight.

    ``window`` holds stride, padding and dilation of a convolution, None for a linear layer; ``groups`` is 1 unless the
    convolution is grouped. ``units`` is the dimension of the output that holds the units.
    """

    node: str
    source: str  # the node whose value it reads
    weight: str
    bias: str | None
    out: int
    units: int
    window: tuple[Any, Any, Any] | None
    groups: int
    norm: Norm | None


def find_sites(analysis: Analysis, pieces: Callable[[Axis], Sequence[Piece]]) -> dict[str, tuple[Site, ...]]:
    """Return, per group, where its units can be seen: what is read of them, else what is made."""
    found: dict[tuple[str, int, Piece], Site] = {}

    def see(node: fx.Node, read: bool) -> None:
        value = analysis.values.get(node)
        if not isinstance(value, Symbol) or value.param is not None or node.graph is not analysis.trace.graph:
            return
        for dim, axis in enumerate(value.axes):
            for piece in pieces(axis):
                found.setdefault((node.name, dim, piece), Site(node.name, dim, piece, read))

    for node in analysis.trace.graph.nodes:
        if node in analysis.readers:
            for source in node.all_input_nodes:
                see(source, True)
    read = {name for site in found.values() for name in site.groups}
    for node in analysis.trace.graph.nodes:
        arguments = [analysis.values.get(source) for source in node.all_input_nodes]
        made_by_weights = any(isinstance(value, Symbol) and value.param is not None for value in arguments)
        result = analysis.values.get(node)
        if made_by_weights and isinstance(result, Symbol):
            inside = {part.group for axis in result.axes for piece in pieces(axis) for part in piece.parts}
            if inside - read - {None}:
                see(node, False)
    by_group: dict[str, list[Site]] = {}
    for site in found.values():
        for name in site.groups:
            if site.read or name not in read:
                by_group.setdefault(name, []).append(site)
    return {name: tuple(sites) for name, sites in by_group.items()}


def made_sites(
    analysis: Analysis, pieces: Callable[[Axis], Sequence[Piece]], layers: Sequence[Layer]
) -> dict[str, tuple[Site, ...]]:
    """Return, per group, where layers give its units: in their outputs, before any activation.

    Outputs with groups along two dimensions are left out: units there are described by numbers in an unknown order.
    """
    nodes = {layer.node for layer in layers}
    found: dict[str, list[Site]] = {}
    for node in analysis.trace.graph.nodes:
        result = analysis.values.get(node) if node.name in nodes else None
        along = {dim: pieces(axis) for dim, axis in enumerate(result.axes)} if isinstance(result, Symbol) else {}
        if sum(map(bool, along.values())) != 1:
            continue
        for site in (Site(node.name, dim, piece, False) for dim, several in along.items() for piece in several):
            for name in site.groups:
                found.setdefault(name, []).append(site)
    return {name: tuple(sites) for name, sites in found.items()}


def layers(trace: Trace) -> tuple[Layer, ...]:
    """Return the linear layers and convolutions whose weights the graph takes as they are stored, in order."""
    found = []
    for node in trace.graph.nodes:
        layer = _layer(node, trace) if node.op == "call_function" else None
        if layer is not None:
            found.append(layer)
    return tuple(found)


def _layer(node: fx.Node, trace: Trace) -> Layer | None:
    facts = facts_of(node.target).layer
    if facts is None or node.kwargs:
        return None
    arguments: list[Any] = [*node.args, *([None] * 9)]
    source, weight, bias = (arguments[place] for place in (facts.source, facts.weight, facts.bias))
    window: tuple[Any, Any, Any] | None = None
    if facts.window is not None:
        stride, padding, dilation = (arguments[place] for place in facts.window)
        window = (stride or 1, padding or 0, dilation or 1)
    groups = 1 if facts.groups is None else arguments[facts.groups] or 1
    stored, held = stored_name(weight, trace), stored_name(bias, trace)
    if stored is None or (bias is not None and held is None) or not isinstance(source, fx.Node):
        return None
    if stored_name(source, trace) is not None or (window is not None and isinstance(window[1], str)):
        return None
    return Layer(node.name, source.name, stored, held, facts.out, facts.units, window, groups, _norm(node, trace))


def _norm(node: fx.Node, trace: Trace) -> Norm | None:
    """Return the BatchNorm that alone takes what ``node`` gives."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or user.args[0] is not node:
        return None
    arguments: list[Any] = list(user.args)
    facts = evaluated_norm(user.target, arguments)
    if facts is None:
        return None
    weight, bias, mean, variance = (stored_name(argument, trace) for argument in arguments[1:5])
    if mean is None or variance is None:
        return None
    if any((name is None) != (given is None) for name, given in ((weight, arguments[1]), (bias, arguments[2]))):
        return None
    return Norm(weight, bias, mean, variance, float(arguments[facts.epsilon]))


def stored_name(argument: Any, trace: Trace) -> str | None:
    """Return the canonical name of the stored tensor that an argument is, None where it is something else."""
    if not isinstance(argument, fx.Node) or argument.op != "placeholder":
        return None
    holder = trace.placeholders[argument.name]
    return trace.tied.get(holder.target, holder.target) if holder.stored else None


def count_readers(trace: Trace) -> dict[str, int]:
    """Return, per stored tensor that the graph takes, by how many nodes it is read."""
    count: dict[str, int] = {}
    for node in trace.graph.nodes:
        name = stored_name(node, trace)
        if name is not None:
            count[name] = count.get(name, 0) + len(node.users)
    return count
