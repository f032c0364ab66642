"""The properties a pair or a set can be asked for, one file each, and the registry the gate runs them through."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, nearest

if TYPE_CHECKING:
    from lmccheck.network.model_set import ModelSet
    from lmccheck.network.pair import ModelPair
    from lmccheck.result import Result

    Loaded = ModelPair | ModelSet | tuple[ModelPair, ModelPair]  # of two widths: each endpoint with its own network

_RUNNERS = {  # a module, and the function that takes what is loaded where that is not the property's own
    "linear_connectivity": "lmccheck.properties.linear_connectivity",
    "dropout_stability": "lmccheck.properties.dropout_stability",
    "noise_stability": "lmccheck.properties.noise_stability",
    "ten_segment_path": "lmccheck.properties.ten_segment_path",
    "dropout_path": "lmccheck.properties.dropout_path",
    "verify_path": "lmccheck.properties.verify_path",
    "verify_dropout": "lmccheck.properties.verify_dropout",
    "fused_connectivity": "lmccheck.properties.fused_connectivity:of_widths",
    "set_connectivity": "lmccheck.properties.set_connectivity:of_set",
}


def run(property_name: str, loaded: Loaded, *, seed: int = 0, profile: str = "ci", **settings: Any) -> Result:
    """Run a property by name with a seed and a search profile; ``settings`` are the property's own keywords."""
    if property_name not in _RUNNERS:
        raise LmcError(
            f"property {property_name!r}: unknown{nearest(property_name, _RUNNERS)}; expected one of {sorted(_RUNNERS)}"
        )
    module, _, function = _RUNNERS[property_name].partition(":")
    runner = getattr(import_module(module), function or property_name)
    result: Result = runner(loaded, seed=seed, profile=profile, **settings)
    return result
