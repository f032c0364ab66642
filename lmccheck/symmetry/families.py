"""Modules of one kind in a list, and tensors that hold one part of each: what may be the experts of a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import or_

import torch
from torch import nn

from lmccheck.modules.stored import overlapping_names, stored_tensors, tied_names
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.stacks import STAR, members_of
from lmccheck.symmetry.trace import Trace


@dataclass(frozen=True)
class ModuleFamily:
    """``count`` modules (or tensors) of a list at ``path``, alike in the names and shapes of what they store.

    ``stacked``: tensors of a module at ``path`` that hold one part of each of ``count`` experts, in place of a list.
    """

    path: str
    count: int
    patterns: Mapping[str, tuple[str, ...]] = field(repr=False)  # pattern of a name -> the names, in order
    stacked: tuple[str, ...] = ()

    @property
    def tensors(self) -> set[str]:
        """Names of all its tensors."""
        return {*self.stacked, *(name for members in self.patterns.values() for name in members)}

    def member(self, k: int) -> set[str]:
        """Names of the tensors of one of its modules."""
        return {members[k] for members in self.patterns.values()}


def module_families(module: nn.Module) -> list[ModuleFamily]:
    """Return the lists of modules or tensors that are alike, outer ones before those inside them."""
    stored, tied = stored_tensors(module), tied_names(module)
    uses = Counter(tied.values())
    shared = overlapping_names(module) | {name for name, known in tied.items() if uses[known] > 1}
    paths: dict[str, dict[str, None]] = {}
    for name in stored:
        parts = name.split(".")
        for k, part in enumerate(parts):
            if part.isdecimal():
                pattern = ".".join([*parts[:k], STAR, *parts[k + 1 :]])
                paths.setdefault(".".join(parts[:k]), {}).setdefault(pattern)
    found = []
    for path, patterns in sorted(paths.items(), key=lambda item: item[0].count(".")):
        listed = {pattern: members_of(pattern, stored) for pattern in patterns}
        kinds = {p: {(tuple(stored[n].shape), stored[n].dtype) for n in members} for p, members in listed.items()}
        counts = {len(members) for members in listed.values()}
        alike = len(counts) == 1 and all(len(kind) == 1 for kind in kinds.values())
        if alike and max(counts) > 1 and shared.isdisjoint(chain(*listed.values())):
            found.append(ModuleFamily(path, counts.pop(), listed))
    return found


def stacked_families(spec: PermutationSpec) -> list[ModuleFamily]:
    """Return the modules that hold several tensors of three dimensions, of which none moves the first, all as long."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, shape in spec.shapes.items():
        if len(shape) == 3 and shape[0] > 1 and name not in spec.stacks and not spec.layouts.get(name, {}).get(0):
            found.setdefault((name.rpartition(".")[0], shape[0]), []).append(name)
    return [ModuleFamily(path, n, {}, tuple(names)) for (path, n), names in found.items() if len(names) > 1]


def side_by_side(family: ModuleFamily, trace: Trace) -> bool:
    """Whether no module of a list reads what another of them has made, as layers one after another do."""
    owner = {name: 1 << k for k in range(family.count) for name in family.member(k)}
    made: dict[torch.fx.Node, int] = {}  # the members that an activation depends on, one bit each
    weights: dict[torch.fx.Node, int] = {}  # the same of what is computed of weights alone
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            holder = trace.placeholders[node.name]
            (made if holder.kind == "input" else weights)[node] = owner.get(holder.target, 0)
            continue
        read = reduce(or_, (weights[n] for n in node.all_input_nodes if n in weights), 0)
        before = [made[n] for n in node.all_input_nodes if n in made]
        if not before:
            weights[node] = read
            continue
        others = reduce(or_, before)
        if read and read.bit_count() == 1 and others & ~read:
            return False
        made[node] = others | read
    return True
