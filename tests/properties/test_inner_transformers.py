"""Stability of transformers as their library builds them: masks and dropped networks recomputed by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.quick import slowly
from torch import Tensor, nn

import lmccheck

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {"vocab_size": 24, "max_position_embeddings": 16, "intermediate_size": 12, **SMALL}
LLAMA = {**WORDS, "num_key_value_heads": 2}


def _made(name: str, **settings: Any) -> Callable[[], nn.Module]:
    config = getattr(transformers, f"{name.split('For')[0].removesuffix('LMHeadModel')}Config")(**settings)
    return lambda: getattr(transformers, name)(config).double()


# a model, and per level the module whose input the units are, with how many numbers one of them has there
MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, int]]]] = {
    "gpt2": (
        _made("GPT2LMHeadModel", vocab_size=24, n_embd=16, n_layer=2, n_head=4, n_positions=16, n_inner=12),
        [(f"transformer.h.{k}.{name}", n) for k in (0, 1) for name, n in (("attn.c_proj", 4), ("mlp.c_proj", 1))],
    ),
    "llama": (
        _made("LlamaForCausalLM", tie_word_embeddings=True, **LLAMA),
        [(f"model.layers.{k}.{n}", s) for k in (0, 1) for n, s in (("self_attn.o_proj", 8), ("mlp.down_proj", 1))],
    ),
    "vit": (
        _made("ViTForImageClassification", image_size=8, patch_size=4, intermediate_size=12, num_labels=3, **SMALL),
        [(f"vit.layers.{k}.{name}", n) for k in (0, 1) for name, n in (("attention.o_proj", 4), ("mlp.fc2", 1))],
    ),
    "mixtral": (
        _made("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **LLAMA),
        [(f"model.layers.{k}.{n}", s) for k in (0, 1) for n, s in (("self_attn.o_proj", 8), ("mlp.experts", 1))],
    ),
}


@contextmanager
def multiplied(module: nn.Module, places: list[tuple[str, int]], factors: list[Tensor | None]) -> Iterator[None]:
    """Multiply what units give: the inputs of the modules that read them; of experts, what their activation makes."""
    with ExitStack() as stack:
        for (name, numbers), factor in zip(places, factors, strict=True):
            inner = module.get_submodule(name)
            if factor is None:
                continue
            line = factor.double().repeat_interleave(numbers)
            if name.endswith("experts"):
                inner = inner.act_fn
                hook = inner.register_forward_hook(lambda _, given, made, line=line: made * line)
            else:
                hook = inner.register_forward_pre_hook(lambda _, given, line=line: (given[0] * line, *given[1:]))
            stack.callback(hook.remove)
        yield


def loss(module: nn.Module, state: Mapping[str, Tensor], data: tuple[Tensor, Tensor], *where: Any) -> float:
    module.load_state_dict(state)
    with torch.no_grad(), multiplied(module.eval(), *where):
        logits = module(data[0]).logits
    rows = logits if logits.ndim == 2 else logits[:, -1]
    return float(F.cross_entropy(rows, data[1]))


def last(outputs: Any, targets: Tensor) -> Tensor:
    """The loss of the last word, or of the class."""
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    return F.cross_entropy(logits if logits.ndim == 2 else logits[:, -1], targets, reduction="none")


@pytest.mark.parametrize("name", ["gpt2", slowly("vit")])
def test_the_library_s_own_forward_gives_the_same(name: str) -> None:
    """Every mask and every θ_i, to 1e-9: a factor in front of the modules that read units, and no columns at all."""
    build, places = MODELS[name]
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append({key: tensor.clone() for key, tensor in build().state_dict().items()})
    draw = (lambda n: torch.randn(n, 3, 8, 8).double()) if name == "vit" else (lambda n: torch.randint(0, 24, (n, 5)))
    data, calibration = ((draw(n), torch.randint(0, 3, (n,))) for n in (12, 40))
    pair = lmccheck.load_pair(*states, model=build(), data=data, calibration=calibration, loss=last, device="cpu")
    noise = lmccheck.noise_stability(pair, masks=1, epsilon=100.0)
    groups = [level[0] for level in pair.network.droppable("a test").levels]
    assert len(groups) == len(places)
    assert noise.details["known"].startswith("inner: ")
    own, multipliers = build(), noise.witness.multipliers(0)
    for end, state in zip("ab", states, strict=True):
        expected = loss(own, state, data, places, [multipliers[group] for group in groups])
        assert noise.witness.losses[end][0][-1] == pytest.approx(expected, abs=1e-9)
    found = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev")
    structure = pair.network.droppable("a test")
    for i, dropped in found.witness.found["b"].items():
        kept = {g: torch.zeros(structure.sizes[g]).index_fill(0, u, 1.0) for g, u in dropped.keep.items()}
        expected = loss(own, structure.stored(dropped.weights), data, places, [kept.get(group) for group in groups])
        assert found.details["losses"]["b"][i] == pytest.approx(expected, abs=1e-9)
    assert lmccheck.verify_dropout(pair, found.witness).details["known"] == found.details["known"]
