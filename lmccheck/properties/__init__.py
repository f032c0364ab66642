"""The properties a pair can be asked for, one file each, and the registry the gate runs them through."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, nearest

if TYPE_CHECKING:
    from lmccheck.pair import ModelPair
    from lmccheck.result import Result

_RUNNERS = {"linear_connectivity": "lmccheck.properties.linear_connectivity"}


def run(property_name: str, pair: ModelPair, *, seed: int = 0, profile: str = "ci", **settings: Any) -> Result:
    """Run a property by name with a seed and a search profile; ``settings`` are the property's own keywords."""
    if property_name not in _RUNNERS:
        raise LmcError(
            f"property {property_name!r}: unknown{nearest(property_name, _RUNNERS)}; expected one of {sorted(_RUNNERS)}"
        )
    runner = getattr(import_module(_RUNNERS[property_name]), property_name)
    result: Result = runner(pair, seed=seed, profile=profile, **settings)
    return result
