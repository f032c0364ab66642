"""What weights alone say before any forward pass: one initialisation or several, how far apart, who stands out.

Units that were never moved are still nearest to themselves: of networks that share their initialisation (fine-tunes,
members of a soup, clients of a round) nearly every row of a weight matrix is, of networks that do not one in as many
as there are. Measured on networks of digits: 86 % and more (70 pairs of fine-tunes, of runs from one start and of noisy
copies) against 27 % and less (75 pairs of seeds, layers 8 to 128 wide), so that none of either was taken for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmccheck.shown import some

Theta = Mapping[str, Tensor]
ROWS, COLUMNS, TENSORS = 256, 1024, 24  # of a tensor, and tensors of a model, that are looked at, spread evenly
FEWEST = 4  # rows of a tensor: among fewer, a row is nearest to itself by chance
SHARED, INDEPENDENT = 0.6, 0.4  # shares of units that are nearest to themselves
SAMPLED = 2**16  # numbers of a model that distances are estimated by
FAR, SCORE = 3.0, 6.0  # times as far from the others as these from one another; robust z-score of its logarithm
SPREAD = 0.1  # of a logarithm: members that differ by less are not told apart
SCALE = 10.0  # ratio of two tensors' norms, or of their largest singular values, that is worth a word


@dataclass(frozen=True)
class Kinship:
    """Two networks: the share of ``units`` nearest to themselves, their distance in units of their mean norm.

    ``nearest`` is the mean cosine of a unit with what it is nearest to, ``scales`` the largest ratio of two norms, or
    of two largest singular values, of one tensor, and ``scale_at`` that tensor. ``share`` is None where no tensor has
    rows enough to tell.
    """

    share: float | None
    units: int
    nearest: float
    distance: float
    scales: float
    scale_at: str
    finite: bool = True

    @property
    def kind(self) -> str:
        """One of ``shared``, ``independent``, ``unclear`` and ``broken``."""
        if not self.finite:
            return "broken"
        if self.share is None or INDEPENDENT < self.share < SHARED:
            return "unclear"
        return "shared" if self.share >= SHARED else "independent"

    @property
    def found(self) -> str:
        """What was seen, in words."""
        if self.share is None:
            return f"initialisation not told (no matrix of {FEWEST} rows), {self.distance:.2g} of their norm apart"
        name = {"shared": "a shared initialisation", "independent": "independent initialisations"}
        return (
            f"{name.get(self.kind, 'initialisation unclear')} ({self.share:.0%} of {self.units} units nearest to "
            f"themselves), {self.distance:.2g} of their norm apart"
        )

    @property
    def advice(self) -> str:
        """What to do: merge as they are, align first, or expect nothing."""
        if not self.finite:
            return "expect nothing: one of them is not finite"
        if self.scales > SCALE:
            return f"expect little: {self.scale_at} is {self.scales:.3g} times as large in one as in the other"
        if self.kind == "shared":
            return "merge as they are"
        if self.kind == "unclear":
            return "measure both as they are and aligned"
        same = self.nearest > 0.95
        return "align first" + (": their units are each other's in another order" if same else "")

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
    norms = {name: (_norm(a[name]), _norm(b[name])) for name in names}
    apart = math.sqrt(sum(_norm(a[name].double() - b[name].double()) ** 2 for name in names))
    size = sum(math.hypot(*side) for side in zip(*norms.values(), strict=True)) / 2 if norms else 0.0
    if not math.isfinite(apart):
        return Kinship(
            None, 0, 0.0, math.inf, math.inf, next(n for n in names if not math.isfinite(sum(norms[n]))), False
        )
    matrices = [name for name in names if a[name].ndim > 1 and a[name].shape[0] >= FEWEST and a[name][0].numel() > 1]
    own, units, nearest = 0, 0, 0.0
    scales = {name: _ratio(*norms[name]) for name in names if a[name].ndim > 1}
    for name in _spread(matrices, TENSORS):
        first, second = (_thinned(theta[name].flatten(1)) for theta in (a, b))
        scales[name] = max(scales[name], _ratio(_top(first), _top(second)))
        mine, total, cosines = _nearest_to_themselves(first, second)
        own, units, nearest = own + mine, units + total, nearest + cosines
    at = max(scales, key=lambda name: scales[name], default="")
    share = own / units if units else None
    return Kinship(share, units, nearest / max(units, 1), apart / size if size else 0.0, scales.get(at, 1.0), at)


def _nearest_to_themselves(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """Return how many rows of a are nearest to their own of all rows of b, of how many, and the sum of the cosines."""
    alive = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    first, second = (torch.nn.functional.normalize(rows[alive], dim=1) for rows in (first, second))
    rows = _places(len(first), ROWS)
    if len(first) < FEWEST:
        return 0, 0, 0.0
    cosines = first[rows] @ second.T
    best = cosines.max(1).values
    own = cosines[torch.arange(len(rows)), rows]
    return int((own >= best - 1e-6).sum()), len(rows), float(best.sum())


def _places(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _spread(names: list[str], most: int) -> list[str]:
    return [names[k] for k in _places(len(names), most).tolist()] if names else []


def _thinned(matrix: Tensor) -> Tensor:
    """Return rows among which nearest ones are sought, with as many columns as tell them apart; float32."""
    rows, columns = (_places(size, most) for size, most in zip(matrix.shape, (8 * ROWS, COLUMNS), strict=True))
    if len(rows) < matrix.shape[0]:
        matrix = matrix[rows]
    return (matrix[:, columns] if len(columns) < matrix.shape[1] else matrix).float()


def _top(matrix: Tensor, steps: int = 8) -> float:
    """Return a lower bound of the largest singular value, near it after a few power steps."""
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype) + torch.arange(matrix.shape[1]) / matrix.shape[1]
    for _ in range(steps):
        vector = torch.nn.functional.normalize(matrix.T @ (matrix @ vector), dim=0)
    return float((matrix @ vector).norm())


def _norm(tensor: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(tensor, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    )


def _ratio(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return high / low if low > 0 else (1.0 if high == 0 else math.inf)


@dataclass(frozen=True)
class SetTriage:
    """A set: how each is related to its ``reference``, the member in the middle, and ``outliers`` with the reason."""

    names: tuple[str, ...]
    reference: str
    kin: dict[str, Kinship]
    outliers: dict[str, str]

    @property
    def kind(self) -> str:
        """``shared`` where all but outliers share their initialisation, ``independent`` where none do, or ``mixed``."""
        kinds = {kin.kind for name, kin in self.kin.items() if name not in self.outliers}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "unclear"

    @property
    def advice(self) -> str:
        """What to do with them."""
        found = {"shared": "merge as they are", "independent": "align first"}.get(
            self.kind, "measure both as they are and aligned"
        )
        return f"leave out {some(self.outliers)}, then {found}" if self.outliers else found

    def line(self) -> str:
        """Return it in one line."""
        kin = [kin for name, kin in self.kin.items() if name not in self.outliers]
        what = {"shared": "a shared initialisation", "independent": "independent initialisations"}.get(
            self.kind, "initialisations of several kinds" if self.kind == "mixed" else "initialisation not told"
        )
        apart = max((each.distance for each in kin), default=0.0)
        said = "".join(f"; {name} stands out: {why}" for name, why in list(self.outliers.items())[:3])
        return f"triage: {what}, up to {apart:.2g} of their norm apart{said}: {self.advice}"

    def facts(self) -> dict[str, Any]:
        """Return it as a report has it; JSON-able."""
        return {
            "initialisation": self.kind,
            "reference": self.reference,
            "outliers": dict(self.outliers),
            "advice": self.advice,
            "members": {name: kin.facts() for name, kin in self.kin.items()},
        }


def triage_set(models: Callable[[], Iterable[tuple[str, Theta]]]) -> SetTriage:
    """Look at a set of one network: distances by a sample of numbers, then kinship with the member in the middle.

    ``models()`` yields names and weights, and may read each as it is asked for: each is read twice, or three times.
    """
    samples: dict[str, Tensor] = {}
    norms: dict[str, dict[str, float]] = {}
    outliers: dict[str, str] = {}
    for name, theta in models():
        floats = {key: tensor for key, tensor in theta.items() if tensor.is_floating_point() and tensor.numel() > 1}
        norms[name] = {key: _norm(tensor) for key, tensor in floats.items()}
        samples[name] = _sampled(floats)
        bad = [key for key, norm in norms[name].items() if not math.isfinite(norm)]
        if bad and not all(torch.isinf(floats[key]).any() and not torch.isnan(floats[key]).any() for key in bad):
            outliers[name] = f"{bad[0]} is not finite"
    healthy = [name for name in samples if name not in outliers]
    middle = _distances(torch.stack([samples[name] for name in healthy])) if len(healthy) > 1 else torch.zeros(1)
    outliers |= _far(healthy, middle, norms)
    reference = min(zip(healthy, middle.tolist(), strict=True), key=lambda item: item[1])[0] if healthy else ""
    anchor = next((theta for name, theta in models() if name == reference), {})
    kin = {name: kinship(anchor, theta) for name, theta in models() if name != reference and healthy}
    return SetTriage(tuple(samples), reference, kin, outliers)


def _sampled(floats: Mapping[str, Tensor]) -> Tensor:
    """Return some numbers of every tensor, as many as its share of all; float64."""
    total = sum(tensor.numel() for tensor in floats.values())
    parts = []
    for tensor in floats.values():
        count = max(1, min(tensor.numel(), round(SAMPLED * tensor.numel() / total)))
        parts.append(tensor.flatten()[_places(tensor.numel(), count)].double())
    return torch.nan_to_num(torch.cat(parts), 0.0, 0.0, 0.0) if parts else torch.zeros(1, dtype=torch.float64)


def _distances(samples: Tensor) -> Tensor:
    """Return each member's median distance from the others, (n,)."""
    apart = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.eye(len(samples), dtype=torch.bool)
    return apart[others].reshape(len(samples), -1).median(1).values


def _far(names: Sequence[str], middle: Tensor, norms: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return which members are far from the others, which are near one another, and where most so."""
    if len(names) < 3:
        return {}
    logs = torch.log(middle.clamp_min(1e-300))
    centre = logs.median()
    spread = max(float((logs - centre).abs().median()) / 0.6745, SPREAD)
    found = {}
    for k, name in enumerate(names):
        times = float(middle[k] / middle.median()) if float(middle.median()) else math.inf if middle[k] else 1.0
        if times > FAR and float(logs[k] - centre) / spread > SCORE:
            ratios = {
                key: _ratio(norm, sorted(norms[other][key] for other in names)[len(names) // 2])
                for key, norm in norms[name].items()
            }
            at = max(ratios, key=lambda key: ratios[key])
            found[name] = f"{times:.3g} times as far from the others as these from one another, most {at}"
    return found


def pair_line(kin: Kinship) -> str:
    """Return what a report says of a pair, in one line."""
    return f"triage: {kin.found}: {kin.advice}"
