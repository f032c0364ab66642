"""Experts: their order is a symmetry where the graph has them side by side and numbers agree.

A mixture of experts keeps them in an ``nn.ModuleList``, or stacked in tensors of three dimensions, beside a router with
a row per expert. Where experts change places and the router's rows with them, nothing changes. No op says so: the graph
picks a row of the router for each expert, ranks them, or deals tokens out by one-hot masks, and each of these tells the
rows apart. So what the graph does say (which modules of one kind read nothing that another of them made, and which
tensors have an axis of as many positions that no unit group moves) makes candidates, and one is taken where
f(π·θ) = f(θ) in float64 on random weights under which every expert had its say. What is not, stays frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.trees import tensors_in
from lmccheck.errors import LmcError
from lmccheck.modules.precision import StayDouble
from lmccheck.modules.runner import Runner
from lmccheck.modules.stored import stored_tensors
from lmccheck.symmetry.families import ModuleFamily, module_families, side_by_side, stacked_families
from lmccheck.symmetry.freed import WHOLE, Along, free_order
from lmccheck.symmetry.slots import Frozen
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.trace import Trace
from lmccheck.symmetry.verify import TOLERANCE, Verification

MOST_TRIED = 32  # sets of tensors that may move with one list
MOST_PAIRS = 2**29  # of units that matching compares at once, a float64 each: 4 GiB
STAY = "they stay in place"
MOST_DRAWS = 8  # of weights, for every expert to be reached under one of them

Axis = tuple[str, int]


def with_experts(
    spec: PermutationSpec,
    trace: Trace,
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    constants: Mapping[str, Tensor] = MappingProxyType({}),
    *,
    seed: int = 0,
) -> PermutationSpec:
    """Return a derived spec in which the order of experts in lists is free, too, wherever that keeps the function.

    A list is a group of whole modules, with slots in stacks of their tensors (see ``stacks``) and in the router's;
    units inside a module become a group within that one. Where no list qualifies it is ``spec`` itself. Needs two
    float64 copies of the network where there is a candidate, none elsewhere. Stored ``constants`` never move: where a
    router's bias is one, its experts stay.
    """
    families = [family for family in module_families(module) if side_by_side(family, trace)]
    families = [one for one in (*families, *stacked_families(spec)) if one.tensors.isdisjoint(constants)]
    tried: dict[tuple[str, ...], tuple[Axis, ...]] = {}  # of a list like it, what moved along
    for family in families:
        if not family.tensors <= spec.shapes.keys():
            continue  # inside a list that was freed
        for along in islice(_candidates(spec, family, families, tried, constants), MOST_TRIED):
            freed = free_order(spec, family, along)
            if freed is None or not _keeps(freed, family, module, example_inputs, seed):
                continue
            tried[_kind(family)] = _relative(family, along)
            spec = freed if (pairs := _pairs(freed)) <= MOST_PAIRS else _left(spec, family, along, pairs)
            break
    return spec


def _pairs(spec: PermutationSpec) -> int:
    """Return the most pairs of units that matching compares at once, each of one expert with each of any other."""
    whole = {group.name for group in spec.groups if group.bound == WHOLE}
    return max((group.copies**2 * group.size**2 for group in spec.groups if whole & set(group.within)), default=0)


def _left(spec: PermutationSpec, family: ModuleFamily, along: Along, pairs: int) -> PermutationSpec:
    """Return the spec with a list in its order, and why: to compare all its units with all would take that memory."""
    tensor, dim = next((one for one in along if isinstance(one, tuple)), (sorted(family.tensors)[0], 0))
    reason = (
        f"the order of {family.count} experts in {family.path or tensor!r} is a symmetry, but to match all their units "
        f"with all takes {pairs * 8 / 2**30:.3g} GiB, expected at most {MOST_PAIRS * 8 / 2**30:.3g}; {STAY}"
    )
    return replace(spec, frozen=(*spec.frozen, Frozen(tensor, dim, family.count, reason)))


def _kind(family: ModuleFamily) -> tuple[str, ...]:
    return tuple(name.removeprefix(family.path) for name in (*family.patterns, *family.stacked))


def _scope(family: ModuleFamily) -> str:
    return family.path.rpartition(".")[0]


def _relative(family: ModuleFamily, along: Along) -> tuple[Axis, ...]:
    """Return what moved along by names below the module that holds the list."""
    named = [(one.path, -1) if isinstance(one, ModuleFamily) else one for one in along]
    return tuple((name.removeprefix(_scope(family)), dim) for name, dim in named)


def _candidates(
    spec: PermutationSpec,
    family: ModuleFamily,
    families: Sequence[ModuleFamily],
    tried: Mapping[Any, tuple[Axis, ...]],
    still: Collection[str],
) -> Iterator[Along]:
    """Yield what may move with a list, what moved with others like it first, then the fewest tensors first.

    These are lists of as many, and axes of as many positions that no group moves, in the smallest module around the
    list that has any. First all such axes.
    """
    scope = _scope(family)
    while True:
        inside = f"{scope}." if scope else ""
        beside = [
            other
            for other in families
            if other is not family
            and other.count == family.count
            and other.path.startswith(inside)
            and other.tensors <= spec.shapes.keys()
            and other.tensors.isdisjoint(family.tensors)
        ]
        listed = family.tensors.union(*(other.tensors for other in beside))
        axes = [
            (name, dim)
            for name, shape in spec.shapes.items()
            if name.startswith(inside) and name not in listed and name not in spec.stacks and name not in still
            for dim, size in enumerate(shape if len(shape) < 3 else shape[:1])
            if size == family.count and not spec.layouts.get(name, {}).get(dim)
        ]
        pool: list[Any] = [*axes, *beside]
        if pool or not scope:
            break
        scope = scope.rpartition(".")[0]
    known = tried.get(_kind(family))
    if known is not None:
        same = tuple(one for one in pool if set(_relative(family, (one,))) <= set(known))
        if len(same) == len(known):
            yield same
    if len({name for name, _ in axes}) == len(axes):
        yield tuple(axes)
    for count in range(len(pool) + 1):
        for along in combinations(pool, count):
            names = [one[0] for one in along if isinstance(one, tuple)]
            if len(set(names)) == len(names):
                yield along


def _keeps(spec: PermutationSpec, family: ModuleFamily, module: nn.Module, inputs: tuple[Any, ...], seed: int) -> bool:
    """Whether modules of a list may change places: seen on weights under which each of them had its say."""
    first = next(iter((*family.patterns, *family.stacked)))
    name = str(spec.layouts[first][0][0].parts[0].group)
    still = spec.identity()
    turned = {**still, name: still[name].roll(1)}
    swapped = {**still, name: torch.cat([still[name][:2].flip(0), still[name][2:]])}
    inside = {g.name for g in spec.groups if name in g.within}
    mixed = {g: p if g in inside else turned[g] for g, p in spec.moving(seed).items()}
    reached: set[int] = set()
    try:
        measured = Verification(spec, module, inputs)
        for draw in range(MOST_DRAWS):
            if any(measured.change(element, seed + draw) > TOLERANCE for element in (turned, swapped, mixed)):
                return False
            reached |= _reached(family, module, inputs, seed + draw)
            if len(reached) == family.count:
                return True
    except (LmcError, RuntimeError):  # what cannot be measured is not believed
        return False
    return False


def _reached(family: ModuleFamily, module: nn.Module, inputs: tuple[Any, ...], seed: int) -> set[int]:
    """Return which modules of a list the outputs depend on, with random weights, by their gradients."""
    runner = Runner(module, dtype=torch.float64)
    runner.draw(module, seed)
    state = {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in stored_tensors(runner.module).items()
    }
    with torch.enable_grad(), StayDouble():
        outputs = tensors_in(torch.func.functional_call(runner.module, state, runner.cast(inputs)))
        total = torch.stack([x.square().sum() for x in outputs if x.requires_grad]).sum()
        wanted = [state[name] for name in sorted(family.tensors) if state[name].requires_grad]
        slopes = torch.autograd.grad(total, wanted, allow_unused=True)
    found = {id(tensor): slope for tensor, slope in zip(wanted, slopes, strict=True)}
    reached = set()
    for k in range(family.count):
        own = [found.get(id(state[name])) for name in family.member(k)]
        own += [slope[k] for name in family.stacked if (slope := found.get(id(state[name]))) is not None]
        if any(slope is not None and _moves(slope) for slope in own):
            reached.add(k)
    return reached


def _moves(slope: Tensor) -> bool:
    return bool(torch.isfinite(slope).all() and slope.abs().max() > 0)
