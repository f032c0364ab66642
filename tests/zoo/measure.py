"""One row of the zoo's table: what was found in a network, and whether it keeps the function."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.symmetry.spec import PermutationSpec


@dataclass
class Row:
    """``deviation`` is None where the network was refused; ``refusal`` then says why."""

    name: str
    parameters: int = 0
    groups: int = 0
    free: float = 0.0  # share of the parameters that lie in a group's slot
    unread: float = 0.0  # share of the parameters that evaluation does not read (auxiliary heads)
    deviation: float | None = None
    discover_s: float = 0.0
    verify_s: float = 0.0
    memory: float = 0.0  # growth of the process over the model's own size
    refusal: str = ""
    unruled: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # reason -> frozen positions, most first
    sizes: list[Any] = field(default_factory=list)  # of every group: a size, or (size, copies) inside others' units

    @property
    def sound(self) -> bool:
        """Whether the function is kept, or the network was refused with a reason."""
        return self.deviation <= 1e-9 if self.deviation is not None else bool(self.refusal)


def measure(name: str, module: nn.Module, inputs: tuple[Any, ...], trials: int = 3) -> Row:
    """Discover and verify the symmetries of one network."""
    _warm_up()
    row = Row(name, sum(p.numel() for p in module.parameters()))
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    before = _resident()
    try:
        start = time.perf_counter()
        spec = lmccheck.discover_symmetry(module, inputs)
        row.discover_s = time.perf_counter() - start
        _describe(row, module, spec)
        start = time.perf_counter()
        row.deviation = spec.verify(module, inputs, trials=trials)
        row.verify_s = time.perf_counter() - start
    except LmcError as error:
        row.refusal = f"{type(error).__name__}: {error}"
    row.memory = (_resident() - before) / size if size else 0.0
    return row


def _describe(row: Row, module: nn.Module, spec: PermutationSpec) -> None:
    row.groups, row.free, row.unruled = len(spec.groups), spec.free_share, dict(spec.unruled)
    row.sizes = [(g.size, g.copies) if g.within else g.size for g in spec.groups]
    counted: Counter[str] = Counter()
    for frozen in spec.frozen:
        counted[frozen.reason] += frozen.size
    row.reasons = dict(counted.most_common())
    unread = {frozen.tensor for frozen in spec.frozen if "does not read" in frozen.reason}
    row.unread = sum(p.numel() for n, p in module.named_parameters() if n in unread) / max(row.parameters, 1)


def _warm_up() -> None:
    """Load what the first discovery loads, so that it does not count as a network's memory or time."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    inputs = (torch.randn(1, 1, 2, 2),)
    lmccheck.discover_symmetry(net, inputs).verify(net, inputs)


def _resident() -> float:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
