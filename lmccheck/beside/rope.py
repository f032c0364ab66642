"""Rotary positions in one spelling: rope_theta, rope_scaling and partial_rotary_factor, however written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THETA, SCALING, PARTIAL = "rope_theta", "rope_scaling", "partial_rotary_factor"
GLOBAL, LOCAL = "full_attention", "sliding_attention"  # as configurations call layers of two kinds
THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta")
PARTS = ("partial_rotary_factor", "rotary_pct")
SPELLINGS = (THETA, PARTIAL, SCALING, "rope_parameters")  # which every type reads
OWN: dict[str, tuple[str, ...]] = {  # and which only types whose names begin so read
    "rotary_emb_base": ("gpt_neox",),
    "rotary_pct": ("gpt_neox",),
    "global_rope_theta": ("modernbert",),
    "local_rope_theta": ("modernbert",),
    "rope_local_base_freq": ("gemma3", "t5gemma2"),
}
TYPES = {"su": "longrope", "mrope": "default"}  # as they were called before
WITHIN = ("llama3", "yarn", "longrope")  # those that know a length before scaling
IGNORED = ("factor", "original_max_position_embeddings", "attention_factor")  # where nothing is scaled
YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


def of(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three values of a configuration; of layers that differ in them, a table by kind of layer.

    Nothing is returned of a model without rotary positions.

    >>> of({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, {})
    {'rope_theta': 500000.0, 'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}
    >>> of({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {"rope_theta": 1e4})
    {'rope_theta': 10000.0}
    """
    known = {name: defaults.get(name) for name in (THETA, PARTIAL, "rope_parameters")}
    assumed: dict[str, Any] = {name: value for name, value in known.items() if isinstance(value, (int, float, dict))}
    config = {name: value for name, value in config.items() if name not in OWN or name in spellings(config)}
    if not any(name in config for name in spellings(config)):
        if not assumed:
            return {}
        config = {**config, **assumed}
    layered = assumed.get("rope_parameters") or {}
    theta = _first(config, THETAS, assumed.get(THETA) or _theta(layered.get(GLOBAL)))
    partial = _first(config, PARTS, assumed.get(PARTIAL))
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(stated, dict):
        return {THETA: theta, SCALING: stated}
    if stated and all(isinstance(layer, dict) or layer is None for layer in stated.values()):
        layers = {kind: layer for kind, layer in stated.items() if layer is not None}
    elif (local := _first(config, LOCAL_THETAS, _theta(layered.get(LOCAL)))) is not None:
        layers = {GLOBAL: stated, LOCAL: {THETA: local}}
    else:
        layers = {"": stated}
    found = {kind: _layer(layer, theta, partial, config) for kind, layer in layers.items()}
    named = {
        name: {kind: values[name] for kind, values in found.items() if values[name] is not None}
        for name in (THETA, SCALING, PARTIAL)
    }
    return {
        name: next(iter(values.values())) if _one(values, len(found)) else values
        for name, values in named.items()
        if values
    }


def spellings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that a configuration's type reads of rotary positions.

    >>> "rotary_pct" in spellings({"model_type": "gpt_neox"}), "rotary_pct" in spellings({"model_type": "llama"})
    (True, False)
    """
    kind = str(config.get("model_type"))
    return (*SPELLINGS, *(name for name, types in OWN.items() if kind.startswith(types)))


def _layer(stated: Mapping[str, Any], theta: Any, partial: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three values of one kind of layers; a scaling that scales nothing is None."""
    scaling = {name: value for name, value in stated.items() if value is not None}
    theta, partial = scaling.pop(THETA, theta), scaling.pop(PARTIAL, partial)
    kind = scaling.pop("rope_type", scaling.get("type", "default"))
    scaling.pop("type", None)
    kind = TYPES.get(kind, kind) if isinstance(kind, str) else kind
    if kind == "linear" and scaling.get("factor") == 1:
        kind = "default"
    if kind in WITHIN:
        length = "original_max_position_embeddings"
        scaling[length] = config.get(length) or scaling.get(length) or config.get("max_position_embeddings")
    if kind == "yarn":
        scaling = YARN | scaling
    if kind == "default":
        scaling = {name: value for name, value in scaling.items() if name not in IGNORED}
    rope = {"rope_type": kind, **scaling} if scaling or kind != "default" else None
    return {THETA: theta, SCALING: rope, PARTIAL: None if partial == 1 else partial}


def _theta(layer: Any) -> Any:
    return layer.get(THETA) if isinstance(layer, dict) else None


def _one(values: Mapping[str, Any], layers: int) -> bool:
    """Whether all kinds of layers have the same value."""
    first = next(iter(values.values()))
    return len(values) == layers and all(value == first for value in values.values())


def _first(config: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)
