"""Drawn networks in folders, as other programs read them: a tiny language model, and adapters on a base."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from lmccheck.merging.drawn import Drawn, acted
from lmccheck.merging.trial import Setting
from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.files import save
from lmccheck.store.folders import ADAPTER_CONFIG, CONFIG

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, VOCABULARY = 2, 3


def llama_config(layers: int, hidden: int) -> dict[str, Any]:
    """Return the config of a language model of a few numbers, as save_pretrained writes it."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": hidden,
        "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "max_position_embeddings": 8, "tie_word_embeddings": False, "dtype": "float32",
    }  # fmt: skip


def llama_shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of that model."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (hidden, WIDTH) for part in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (WIDTH, hidden)}
        shapes |= {f"{at}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


@st.composite
def llamas(
    draw: Any, originals: Mapping[str | None, Checkpoint], layers: int, weights: Mapping[str, float] | None
) -> Drawn:
    """Draw language models in place of the originals (None: the base), whose files a recipe looks for.

    Entries come from a drawn seed: a program that takes a fifth of a second is not shrunk entry by entry.
    """
    import torch

    hidden = draw(st.integers(1, 3))
    order = torch.tensor(draw(st.permutations(range(hidden))), dtype=torch.int64)
    seeds = {name: draw(st.integers(0, 2**16)) for name in originals}
    shapes = llama_shapes(layers, hidden)

    def state(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}

    def moved(name: str, value: Tensor) -> Tensor:
        if name.endswith((".gate_proj.weight", ".up_proj.weight")):
            return value[order]
        return value[:, order] if name.endswith(".down_proj.weight") else value

    def prepare(folder: Path) -> Setting:
        home = folder / "home"
        home.mkdir()
        (home / CONFIG).write_text(json.dumps(llama_config(layers, hidden)), encoding="utf-8")
        drawn = {
            name: replace(look_at(state(seeds[name]), folder, name or "base"), files=one.files, home=home)
            for name, one in originals.items()
        }
        return Setting({name: one for name, one in drawn.items() if name is not None}, drawn.get(None), weights)

    return Drawn(prepare, partial(acted, moved=moved))


@st.composite
def adapters(draw: Any, configs: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float] | None) -> Drawn:
    """Draw adapters of few ranks on a perceptron, configured as the originals are but for ranks and targets."""
    import torch

    inputs, hidden, outputs = (draw(st.integers(1, 2)) for _ in range(3))
    rank = draw(st.integers(1, 3))
    entries = st.floats(-2, 2, width=16)
    layers = {"fc1": (hidden, inputs), "fc2": (outputs, hidden)}

    def numbers(*shape: int) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(entries, min_size=count, max_size=count))).reshape(shape) / 3

    base = {f"{name}.weight": numbers(*shape) for name, shape in layers.items()}
    factors = {
        who: {
            f"base_model.model.{name}.lora_{part}.weight": numbers(*((rank, columns) if part == "A" else (rows, rank)))
            for name, (rows, columns) in layers.items()
            for part in "AB"
        }
        for who in configs
    }

    def prepare(folder: Path) -> Setting:
        file = save(base, folder / "base.safetensors")
        parents: dict[str, Checkpoint] = {}
        for who, tensors in factors.items():
            home = folder / f"adapter-{len(parents)}"
            home.mkdir()
            save(tensors, home / "adapter_model.safetensors")
            (home / ADAPTER_CONFIG).write_text(json.dumps(_small(configs[who], rank, layers, file)), encoding="utf-8")
            parents[who] = look_at({"base": str(file), "adapter": str(home)}, Path(), who)
        return Setting(parents, look_at(str(file), Path(), "base"), weights)

    return Drawn(prepare)


def _small(config: Mapping[str, Any], rank: int, layers: Iterable[str], base: Path) -> dict[str, Any]:
    """Return an adapter's config for other layers and another rank, with the scale it had at its own."""
    own = max(int(config.get("r") or 1), 1)
    alpha = float(config.get("lora_alpha") or own)
    told = {key: config[key] for key in ("use_rslora", "use_dora") if key in config}
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha * rank / own, "target_modules": sorted(layers),
        "bias": "none", "base_model_name_or_path": str(base), "inference_mode": True, **told,
    }  # fmt: skip
