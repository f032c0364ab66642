"""What can be asked of a network: one table of facts, which properties refuse by, and which is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.symmetry.build_structure import along_weights
from lmccheck.symmetry.structure import Structure

How = Literal["certified", "sampled", "inner", "refused"]
WITHOUT_UNITS = "ask for noise_stability with noise = 'gaussian', or for linear_connectivity, which need no units"
MENDS: Mapping[str, str] = {  # what leads somewhere where a property is refused
    "dropout_stability": WITHOUT_UNITS,
    "noise_stability": WITHOUT_UNITS,
    "ten_segment_path": "form = 'learned', which trains a path and samples it",
    "dropout_path": "ask for ten_segment_path, which can also train a path",
}


@dataclass(frozen=True)
class Capability:
    """How a property can be known of a network: ``why``, and the ``mend`` where a theorem, or all of it, is refused.

    ``certified``: exactly, on the given data (of a path: all but its first and last segment). ``sampled``: at points,
    or for draws. ``inner``: of the units that can be dropped, others are left whole or are read many times.
    """

    how: How
    why: str
    mend: str = ""


def capabilities(structure: Structure) -> dict[str, Capability]:
    """Return, per property, how it can be known of two networks that are not equal in what no unit holds."""
    return {
        "linear_connectivity": Capability("sampled", "the loss at points of the line"),
        "dropout_stability": _dropped(structure, Capability("certified", "the loss of every dropped network")),
        "noise_stability": _dropped(structure, Capability("sampled", "random masks")),
        "noise = 'gaussian'": Capability("sampled", "draws of noise in whatever layers read"),
        "ten_segment_path": _ten_segments(structure),
        "dropout_path": _sequence(structure),
    }


def untraced(why: str) -> dict[str, Capability]:
    """Return likewise what is left of a network that cannot be traced: what needs no units, and lines as they are.

    What is refused could be asked with a permutation spec of the user's own, or of a network that can be traced.
    """
    refused = Capability("refused", why.partition("; mend: ")[0], "")
    return {
        "linear_connectivity": Capability("sampled", "the loss at points of the line, align = 'none' only"),
        "dropout_stability": replace(refused, mend=MENDS["dropout_stability"]),
        "noise_stability": replace(refused, mend=MENDS["noise_stability"]),
        "noise = 'gaussian'": Capability("sampled", "draws of noise in whatever layers read"),
        "ten_segment_path": Capability("sampled", "a trained path"),
        "dropout_path": replace(refused, mend=MENDS["dropout_path"]),
    }


def refusal(purpose: str, why: str) -> UnsupportedArchitecture:
    """Return the error of what is refused: its reason, and the mend of the purpose where the reason has none."""
    mend = MENDS.get(purpose, "") if "; mend: " not in why else ""
    return UnsupportedArchitecture(f"{purpose}: {why}{f'; mend: {mend}' if mend else ''}")


def no_units(structure: Structure) -> str:
    """Return why no hidden unit can be dropped; empty where some can."""
    if structure.groups:
        return ""
    left = "; ".join(f"{name!r} is left whole: {why}" for name, why in list(structure.whole.items())[:2])
    return f"{left or structure.obstacles[-1]}; no hidden unit can be dropped"


def no_path(structure: Structure) -> str:
    """Return why no path of the theory joins two such networks; empty where one does."""
    if structure.obstacles or structure.headless:
        return structure.obstacles[0] if structure.obstacles else structure.headless
    for name, why in structure.uncovered.items():
        return f"outputs of tensor {name!r} belong to no unit group ({why}), and no move of the theory changes it"
    return ""


def _dropped(structure: Structure, otherwise: Capability) -> Capability:
    if why := no_units(structure):
        return Capability("refused", why, WITHOUT_UNITS)
    return Capability("inner", structure.inner.removeprefix("inner: ")) if structure.inner else otherwise


def _ten_segments(structure: Structure) -> Capability:
    if why := no_path(structure):
        return Capability("sampled", f"a trained path: {why.partition('; mend: ')[0]}")
    return Capability("certified", "eight of ten segments exactly, two by samples")


def _sequence(structure: Structure) -> Capability:
    why = no_path(structure)
    if not why and not along_weights(structure).sequential:
        why = "units of one level feed one another, so they cannot be dropped layer by layer"
    if why:
        return Capability("refused", why.partition("; mend: ")[0], MENDS["dropout_path"])
    return Capability("certified", "nothing on the path is sampled")
