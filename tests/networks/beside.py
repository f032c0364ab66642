"""Folders for tests: a config.json and a tokenizer as ``save_pretrained`` writes them, with what a test changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4,
    "num_attention_heads": 2, "num_hidden_layers": 1, "rms_norm_eps": 1e-6, "dtype": "float32",
}  # fmt: skip
WORDS = ("<s>", "</s>", "▁the", "ing", "er", "s", "an", "on")


def words(tokens: tuple[str, ...] = WORDS, **more: Any) -> dict[str, Any]:
    """Return a tokenizer.json of words by their places."""
    return {"model": {"type": "WordLevel", "vocab": {t: k for k, t in enumerate(tokens)}, "unk_token": "<s>"}, **more}


def folder(path: Path, files: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a folder: LLAMA with ``config``, and ``files`` by name (tables as JSON, texts, bytes)."""
    path.mkdir(parents=True, exist_ok=True)
    for name, held in {"config.json": LLAMA | config, **(files or {})}.items():
        if held is None:
            continue
        raw = held if isinstance(held, bytes) else (held if isinstance(held, str) else json.dumps(held)).encode()
        (path / name).write_bytes(raw)
    return path
