"""The one table of test networks: a builder beside the unit groups that exist in what it builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from lmccheck import PermutationSpec
from lmccheck.symmetry.discover import Traced, derive

Case = tuple[nn.Module, tuple[Tensor, ...]]  # a module and example inputs
Build = Callable[[], Case]
Groups = list[int | tuple[int, int]]


@dataclass(frozen=True)
class Network:
    """A network by name: ``network()`` builds a new one.

    ``groups`` are the sizes derived by hand, (size, copies) for a group inside another one's units; None where none
    were derived.
    """

    name: str
    build: Build
    groups: Groups | None

    def __call__(self) -> Case:
        return self.build()


NETWORKS: dict[str, Network] = {}  # the families people train
ALL: dict[str, Network] = {}  # those and "uncommon …", "rule …", "mutant …"


def network(groups: Groups | None = None, kind: str = "", name: str = "") -> Callable[[Build], Build]:
    """Register a builder under a name (its own unless given) of a kind, with the groups that must be found."""

    def add(build: Build) -> Build:
        full = f"{kind} {name or build.__name__}".strip()
        assert full not in ALL
        ALL[full] = Network(full, build, groups)
        if not kind:
            NETWORKS[full] = ALL[full]
        return build

    return add


def seeded(name: str) -> Case:
    """Build a network, with the weights of seed 0."""
    torch.manual_seed(0)
    return ALL[name]()


@cache
def derived(name: str) -> Traced:
    """Return what is derived for a network: traced once, for all tests of a process."""
    module, inputs = seeded(name)
    return derive(module.eval(), inputs)


def discovered(name: str) -> tuple[nn.Module, tuple[Tensor, ...], PermutationSpec]:
    """Build a network, with the weights of seed 0 and the spec that is derived for it."""
    return *seeded(name), derived(name).spec


def found_groups(spec: PermutationSpec) -> Groups:
    """Return the groups of a spec in the form that ``Network.groups`` has."""
    return [(group.size, group.copies) if group.within else group.size for group in spec.groups]
