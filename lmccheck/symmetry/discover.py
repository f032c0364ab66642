"""From a module to its permutation spec: trace, analyse, name the groups, lay them out over the tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.modules.precision import own_settings
from lmccheck.modules.stored import overlapping_names
from lmccheck.shown import one_line
from lmccheck.symmetry.analysis import Analysis
from lmccheck.symmetry.axes import Factor, Reason, axis_size, expand, segments
from lmccheck.symmetry.build_structure import along_weights, build_structure, find_head
from lmccheck.symmetry.capabilities import no_units, refusal
from lmccheck.symmetry.companions import Families, leaves
from lmccheck.symmetry.experts import with_experts
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.sites import Layer, Site, find_sites, layers, made_sites
from lmccheck.symmetry.slots import Frozen, Layouts, Part, Piece, Slot, UnitGroup, circles, containers_first, slots_of
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.statistics import running_statistics
from lmccheck.symmetry.structure import Structure
from lmccheck.symmetry.trace import Trace, trace

Strided = tuple[Factor, int]
Strides = Mapping[tuple[str, int], Sequence[tuple[int, Sequence[Strided]]]]  # tensor, dim -> starts and products


@one_line(lambda traced: traced.spec.shown)
@dataclass(frozen=True)
class Traced:
    """A traced network: its permutation spec, where a run shows each group's units, its layers, its structure.

    ``sites`` are where units are read (where nothing reads them, made), ``made`` where layers give them.
    """

    spec: PermutationSpec
    trace: Trace = field(repr=False)
    sites: Mapping[str, tuple[Site, ...]] = field(repr=False)
    made: Mapping[str, tuple[Site, ...]] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)

    @cached_property
    def droppable(self) -> Structure:
        """Which numbers belong to which unit that can be dropped, and what is left whole; nothing where none can."""
        return build_structure(self.spec, self.trace, self.layers)

    @cached_property
    def structure(self) -> Structure:
        """The same as paths see it; raises UnsupportedArchitecture for its first obstacle."""
        found = self.droppable
        if found.obstacles:
            raise UnsupportedArchitecture(found.obstacles[0])
        return along_weights(found)


def droppable_of(traced: Traced, purpose: str = "dropping") -> Structure:
    """Return the structure of a traced network as dropping sees it, whatever is left whole.

    Raises UnsupportedArchitecture, beginning with the purpose, where no hidden unit can be dropped.
    """
    if why := no_units(traced.droppable):
        raise refusal(purpose, why)
    return traced.droppable


def structure_of(traced: Traced, purpose: str = "a path", *, head: bool = True) -> Structure:
    """Return the structure of a traced network; without ``head`` also where its output comes from no last layer.

    Raises UnsupportedArchitecture, beginning with the purpose, where the theory of paths does not hold.
    """
    _, headless = find_head(traced.trace, traced.layers)
    if head and headless:
        raise refusal(purpose, headless)
    if obstacles := traced.droppable.obstacles:
        raise refusal(purpose, obstacles[0])
    return traced.structure


@own_settings()
def discover_symmetry(module: nn.Module, example_inputs: tuple[Any, ...]) -> PermutationSpec:
    """Derive the permutation symmetries of ``module`` from its traced graph.

    ``example_inputs`` is a tuple of tensors as the module's forward takes them (a batch of two or more is best). An
    op without a rule freezes what it touches; the spec is sound by construction of the rules, and
    ``spec.verify(module, example_inputs)`` measures it. The order of experts is free where that was measured, see
    ``with_experts``. Raises UnsupportedArchitecture when the module cannot be traced.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> [(group.name, group.size) for group in discover_symmetry(net, (torch.zeros(2, 2),)).groups]
    [('0', 3)]
    """
    traced = derive(module, example_inputs)
    return with_experts(traced.spec, traced.trace, module, example_inputs)


def derive(
    module: nn.Module, example_inputs: tuple[Any, ...], constants: Mapping[str, Tensor] = MappingProxyType({})
) -> Traced:
    """Trace a network and return its permutation spec with what else the trace says; raises as discover_symmetry.

    Stored ``constants``, by canonical name, are left unchanged by every permutation of the spec, unless the graph uses
    them as running statistics: these move with their channels.
    """
    if not isinstance(module, nn.Module):
        raise SourceError(f"discover_symmetry: got {type(module).__name__}, expected a torch.nn.Module")
    if not isinstance(example_inputs, tuple):
        raise SourceError(f"discover_symmetry: got example inputs as {type(example_inputs).__name__}, expected a tuple")
    graph = trace(module, example_inputs, RULES)
    statistics = running_statistics(graph) if constants else set()
    fixed = {name: value for name, value in constants.items() if name not in statistics}
    analysis = Analysis(graph, RULES, overlapping_names(module), fixed)
    analysis.run()
    analysis.settle()
    for factor, by_axis in list(analysis.families().items()):  # every picked axis gets an instance per position
        for picked, by_index in by_axis.items():
            for index in range(picked.size):
                if index not in by_index:
                    analysis.instance(factor, picked, index)
    families = analysis.families()
    order = dict.fromkeys([*analysis.order, *analysis.params])
    strided = {
        (name, dim): _pieces(axis, families) for name in order for dim, axis in enumerate(analysis.params[name].axes)
    }
    names, within = _name_groups(strided, analysis.contexts(across=True))
    pieces_of = partial(_grouped, families=families, names=names)
    layouts: dict[str, dict[int, tuple[Piece, ...]]] = {}
    for name, dim in strided:
        if pieces := pieces_of(analysis.params[name].axes[dim]):
            layouts.setdefault(name, {})[dim] = tuple(pieces)
    learned = {graph.tied.get(n, n) for n, _ in module.named_parameters(remove_duplicate=False)}
    groups = _unit_groups(analysis, layouts, _roles(analysis, strided), learned, names, within)
    shapes = {name: symbol.shape for name, symbol in analysis.params.items()}
    spec = PermutationSpec(groups, _frozen(strided, names), layouts, shapes, graph.tied, analysis.unruled)
    found = layers(graph)
    return Traced(spec, graph, find_sites(analysis, pieces_of), made_sites(analysis, pieces_of, found), found)


def _roles(analysis: Analysis, strided: Strides) -> dict[tuple[str, int], str]:
    """Return whether each dimension of each parameter makes units or reads them."""
    consumed = {
        name: analysis.inside(leaf for axis in axes for leaf in leaves(axis))
        for name, axes in analysis.consumed.items()
    }
    return {
        (name, dim): "consumer" if any(f in consumed.get(name, ()) for _, fs in pieces for f, _ in fs) else "producer"
        for (name, dim), pieces in strided.items()
    }


def _unit_groups(
    analysis: Analysis,
    layouts: Layouts,
    roles: Mapping[tuple[str, int], str],
    learned: Collection[str],
    names: Mapping[Factor, str],
    within: Mapping[Factor, Sequence[Factor]],
) -> tuple[UnitGroup, ...]:
    """Return the groups with their slots; one whose container a tensor does not show has one order for all units."""
    shapes = {name: symbol.shape for name, symbol in analysis.params.items()}
    bound = analysis.bound()
    inside = {names[factor]: tuple(names[outer] for outer in outers) for factor, outers in within.items()}
    while True:
        try:
            slots = slots_of(layouts, shapes, roles, learned, inside)
            _no_circle(slots)
            break
        except LookupError as missing:
            group, container = missing.args
            inside[group] = tuple(n for n in inside[group] if n != container and container not in inside[n])
    sizes = {group: factor.size for factor, group in names.items()}
    return tuple(
        UnitGroup(
            group,
            factor.size,
            tuple(slots[group]),
            inside[group],
            prod(sizes[outer] for outer in inside[group]),
            _why_bound(slots[group], bound.get(factor)),
        )
        for factor, group in names.items()
    )


def _grouped(axis: Sequence[Factor], *, families: Families, names: Mapping[Factor, str]) -> list[Piece]:
    """Return the pieces of an axis in which a group has units."""
    built = (
        Piece(start, tuple(Part(names.get(factor), factor.size, stride) for factor, stride in factors))
        for start, factors in _pieces(axis, families)
    )
    return [piece for piece in built if any(part.group for part in piece.parts)]


def _no_circle(slots: Mapping[str, Sequence[Slot]]) -> None:
    """Raise LookupError for a tensor whose dimensions each hold a group within one of the other."""
    circle = circles(slot for several in slots.values() for slot in several)
    for group, several in slots.items():
        for slot in several:
            for container, place in slot.across.items():
                if {slot.dim, place.dim} <= set(circle.get(slot.tensor, ())):
                    raise LookupError(group, container)


def _why_bound(slots: Sequence[Slot], reason: Reason | None) -> str:
    """Return why a group's units cannot be dropped one by one; nothing when they can."""
    if reason is not None:
        return str(reason)
    return "" if any(slot.role == "consumer" for slot in slots) else "it has no outgoing weights"


def _pieces(axis: Sequence[Factor], families: Families) -> list[tuple[int, list[Strided]]]:
    """Return (start, factors with strides) for every product the axis is a sum of."""
    return _unfold(0, _with_strides(expand(axis), 1), families)


def _with_strides(factors: Sequence[Factor], innermost: int) -> list[Strided]:
    out: list[Strided] = []
    stride = innermost
    for factor in reversed(factors):
        out.insert(0, (factor, stride))
        stride *= factor.size
    return out


def _unfold(start: int, factors: list[Strided], families: Families) -> list[tuple[int, list[Strided]]]:
    for k, (factor, stride) in enumerate(factors):
        if factor.kind == "sum":
            pieces = []
            offset = start
            for segment in segments(factor):
                inner = _with_strides(expand([segment]), stride)
                pieces += _unfold(offset, [*factors[:k], *inner, *factors[k + 1 :]], families)
                offset += segment.size * stride
            return pieces
    here = [factor for factor, _ in factors]
    for k, (picked, stride) in enumerate(factors):
        if any(picked in families.get(factor, {}) for factor in here):
            pieces = []
            for index in range(picked.size):
                rest: list[Strided] = []
                for j, (factor, step) in enumerate(factors):
                    if j != k:
                        instance = families.get(factor, {}).get(picked, {}).get(index, factor)
                        rest += _with_strides(expand([instance]), step)
                pieces += _unfold(start + index * stride, rest, families)
            return pieces
    return [(start, factors)]


def _name_groups(
    strided: Strides, together: Mapping[Factor, set[Factor]]
) -> tuple[dict[Factor, str], dict[Factor, tuple[Factor, ...]]]:
    """Name every free factor after the module that produces it first; say which factors each one lies within."""
    names: dict[Factor, str] = {}
    taken: set[str] = set()
    for (tensor, _), pieces in strided.items():
        for _, factors in pieces:
            free = [factor for factor, _ in factors if factor.frozen is None and factor.size > 1]
            for depth, factor in enumerate(free):
                if factor in names:
                    continue
                base = tensor.rsplit(".", 1)[0] if "." in tensor else tensor
                name = base if len(free) == 1 else f"{base}/{depth}"
                k, unique = 1, name
                while unique in taken:
                    k, unique = k + 1, f"{name}#{k + 1}"
                taken.add(unique)
                names[factor] = unique
    rank = {factor: k for k, factor in enumerate(names)}

    def contains(outer: Factor, inner: Factor) -> bool:
        """Never found without it; of two that are never apart, the one named first is the container."""
        return outer in together.get(inner, ()) and (inner not in together.get(outer, ()) or rank[outer] < rank[inner])

    within = {
        factor: tuple(outer for outer in names if outer is not factor and contains(outer, factor)) for factor in names
    }
    return {factor: names[factor] for factor in containers_first(within)}, within


def _frozen(strided: Strides, names: Mapping[Factor, str]) -> tuple[Frozen, ...]:
    """Return what cannot move, the segments of a dimension that stay for the same reason together."""
    found: dict[tuple[str, int, str], int] = {}
    for (tensor, dim), pieces in strided.items():
        for _, product in pieces:
            factors = [factor for factor, _ in product if factor.size > 1]
            for size, reason in _still(factors, names):
                found[tensor, dim, reason] = found.get((tensor, dim, reason), 0) + size
    return tuple(Frozen(tensor, dim, size, reason) for (tensor, dim, reason), size in found.items())


def _still(factors: Sequence[Factor], names: Mapping[Factor, str]) -> list[tuple[int, str]]:
    """Return what of one product cannot move, and why: its whole length when nothing can, else its frozen factors."""
    still = [factor for factor in factors if factor not in names]
    if still and len(still) == len(factors):
        return [(axis_size(factors), "; ".join(dict.fromkeys(str(factor.frozen) for factor in still)))]
    return [(factor.size, str(factor.frozen)) for factor in still]
