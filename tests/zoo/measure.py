"""One row of the zoo's table: what was found in a network, and whether it keeps the function."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import lmccheck
from lmccheck.errors import LmcError


@dataclass
class Row:
    """``deviation`` is None where the network was refused; ``refusal`` then says why."""

    name: str
    parameters: int = 0
    groups: int = 0
    free: float = 0.0
    deviation: float | None = None
    discover_s: float = 0.0
    verify_s: float = 0.0
    peak_ratio: float = 0.0  # growth of the process over the model's own size
    refusal: str = ""
    unruled: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # reason -> frozen positions
    sizes: list[Any] = field(default_factory=list)


def measure(name: str, module: nn.Module, inputs: tuple[Any, ...], trials: int = 2) -> Row:
    """Discover and verify the symmetries of one network."""
    row = Row(name, sum(p.numel() for p in module.parameters()))
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    before = _resident()
    try:
        start = time.perf_counter()
        spec = lmccheck.discover_symmetry(module, inputs)
        row.discover_s = time.perf_counter() - start
        row.groups, row.free, row.unruled = len(spec.groups), spec.free_share, dict(spec.unruled)
        row.sizes = [(g.size, g.copies) if g.within else g.size for g in spec.groups]
        counted: Counter[str] = Counter()
        for frozen in spec.frozen:
            counted[frozen.reason] += frozen.size
        row.reasons = dict(counted.most_common())
        start = time.perf_counter()
        row.deviation = spec.verify(module, inputs, trials=trials)
        row.verify_s = time.perf_counter() - start
    except LmcError as error:
        row.refusal = f"{type(error).__name__}: {error}"
    row.peak_ratio = (_resident() - before) / size if size else 0.0
    return row


def _resident() -> float:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
