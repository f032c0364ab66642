"""What a finding is drawn by, as plain numbers: a line, a path, costs by name, draws, a merge beside its parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Curve:
    """Losses and 0-1 errors at points ``t`` of a line, (n,) each; the naive ones are those of nothing aligned.

    ``ends``: the losses of the original endpoints, between which the chord is drawn. ``highest``: a loss that no point
    of the line exceeds, measured or not, where one is certified; ``upper``, (n,): those that none exceeds between the
    neighbours of each point.
    """

    t: list[float]
    losses: list[float]
    errors: list[float] | None = None
    naive_losses: list[float] | None = None
    naive_errors: list[float] | None = None
    ends: list[float] | None = None
    highest: float | None = None
    upper: list[float] | None = None
    kind: ClassVar[str] = "line"


@dataclass(frozen=True)
class Profile:
    """The segments of a path in order.

    Of each ``number``, ``kind``, ``does`` (in words), ``loss_start``, ``loss_end``, ``max``, ``worst`` (where, in
    [0, 1] of the segment) and ``known`` ("constant", "convex" or "sampled").
    """

    segments: list[dict[str, Any]]
    kind: ClassVar[str] = "path"


@dataclass(frozen=True)
class Bars:
    """What each of ``names`` costs, (n,) by endpoint or measurement; None where there is nothing to measure.

    ``beside``: the same, less well done (without refit). ``of``: what is named, ``what`` the cost. ``limited``: whether
    it is these that the limit bounds.
    """

    names: list[str]
    values: Mapping[str, Sequence[float | None]]
    beside: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    of: str = "level"
    what: str = "cost"
    beside_what: str = ""
    limited: bool = True
    kind: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Draws:
    """What every draw costs, by endpoint; at least a ``share`` of all draws has to stay within the limit.

    ``of``: what is drawn. ``attenuation``: by endpoint and layer, how much of noise in that layer alone reaches the
    output (ψ, 1 where it passes as it is), where that was measured.
    """

    values: Mapping[str, Sequence[float]]
    share: float
    of: str
    attenuation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kind: ClassVar[str] = "draws"


@dataclass(frozen=True)
class Tasks:
    """A merge beside its parents on each data set, or each part of them, in the unit of ``metric``.

    Of each row ``name``, ``parents`` (figures by name), ``merge``, ``reference`` (which parent, or rule), its figure
    ``reference_value``, and ``bound``, the worst figure that the limit allows.
    """

    rows: list[dict[str, Any]]
    metric: str
    higher_is_better: bool = False
    kind: ClassVar[str] = "tasks"


Drawn = Curve | Profile | Bars | Draws | Tasks
