"""The properties a pair or a set can be asked for, one file each, and what declares, checks and judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmccheck.properties.registry import PROPERTIES
from lmccheck.properties.registry import check as check

if TYPE_CHECKING:
    from lmccheck.result import Result


def run(
    property_name: str, loaded: Any, *, seed: int = 0, profile: str = "ci", endpoints: str = "useful", **settings: Any
) -> Result:
    """Run a property by name, as a gate does, on a pair, two widths or a set.

    ``settings`` are its own, seed and profile the run's. ``endpoints`` must each do better than a constant answer,
    unless they may be ``any``: else nothing can be concluded.
    """
    declared = PROPERTIES.get(property_name)
    common = {"seed": seed, "profile": profile}
    asked = {name: value for name, value in common.items() if name in declared.parameters}
    return declared.measure(loaded, {**asked, "endpoints": endpoints, **settings})
