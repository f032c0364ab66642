"""Configurations compared: whatever two config.json say differently is a difference unless it is known to be harmless.

Spellings of one thing are one where a model's type reads them all: any other is a key by itself, which changes nothing
where it stands. Keys that are left out have their defaults (``defaults``), and configurations within configurations
(``text_config``, ``vision_config``) are compared by dotted names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lmccheck.beside import rope
from lmccheck.beside.defaults import DERIVED, UNKNOWN, assumed, is_known, pattern_of
from lmccheck.beside.difference import MISSING, Difference, brief, first_leaf, same
from lmccheck.beside.folder import CONFIG, Folder

GENERATION = """
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens max_new_tokens
generation_config
"""
TRAINING = """
initializer_range initializer_factor init_std init_xavier_std gradient_checkpointing router_aux_loss_coef aux_loss_coef
router_jitter_noise router_z_loss_coef output_router_logits apply_spec_augment mask_time_prob mask_time_length
mask_time_min_masks mask_feature_prob mask_feature_length mask_feature_min_masks ctc_loss_reduction ctc_zero_infinity
seq_aux pruned_heads embd_layer_norm_training
"""
BOOKKEEPING = """
transformers_version _name_or_path name_or_path _commit_hash auto_map use_cache torchscript return_dict
output_hidden_states output_attentions output_past use_return_dict attn_implementation _attn_implementation
_attn_implementation_autoset _attn_implementation_internal attn_impl _flash_attn_2_enabled use_flash_attn
use_flash_attention use_memory_efficient_attention experts_implementation _experts_implementation finetuning_task
task_specific_params tokenizer_class prefix processor_class chunk_size_feed_forward pretraining_tp tf_legacy_loss
_num_labels unsloth_version unsloth_fixed n_ctx use_mamba_kernels disable_custom_kernels keys_to_ignore_at_inference
adapters _diffusers_version label_names
"""
HARMLESS = frozenset(f"{GENERATION}{TRAINING}{BOOKKEEPING}".split())
DROPOUT = re.compile(
    r"(^|_)(dropout|layerdrop|pdrop|drop_path|drop_rate|dropout_(prob|rate|p)|drop_path_rate)(_prob)?$"
)

FAMILIES = (  # one thing under several names; the first is proposed where none of them stands in the files
    ("rope_scaling", "rope_parameters", "rope"),
    ("rope_theta", *rope.THETAS, *rope.LOCAL_THETAS, "rope_parameters", "rope"),
    ("partial_rotary_factor", *rope.PARTS, "rope_parameters", "rope"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon", "eps"),
    ("hidden_act", "hidden_activation", "activation_function", "activation", "ffn_activation"),
    ("dtype", "torch_dtype"),
    ("id2label", "label2id", "num_labels", "labels"),
    ("tie_word_embeddings", "ties", "tie_weights"),
    ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
)
SIZES = """
hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim n_embd n_inner n_head d_model d_ff d_kv
num_heads ffn_dim encoder_ffn_dim decoder_ffn_dim encoder_attention_heads decoder_attention_heads dim hidden_dim n_heads
moe_intermediate_size shared_expert_intermediate_size hidden_sizes embedding_size ffn_hidden_size num_kv_heads
"""
WIDTHS = tuple(SIZES.split())  # what two networks that differ in widths differ in
MADE = ("is_gated_act", "dense_act_fn")  # of feed_forward_proj, whatever a type's default is
LABELLED = re.compile("Classification|Detection|Segmentation|MultipleChoice|Tagging")


def differences(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what two folders' config.json say differently, of those that both have."""
    if a.config is None or b.config is None or a.sha256(CONFIG) == b.sha256(CONFIG):
        return
    yield from _differences(a.config, b.config, "")


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str) -> Iterator[Difference]:
    defaults = [assumed(config) for config in (one, other)]
    mine, theirs = (canonical(config, known) for config, known in zip((one, other), defaults, strict=True))
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        ends = mine.get(key, MISSING), theirs.get(key, MISSING)
        name = f"{above}{key}"
        if key.endswith("_config") and key != "quantization_config" and (within := _within(*ends)):
            yield from _differences(*within, f"{name}.")
        elif not _alike(key, (mine, theirs), defaults):
            place, *values, more = first_leaf(*ends, name)
            told = [
                _absent(known.get(key)) if value is MISSING and place == name else brief(value)
                for value, known in zip(values, defaults, strict=True)
            ]
            spelt = next((spelling for spelling in family(key) if spelling in one or spelling in other), key)
            accepted = [f"{above}{spelt}", *names(name), *(above + spelling for spelling in family(key)), *family(key)]
            yield Difference(CONFIG, place, (told[0], told[1]), tuple(dict.fromkeys(accepted)), more=more)


def _within(one: Any, other: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return two configurations within configurations, an absent one as one of the same type that says nothing."""
    stated = next((end for end in (one, other) if isinstance(end, dict)), None)
    if stated is None or not all(isinstance(end, dict) or end is MISSING or end is None for end in (one, other)):
        return None
    blank = {"model_type": stated["model_type"]} if is_known(stated.get("model_type")) else None
    ends = [end if isinstance(end, dict) else blank for end in (one, other)]
    return None if None in ends else (ends[0] or {}, ends[1] or {})


def canonical(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what is harmless, and with one spelling for what its type reads in several."""
    turned = rope.spellings(config)
    found = {key: _number(value) for key, value in config.items() if not harmless(key) and key not in turned}
    for alias, name in defaults.get("aliases", {}).items():
        if alias in found and (name not in found or same(found[name], found[alias])):
            found[name] = found.pop(alias)
    found |= rope.of(config, defaults)
    found.pop("sliding_window_pattern", None)  # which layer_types spell out
    if pattern_of(config) is not None and not found.get("layer_types") and "layer_types" in defaults:
        found["layer_types"] = defaults["layer_types"]
    dtype = found.pop("torch_dtype", None)
    if isinstance(dtype := found.get("dtype") or dtype, str):
        found["dtype"] = dtype.removeprefix("torch.")
    for key, value in found.items():
        if key.endswith("_token_id") and isinstance(value, list) and len(value) == 1:
            found[key] = value[0]
    labels = _labels(found)
    for key in ("id2label", "label2id", "num_labels"):
        found.pop(key, None)
    architectures = found.get("architectures")
    headless = isinstance(architectures, list) and not any(LABELLED.search(str(name)) for name in architectures)
    if labels is not None and not headless:
        found["id2label"] = labels
    if found.get("use_sliding_window", defaults.get("use_sliding_window")) is False:  # then none of these is read
        found |= {"sliding_window": None, "max_window_layers": None}
    return {key: value for key, value in found.items() if value is not None or key not in DERIVED}


def harmless(key: str) -> bool:
    """Whether a key changes nothing that a network computes once it is trained."""
    return key in HARMLESS or key.startswith("_") or DROPOUT.search(key) is not None


def empty(value: Any) -> bool:
    """Whether a value says no more than its absence would."""
    return value is None or value is False or value in ([], {}, "")


def family(key: str) -> tuple[str, ...]:
    """Return all spellings of a key, its own among them."""
    return next((each for each in FAMILIES if key in each), (key,))


def names(place: str) -> list[str]:
    """Return what a dotted name may be accepted by: itself, what it lies in, and its last part.

    >>> names("text_config.rope_theta")
    ['text_config.rope_theta', 'text_config', 'rope_theta']
    """
    parts = place.split(".")
    return list(dict.fromkeys([place, *(".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)), parts[-1]]))


def _number(value: Any) -> Any:
    """Return a value with the numbers that JSON has no text for, as transformers tags them."""
    if isinstance(value, list):
        return [_number(part) for part in value]
    if isinstance(value, dict):
        tagged = value.get("__float__") if len(value) == 1 else None
        return (
            float(tagged) if tagged in ("NaN", "Infinity", "-Infinity") else {k: _number(v) for k, v in value.items()}
        )
    return value


def _labels(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the labels in their order, None for the two that every configuration has unless it says otherwise."""
    stated, turned, count = (config.get(key) for key in ("id2label", "label2id", "num_labels"))
    if not isinstance(stated, dict) and isinstance(turned, dict):
        stated = {str(place): label for label, place in turned.items()}
    if not isinstance(stated, dict) and isinstance(count, int) and 0 <= count < 100_000:
        stated = {str(place): f"LABEL_{place}" for place in range(count)}
    if not isinstance(stated, dict) or stated == {"0": "LABEL_0", "1": "LABEL_1"}:
        return None
    return dict(sorted(stated.items(), key=lambda item: (len(item[0]), item[0])))


def _alike(key: str, ends: tuple[Mapping[str, Any], Mapping[str, Any]], defaults: list[dict[str, Any]]) -> bool:
    """Whether both say the same of a key, one of them perhaps by leaving it out."""
    if key == "architectures" and not all(end.get(key) for end in ends):
        return True
    absent = [key not in end for end in ends]
    if any(
        missing and key in (*known.get("derived", ()), *MADE) for missing, known in zip(absent, defaults, strict=True)
    ):
        return True  # the other value is made of keys that are compared themselves
    values = [
        known.get(key) if missing else end[key] for end, missing, known in zip(ends, absent, defaults, strict=True)
    ]
    if same(*values):
        return True
    return all(map(empty, values))


def _absent(default: Any) -> str:
    """Say of a value that is not there what is assumed of it, where that is known."""
    return "absent" if default is UNKNOWN or default is None else f"absent ({brief(default)} by default)"
