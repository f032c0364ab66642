"""What weights alone say before any forward pass of a set: one initialisation or several, and who stands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.kinship import Kinship, Theta, kinship, norm_of, places, ratio_of
from lmccheck.shown import some

__all__ = ["Kinship", "SetTriage", "kinship", "pair_line", "triage_set"]

SAMPLED = 2**16  # numbers of a model that distances are estimated by
FAR, SCORE = 3.0, 6.0  # times as far from the others as these from one another; robust z-score of its logarithm
SPREAD = 0.1  # of a logarithm: members that differ by less are not told apart


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
        reordered = any(kin.reordered for name, kin in self.kin.items() if name not in self.outliers)
        found = {"shared": "merge as they are", "independent": "align first"}.get(
            self.kind, "measure both as they are and aligned"
        )
        if reordered and self.kind != "independent":
            found = "align first: some of their units are each other's in another order"
        return f"leave out {some(self.outliers)}, then {found}" if self.outliers else found

    def line(self) -> str:
        """Return it in one line."""
        kin = [kin for name, kin in self.kin.items() if name not in self.outliers]
        what = {"shared": "a shared initialisation", "independent": "independent initialisations"}.get(
            self.kind, "initialisations of several kinds" if self.kind == "mixed" else "initialisation not told"
        )
        what = "units in another order" if kin and all(each.reordered for each in kin) else what
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
        norms[name] = {key: norm_of(tensor) for key, tensor in floats.items()}
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
        parts.append(tensor.flatten()[places(tensor.numel(), count)].double())
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
                key: ratio_of(norm, sorted(norms[other][key] for other in names)[len(names) // 2])
                for key, norm in norms[name].items()
            }
            at = max(ratios, key=lambda key: ratios[key])
            found[name] = f"{times:.3g} times as far from the others as these from one another, most {at}"
    return found


def pair_line(kin: Kinship) -> str:
    """Return what a report says of a pair, in one line."""
    return f"triage: {kin.found}: {kin.advice}"
