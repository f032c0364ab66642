"""Hugging Face architectures with tiny random configurations, built offline from their config classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from operators import declare_operators
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...]]

_TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_DECODER = {**_TEXT, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
}

_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 40}),
    "GPT-NeoX": ("GPTNeoX", _DECODER),
    "OPT": ("OPT", {**_DECODER, "ffn_dim": 40, "word_embed_proj_dim": 32}),
    "BLOOM": ("Bloom", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon": ("Falcon", {**_DECODER, "new_decoder_architecture": False, "multi_query": True}),
    "Llama": ("Llama", _GROUPED),
    "Llama (MQA)": ("Llama", {**_DECODER, "num_key_value_heads": 1}),
    "Mistral": ("Mistral", {**_GROUPED, "sliding_window": 4}),
    "Qwen2": ("Qwen2", _GROUPED),
    "Qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "Gemma": ("Gemma", {**_GROUPED, "head_dim": 8}),
    "Gemma 2": ("Gemma2", {**_GROUPED, "head_dim": 8}),
    "Phi": ("Phi", _GROUPED),
    "Phi-3": ("Phi3", _GROUPED),
    "OLMo 2": ("Olmo2", _GROUPED),
    "Mixtral": ("Mixtral", {**_GROUPED, "num_local_experts": 4}),
    "Mamba": ("Mamba", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
_MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", {**_DECODER}),
    "RoBERTa": ("Roberta", {**_DECODER, "max_position_embeddings": 34}),
    "DistilBERT": ("DistilBert", {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
    "ELECTRA": ("Electra", {**_DECODER, "embedding_size": 16}),
    "ALBERT": ("Albert", {**_DECODER, "embedding_size": 16}),
    "DeBERTa v2": ("DebertaV2", {**_DECODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "ModernBERT": ("ModernBert", {**_DECODER, "cls_token_id": 3, "sep_token_id": 4}),
}
_CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", _IMAGE),
    "DeiT": ("DeiT", _IMAGE),
    "BEiT": ("Beit", _IMAGE),
    "ConvNeXt": ("ConvNext", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}),
    "Swin": (
        "Swin",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "DINOv2": ("Dinov2", _IMAGE),
    "ResNet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "MobileViT": (
        "MobileViT",
        {
            "image_size": 64,
            "hidden_sizes": [16, 20, 24],
            "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 32],
            "num_attention_heads": 4,
        },
    ),
}


def build(name: str) -> Built:
    """Return a network in evaluation mode and its example inputs."""
    declare_operators()  # transformers imports torchvision where it is installed
    import transformers

    torch.manual_seed(0)
    torch.set_grad_enabled(True)
    tokens = torch.randint(5, 99, (2, 7))

    def made(prefix: str, suffix: str, settings: dict[str, Any]) -> nn.Module:
        config = getattr(transformers, f"{prefix}Config")(**settings)
        return getattr(transformers, f"{prefix}{suffix}")(config).eval()  # type: ignore[no-any-return]

    if name in _CAUSAL:
        prefix, settings = _CAUSAL[name]
        return made(prefix, "LMHeadModel" if prefix == "GPT2" else "ForCausalLM", settings), (tokens,)
    if name in _MASKED:
        return made(_MASKED[name][0], "ForMaskedLM", _MASKED[name][1]), (tokens, torch.ones_like(tokens))
    if name in _CLASSIFIERS:
        module = made(_CLASSIFIERS[name][0], "ForImageClassification", _CLASSIFIERS[name][1])
        side = 64 if name in ("ConvNeXt", "ResNet", "MobileViT") else 16
        return module, (torch.randn(2, 3, side, side),)
    if name == "T5":
        settings = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
        return made("T5", "ForConditionalGeneration", settings), (tokens, torch.ones_like(tokens), tokens[:, :5])
    if name == "BART":
        settings = {
            "vocab_size": 99,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 32,
        }
        return made("Bart", "ForConditionalGeneration", settings), (tokens, torch.ones_like(tokens), tokens[:, :5])
    if name == "CLIP":
        config = transformers.CLIPConfig(
            text_config={**_DECODER, "eos_token_id": 98}, vision_config=_IMAGE, projection_dim=16
        )
        return transformers.CLIPModel(config).eval(), (tokens, torch.randn(2, 3, 16, 16))
    if name == "Whisper encoder":
        config = transformers.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=40,
            decoder_ffn_dim=40,
            num_mel_bins=10,
            max_source_positions=20,
            vocab_size=99,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperEncoder(config).eval(), (torch.randn(2, 10, 40),)
    raise KeyError(name)


NAMES = [*_MASKED, *_CAUSAL, *_CLASSIFIERS, "T5", "BART", "CLIP", "Whisper encoder"]


def by_size() -> list[str]:
    """Return the names of all; all of them are small."""
    return NAMES


def builders() -> dict[str, Callable[[], Built]]:
    """Return every network of the zoo by name."""
    return {name: partial(build, name) for name in NAMES}
