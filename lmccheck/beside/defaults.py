"""What transformers assumes of a key that a config.json leaves out: a table, so that it need not be imported.

Explicit null is not always what an absent key means (Mistral's ``sliding_window`` is 4096 unless it is null), nor is
false (``tie_word_embeddings``); where the table knows neither the key nor the type, null, false and empty count as
absent, and nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lmccheck.beside.rope import GLOBAL, LOCAL

UNKNOWN = object()  # a value that equals none
LEGACY = {  # keys that older versions wrote and newer ones do not have
    "position_embedding_type": "absolute",
    "use_bfloat16": False,
    "scale_attn_weights": True,
    "is_decoder": False,
    "tie_encoder_decoder": False,
    "problem_type": "single_label_classification",  # what integer labels of several classes come to
}
DERIVED = {"num_key_value_heads", "head_dim", "layer_types", *LEGACY}  # null leaves it to other keys
HEADS, WIDTH, LAYERS = ("num_attention_heads", "n_head"), ("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")
PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "olmo3": 4}  # one of so many layers sees all


@cache
def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "defaults.json").read_text("utf-8"))
    return found


def defaults_of(model_type: object) -> dict[str, Any]:
    """Return the defaults that are known of a type of model, by key.

    >>> defaults_of("mistral")["sliding_window"], defaults_of("unheard-of")["tie_word_embeddings"] is UNKNOWN
    (4096, True)
    """
    stored = _stored()
    known: dict[str, Any] | None = stored["types"][model_type] if is_known(model_type) else None
    return LEGACY | (stored["shared"] | dict.fromkeys(stored["varied"], UNKNOWN) if known is None else known)


def is_known(model_type: object) -> bool:
    """Whether the defaults of a type of model are known."""
    return isinstance(model_type, str) and model_type in _stored()["types"]


def assumed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is assumed of keys that a configuration leaves out: of its type, and of its other values."""
    found = defaults_of(config.get("model_type"))
    stated = {**found, **{key: value for key, value in config.items() if value is not None}}
    heads, width, layers = (
        next((n for key in each if isinstance(n := stated.get(key), int) and n > 0), None)
        for each in (HEADS, WIDTH, LAYERS)
    )
    derived = {
        "num_key_value_heads": heads,
        "head_dim": stated.get("qk_rope_head_dim") or (width // heads if heads and width else None),
        "layer_types": _layer_types(stated, layers) if layers and layers < 10_000 else None,
    }
    for key, value in derived.items():
        explicit_null = key in config and config[key] is None
        if value is not None and (found.get(key) is None or explicit_null):
            found[key] = value
    return found


def _layer_types(stated: Mapping[str, Any], layers: int) -> list[str] | None:
    """Return the kinds of a model's layers where its configuration is older than their list."""
    window, pattern, kind = stated.get("sliding_window"), pattern_of(stated), str(stated.get("model_type"))
    every = stated.get("global_attn_every_n_layers", 3 if kind.startswith("modernbert") else None)
    if (pattern := pattern or PATTERNS.get(kind)) is not None:
        full = [(layer + 1) % pattern == 0 for layer in range(layers)]
    elif isinstance(every, int) and every > 0:
        full = [layer % every == 0 for layer in range(layers)]
    elif not isinstance(window, int) or stated.get("use_sliding_window") is False:
        full = [True] * layers
    elif isinstance(start := stated.get("max_window_layers"), int):
        full = [layer < start for layer in range(layers)]
    else:
        return None
    return [GLOBAL if each else LOCAL for each in full]


def pattern_of(config: Mapping[str, Any]) -> int | None:
    """Return which layers see everything, one of so many, where a configuration says so."""
    stated = (config.get(key) for key in ("sliding_window_pattern", "_sliding_window_pattern"))
    return next((every for every in stated if isinstance(every, int) and every > 0), None)
