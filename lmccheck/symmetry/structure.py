"""Which numbers of a network belong to which unit: its row (incoming), its columns (outgoing), the head, and the rest.

Everything a path does is said in these terms, so that no path knows an architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lmccheck.shown import one_line, some
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.trace import Trace

State = Mapping[str, Tensor]  # float tensors in float64 by their canonical names; integer tensors as they are
Units = Mapping[str, Tensor]  # per unit group, int64 positions of units


@dataclass(frozen=True)
class Block:
    """Where the units of one group lie in one dimension of a tensor: ``positions`` (units, numbers a unit) int64."""

    group: str
    dim: int
    positions: Tensor = field(repr=False)

    def of(self, units: Tensor) -> Tensor:
        """Return the positions of some units, one after the other."""
        return self.positions[units].reshape(-1)


Blocks = Mapping[str, Sequence[Block]]  # per tensor


@one_line(lambda structure: some(f"{name} ({size})" for name, size in structure.sizes.items()))
@dataclass(frozen=True)
class Structure:
    """A network as unit groups in sequence.

    ``rows`` holds, per tensor, the blocks along its producing dimension (a unit's incoming weights, bias, norm vectors
    and statistics); ``columns`` those along its consuming one. ``head`` names the last layer's weight and bias, in
    which the output is affine; where there is none it is empty and ``headless`` says why. ``inert`` tensors are never
    read, ``variances`` must stay positive, ``uncovered`` are hidden layers whose outputs are no units, each with why.
    ``levels`` are the groups in order from input to output, those that feed one another (a residual stream and its
    blocks) together.

    ``whole`` are the hidden units that cannot be dropped one by one, by their group (where they are in none, by the
    tensor that makes them), each with why: dropping leaves them as they are. ``reread`` are the groups whose outgoing
    weights are read more than once (a state, a shared block), with the tensor; ``by_weight`` the tensors whose columns
    are no inputs of one layer alone, with the dimension of these columns. ``obstacles`` say why no path of the theory
    can be built, a clause each; empty where one can.
    """

    groups: tuple[str, ...]
    sizes: Mapping[str, int]
    levels: tuple[tuple[str, ...], ...]
    rows: Mapping[str, tuple[Block, ...]] = field(repr=False)
    columns: Mapping[str, tuple[Block, ...]] = field(repr=False)
    head: tuple[str, ...]
    headless: str = field(repr=False)
    uncovered: Mapping[str, str] = field(repr=False)
    inert: frozenset[str] = field(repr=False)
    variances: frozenset[str] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    trace: Trace = field(repr=False)
    whole: Mapping[str, str] = field(default_factory=dict, repr=False)
    reread: Mapping[str, str] = field(default_factory=dict, repr=False)
    by_weight: Mapping[str, int] = field(default_factory=dict, repr=False)
    obstacles: tuple[str, ...] = field(default=(), repr=False)

    @property
    def inner(self) -> str:
        """What a verdict about the units that can be dropped leaves out, in a clause; empty where nothing is."""
        if self.whole:
            return f"inner: {some(map(repr, self.whole), 1)} left whole"
        return f"inner: {some(map(repr, self.reread), 1)} read many times" if self.reread else ""

    @cached_property
    def share(self) -> float:
        """Share of the stored numbers that are a unit's that can be dropped: its incoming or its outgoing weights."""
        total = sum(prod(shape) for shape in self.shapes.values())
        found = 0.0
        for name, shape in self.shapes.items():
            others = 1.0
            for dim, size in enumerate(shape):
                blocks = [b for b in (*self.rows.get(name, ()), *self.columns.get(name, ())) if b.dim == dim]
                taken = {place for block in blocks for place in block.positions.reshape(-1).tolist()}
                others *= 1 - len(taken) / max(1, size)
            found += prod(shape) * (1 - others)
        return found / max(1, total)

    @property
    def depth(self) -> int:
        """d, the number of weight layers of a chain: one more than there are levels."""
        return len(self.levels) + 1

    @property
    def sequential(self) -> bool:
        """Whether every level is one group that does not feed itself: then each may be dropped after the other."""
        return all(len(level) == 1 for level in self.levels) and not any(
            {block.group for block in self.rows.get(name, ())} & {block.group for block in self.columns.get(name, ())}
            for name in self.columns
        )

    def canonical(self, weights: State) -> dict[str, Tensor]:
        """Return weights by their canonical names, floating ones in float64 on the CPU."""
        return dict(Canonical(self, weights))

    def stored(self, state: State) -> dict[str, Tensor]:
        """Return a state by every name of the state dict."""
        held = {own: state[own] for own in dict.fromkeys(self.trace.tied.values())}
        return {name: held[own] for name, own in self.trace.tied.items()}

    def keep_all(self) -> dict[str, Tensor]:
        """Return all units of all groups."""
        return {group: torch.arange(self.sizes[group]) for group in self.groups}

    def others(self, group: str, units: Tensor) -> Tensor:
        """Return the units of a group that are not in ``units``, in order."""
        free = torch.ones(self.sizes[group], dtype=torch.bool)
        free[units] = False
        return free.nonzero().flatten()


class Canonical(Mapping[str, Tensor]):
    """Weights by their canonical names, floating ones in float64 on the CPU, each converted when it is asked for.

    A large model is held once, as it is stored: in float64 it would be held twice or four times more.
    """

    def __init__(self, structure: Structure, weights: State) -> None:
        self._held: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            self._held.setdefault(structure.trace.tied.get(name, name), tensor)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._held[name]
        return tensor.detach().cpu().to(torch.float64) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
