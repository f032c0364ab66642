"""Which numbers of a network belong to which unit: its row (incoming), its columns (outgoing), the head, and the rest.

Everything a path does is said in these terms, so that no path knows an architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        """Return weights by their canonical names, floating ones in float64; nothing is shared with ``weights``."""
        kept: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            own = self.trace.tied.get(name, name)
            if own not in kept:
                kept[own] = tensor.detach().cpu().to(torch.float64) if tensor.is_floating_point() else tensor
        return kept

    def stored(self, state: State) -> dict[str, Tensor]:
        """Return a state by every name of the state dict."""
        return {name: state[own] for name, own in self.trace.tied.items()}

    def keep_all(self) -> dict[str, Tensor]:
        """Return all units of all groups."""
        return {group: torch.arange(self.sizes[group]) for group in self.groups}

    def others(self, group: str, units: Tensor) -> Tensor:
        """Return the units of a group that are not in ``units``, in order."""
        free = torch.ones(self.sizes[group], dtype=torch.bool)
        free[units] = False
        return free.nonzero().flatten()
