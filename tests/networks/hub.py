"""Folders as save_pretrained writes them, of tiny models made from config classes; transformers is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXT = {
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 4}
IMAGE = {**TEXT, "image_size": 8, "patch_size": 4, "num_labels": 3}
SPEECH = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
ENCODER_DECODER = {
    "vocab_size": 23,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name: class, config class, settings
    "Llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "GPT-2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 23, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "n_inner": 12},
    ),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 3}),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", GROUPED),
    "BERT, masked": ("BertForMaskedLM", "BertConfig", TEXT),
    "RoBERTa, masked": ("RobertaForMaskedLM", "RobertaConfig", {**TEXT, "max_position_embeddings": 18}),
    "BERT, classes": ("BertForSequenceClassification", "BertConfig", {**TEXT, "num_labels": 3}),
    "DistilBERT, classes": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 23, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "num_labels": 3},
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "ResNet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 3},
    ),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "num_labels": 3},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 23, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
        | {"decoder_start_token_id": 0},
    ),
    "BART": ("BartForConditionalGeneration", "BartConfig", {**ENCODER_DECODER, "max_position_embeddings": 16}),
    "Whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**ENCODER_DECODER, "num_mel_bins": 6, "max_source_positions": 10, "max_target_positions": 16},
    ),
    "Wav2Vec2, classes": (
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {**{k: v for k, v in TEXT.items() if k != "max_position_embeddings"}, **SPEECH, "num_labels": 3}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
    ),
}


def built(family: str, seed: int = 0, **settings: Any) -> Any:
    """Return a model of a family with random weights."""
    import transformers

    kind, config, given = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind)(getattr(transformers, config)(**{**given, **settings}))


def folder(path: Path, model: Any, **settings: Any) -> Path:
    """Write a model as save_pretrained does, without its progress bar; return the folder."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(path, **settings)
    finally:
        if shown:
            logging.enable_progress_bar()
    return path


def batch(family: str, samples: int = 6) -> dict[str, torch.Tensor]:
    """Return what a tokenizer or processor would give such a model, with labels; some rows are padded."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, 23, (samples, 6), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 4:] = mask[2, 3:] = 0
    text, classes = {"attention_mask": mask, "input_ids": tokens}, torch.arange(samples) % 3
    labels = tokens.masked_fill(mask == 0, -100)
    kind = FAMILIES[family][0]
    if "Image" in kind:
        side = 8 if family == "ViT" else 32
        return {"pixel_values": torch.randn(samples, 3, side, side, generator=generator), "labels": classes}
    if family.startswith("Wav2Vec2"):
        return {"input_values": torch.randn(samples, 200, generator=generator), "labels": classes}
    if family == "Whisper":
        return {"input_features": torch.randn(samples, 6, 20, generator=generator), "labels": labels}
    if "SequenceClassification" in kind:
        return {**text, "labels": classes}
    return text if "LM" in kind and "Masked" not in kind else {**text, "labels": labels}
