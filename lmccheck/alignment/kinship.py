"""What two networks' weights say before any forward pass: one initialisation or two, and how far apart.

Units that were never moved are still nearest to themselves: of networks that share their initialisation (fine-tunes,
members of a soup, clients of a round) nearly every row of a weight matrix is, of networks that do not one in as many
as there are. Measured on networks of digits: 86 % and more (70 pairs of fine-tunes, of runs from one start and of noisy
copies) against 27 % and less (75 pairs of seeds, layers 8 to 128 wide), so that none of either was taken for the other.
What is equal in both, as a stored table of positions is, tells nothing, nor do rows of few columns: of a matrix of more
than 2^(columns − 2) rows, one that is moved by half its size meets another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Theta = Mapping[str, Tensor]
ROWS, COLUMNS, TENSORS = 256, 1024, 24  # of a tensor, and tensors of a model, that are looked at, spread evenly
FEWEST = 4  # rows of a tensor: among fewer, a row is nearest to itself by chance
SHARED, INDEPENDENT = 0.6, 0.4  # shares of units that are nearest to themselves
CHANCE = 1e-3  # of strangers with as many units nearest to themselves, above which these are not called shared
FROZEN = 0.75  # of the matrices, from which on equal ones are no tables but what was not trained
LIKE, UNLIKE, MOVED = 0.9, 0.5, 0.02  # cosines of a unit with another, and with itself, that moved; share of such
SCALE = 10.0  # ratio of two tensors' norms, or of their largest singular values, that is worth a word


@dataclass(frozen=True)
class Kinship:
    """Two networks: the share of ``units`` nearest to themselves, their distance in units of their mean norm.

    ``nearest`` is the mean cosine of a unit with what it is nearest to, ``scales`` the largest ratio of two norms, or
    of two largest singular values, of one tensor, and ``scale_at`` that tensor. ``share`` is None where no tensor has
    rows and columns enough to tell. ``moved`` units are unlike themselves and another's nearly; strangers have as many
    nearest to themselves with a probability of at most ``chance``.
    """

    share: float | None
    units: int
    nearest: float
    distance: float
    scales: float
    scale_at: str
    finite: bool = True
    moved: int = 0
    chance: float = 0.0

    @property
    def kind(self) -> str:
        """One of ``shared``, ``independent``, ``unclear`` and ``broken``."""
        if not self.finite:
            return "broken"
        if self.share is None or INDEPENDENT < self.share < SHARED:
            return "unclear"
        if self.share <= INDEPENDENT:
            return "independent"
        return "shared" if self.chance < CHANCE else "unclear"

    @property
    def reordered(self) -> bool:
        """Whether units of one are those of the other at another place."""
        return self.moved > 1 and self.moved >= MOVED * self.units

    @property
    def found(self) -> str:
        """What was seen, in words."""
        if self.share is None:
            return f"initialisation not told (no matrix whose rows tell), {self.distance:.2g} of their norm apart"
        name = {"shared": "a shared initialisation", "independent": "independent initialisations"}
        kind = name.get(self.kind, "initialisation unclear")
        kind = f"units in another order, {self.moved} of {self.units}" if self.reordered else kind
        return (
            f"{kind} ({self.share:.0%} of {self.units} units nearest to "
            f"themselves), {self.distance:.2g} of their norm apart"
        )

    @property
    def advice(self) -> str:
        """What to do: merge as they are, align first, or expect nothing."""
        if not self.finite:
            return "expect nothing: one of them is not finite"
        if self.scales > SCALE:
            return f"expect little: {self.scale_at} is {self.scales:.3g} times as large in one as in the other"
        if self.reordered:
            some_of = "" if self.kind == "independent" else "some of "
            return f"align first: {some_of}their units are each other's in another order"
        if self.kind == "shared":
            return "merge as they are"
        return "align first" if self.kind == "independent" else "measure both as they are and aligned"

    def facts(self) -> dict[str, Any]:
        """Return it as a report has it; JSON-able."""
        return {
            "initialisation": self.kind,
            "nearest_to_itself": self.share,
            "units": self.units,
            "distance": self.distance,
            "largest_scale_ratio": self.scales,
            "advice": self.advice,
        }


def kinship(a: Theta, b: Theta) -> Kinship:
    """Compare two networks of one shape, by weights alone; a few thousand rows at most are looked at."""
    names = [n for n, t in a.items() if t.is_floating_point() and t.numel() > 1 and n in b and b[n].shape == t.shape]
    norms, gaps, masks = {}, {}, {}
    for name in names:
        one, other = a[name], b[name]
        if not math.isfinite(norm_of(one) + norm_of(other)):
            alike = torch.isinf(one) & (one == other)  # as stored masks are
            one, other = masks[name] = one.masked_fill(alike, 0.0), other.masked_fill(alike, 0.0)
        norms[name], gaps[name] = (norm_of(one), norm_of(other)), norm_of(one.double() - other.double())
    apart = math.hypot(*gaps.values())
    size = sum(math.hypot(*side) for side in zip(*norms.values(), strict=True)) / 2 if norms else 0.0
    if not math.isfinite(apart):
        at = next(n for n in names if not math.isfinite(gaps[n]))
        return Kinship(None, 0, 0.0, math.inf, math.inf, at, False)
    scales = {name: ratio_of(*norms[name]) for name in names if a[name].ndim > 1}
    own, units, moved, nearest, expected = 0, 0, 0, 0.0, 0.0
    for name in _spread(_telling({name: a[name] for name in scales}, gaps), TENSORS):
        first, second = (_thinned(tensor.flatten(1)) for tensor in masks.get(name, (a[name], b[name])))
        scales[name] = max(scales[name], ratio_of(_top(first), _top(second)))
        found, total, others, cosines, each = _nearest_to_themselves(first, second)
        own, units, moved, nearest = own + found, units + total, moved + others, nearest + cosines
        expected += total * each
    at = max(scales, key=lambda name: scales[name], default="")
    return Kinship(
        own / units if units else None,
        units,
        nearest / max(units, 1),
        apart / size if size else 0.0,
        scales.get(at, 1.0),
        at,
        moved=moved,
        chance=_chance(own, units, expected) if apart else 0.0,
    )


def _telling(matrices: Theta, gaps: Mapping[str, float]) -> list[str]:
    """Return whose rows tell units: those that differ, or all where most are equal, of columns enough if any differs.

    Of directions in d dimensions fewer than one in 2^(d − 1) is within 30 degrees of another.
    """
    equal = [name for name in matrices if not gaps[name]]
    left_out = () if len(equal) >= FROZEN * len(matrices) else equal
    found = []
    for name, tensor in matrices.items():
        rows, columns = tensor.shape[0], tensor[:1].numel()
        enough = columns > 1 if not any(gaps.values()) else min(rows, 8 * ROWS) <= 2.0 ** (min(columns, COLUMNS) - 2)
        if rows >= FEWEST and enough and name not in left_out:
            found.append(name)
    return found


def _nearest_to_themselves(first: Tensor, second: Tensor) -> tuple[int, int, int, float, float]:
    """Return how many rows of a are nearest to their own of all rows of b, of how many, and how many are another's.

    With it the sum of the cosines, and what share of strangers are nearest to their own.
    """
    alive = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    first, second = (torch.nn.functional.normalize(rows[alive], dim=1) for rows in (first, second))
    rows = places(len(first), ROWS)
    if len(first) < FEWEST:
        return 0, 0, 0, 0.0, 0.0
    cosines = first[rows] @ second.T
    best = cosines.max(1).values
    own = cosines[torch.arange(len(rows)), rows]
    stayed, moved = int((own >= best - 1e-6).sum()), int(((best > LIKE) & (own < UNLIKE)).sum())
    if 2 * moved <= len(rows) - stayed:  # trained filters that resemble one another
        moved = 0
    return stayed, len(rows), moved, float(best.sum()), 1 / len(first)


def _chance(own: int, units: int, expected: float) -> float:
    """Return Chernoff's bound of the probability that as many of strangers' units are nearest to themselves."""
    if own <= expected:
        return 1.0
    parts = ((own, expected), (units - own, units - expected))
    return math.exp(-sum(found * math.log(found / mean) for found, mean in parts if found))


def places(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _spread(names: list[str], most: int) -> list[str]:
    return [names[k] for k in places(len(names), most).tolist()] if names else []


def _thinned(matrix: Tensor) -> Tensor:
    """Return rows among which nearest ones are sought, with as many columns as tell them apart; float32."""
    rows, columns = (places(size, most) for size, most in zip(matrix.shape, (8 * ROWS, COLUMNS), strict=True))
    if len(rows) < matrix.shape[0]:
        matrix = matrix[rows]
    return (matrix[:, columns] if len(columns) < matrix.shape[1] else matrix).float()


def _top(matrix: Tensor, steps: int = 8) -> float:
    """Return a lower bound of the largest singular value, near it after a few power steps."""
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype) + torch.arange(matrix.shape[1]) / matrix.shape[1]
    for _ in range(steps):
        vector = torch.nn.functional.normalize(matrix.T @ (matrix @ vector), dim=0)
    return float((matrix @ vector).norm())


def norm_of(tensor: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(tensor, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    )


def ratio_of(one: float, other: float) -> float:
    low, high = sorted((one, other))
    if low == high:  # of infinities too
        return 1.0
    return high / low if low > 0 else math.inf
