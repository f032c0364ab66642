"""Configurations compared: what changes a network's function is a difference, however a version wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from networks.beside import LLAMA, folder

from lmccheck.beside.configs import differences
from lmccheck.beside.folder import Folder


def compared(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the values of what differs by its place; each is LLAMA with these keys, None leaving one out."""
    ends = []
    for name, keys in (("a", one), ("b", other)):
        config = {key: value for key, value in (LLAMA | keys).items() if value != "left out"}
        ends.append(Folder(folder(tmp_path / name, {"config.json": config})))
    turned = {each.what: each.values[::-1] for each in differences(*reversed(ends))}
    assert turned == {each.what: each.values for each in differences(*ends)}
    return {each.what: each.values for each in differences(*ends)}


@pytest.mark.parametrize(
    ("one", "other", "what", "values"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 5e5}, "rope_theta", ("10000.0", "500000.0")),
        ({}, {"rope_theta": 5e5}, "rope_theta", ("10000.0", "500000.0")),
        ({"rope_parameters": {"rope_theta": 1e4}}, {"rope_theta": 5e5}, "rope_theta", ("10000.0", "500000.0")),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            "rope_scaling.factor", ("2.0", "4.0"),
        ),
        ({"partial_rotary_factor": 0.5}, {}, "partial_rotary_factor", ("0.5", "absent")),
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, "rms_norm_eps", ("1e-06", "1e-05")),
        ({"rms_norm_eps": "left out"}, {"rms_norm_eps": 1e-5}, "rms_norm_eps", ("absent (1e-06 by default)", "1e-05")),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, "hidden_act", ('"silu"', '"gelu"')),
        ({"tie_word_embeddings": True}, {}, "tie_word_embeddings", ("true", "absent (false by default)")),
        ({"num_key_value_heads": 1}, {}, "num_key_value_heads", ("1", "absent (2 by default)")),
        ({"attention_bias": True}, {}, "attention_bias", ("true", "absent (false by default)")),
        ({"torch_dtype": "bfloat16", "dtype": "left out"}, {}, "dtype", ('"bfloat16"', '"float32"')),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 3]}, "eos_token_id", ("2", "[2, 3]")),
        ({"of_a_later_version": 0.5}, {}, "of_a_later_version", ("0.5", "absent")),
        ({"of_a_later_version": [1, 2]}, {"of_a_later_version": [1, 3]}, "of_a_later_version[1]", ("2", "3")),
        ({"model_type": "mistral", "sliding_window": None}, {"model_type": "mistral"}, "sliding_window",
         ("null", "absent (4096 by default)")),
        ({"model_type": "its-own"}, {"model_type": "its-own", "tie_word_embeddings": False}, "tie_word_embeddings",
         ("absent", "false")),
        ({"text_config": {"rope_theta": 1e4}}, {"text_config": {"rope_theta": 2e4}}, "text_config.rope_theta",
         ("10000.0", "20000.0")),
        ({"quantization_config": {"bits": 4}}, {}, "quantization_config", ('{"bits": 4}', "absent")),
        ({"num_hidden_layers": 2}, {}, "num_hidden_layers", ("2", "1")),
        ({"architectures": ["LlamaModel"]}, {}, "architectures[0]", ('"LlamaModel"', '"LlamaForCausalLM"')),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
            "rope_scaling.original_max_position_embeddings", ("64", "32"),
        ),
        ({"of_a_later_version": [1]}, {"of_a_later_version": [1, 2]}, "of_a_later_version", ("[1]", "[1, 2]")),
        ({"of_a_later_version": {"x": 1}}, {"of_a_later_version": {"x": 1, "y": 2}}, "of_a_later_version.y",
         ("absent", "2")),
        ({"of_a_later_version": True}, {"of_a_later_version": 1}, "of_a_later_version", ("true", "1")),
    ],
)  # fmt: skip
def test_what_changes_the_function_is_told(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], what: str, values: tuple[str, str]
) -> None:
    """With both values as the files have them, and what is assumed where one says nothing."""
    assert compared(tmp_path, one, other) == {what: values}


WINDOWED = {"model_type": "qwen2", "num_hidden_layers": 2, "num_key_value_heads": 2, "sliding_window": 8}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"transformers_version": "4.40.0", "use_cache": True, "_name_or_path": "x"}, {"use_cache": False}),
        ({"attention_dropout": 0.1, "hidden_dropout_prob": 0.1, "embd_pdrop": 0.1}, {"attention_dropout": 0.0}),
        ({"initializer_range": 0.02}, {"initializer_range": 0.01}),
        ({"rope_theta": 10000}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ({"rope_theta": 1e4, "rope_scaling": None}, {}),
        ({"rope_scaling": {"type": "linear", "factor": 1.0}}, {}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0],
                                                 "original_max_position_embeddings": 64}},
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 5e5, "short_factor": [1.0],
                                 "long_factor": [2.0], "original_max_position_embeddings": 64}},
        ),
        ({"torch_dtype": "float32", "dtype": "left out"}, {"dtype": "torch.float32"}),
        ({"num_key_value_heads": 2, "head_dim": 2}, {"num_key_value_heads": None}),
        ({"eos_token_id": 2}, {"eos_token_id": [2]}),
        ({"mlp_bias": False, "of_a_later_version": False, "pruned_heads": {}}, {"of_a_later_version": None}),
        ({"bos_token_id": 1}, {"bos_token_id": 1.0}),
        ({"of_a_later_version": float("nan")}, {"of_a_later_version": float("nan")}),
        ({"architectures": None}, {}),
        ({"_of_its_own": 1}, {"_of_its_own": 2}),
        ({"num_attention_heads": None, "num_key_value_heads": 32}, {"num_attention_heads": None}),
        ({"of_a_later_version": {"__float__": "Infinity"}}, {"of_a_later_version": float("inf")}),
        ({"qk_rope_head_dim": 1, "head_dim": 1}, {"qk_rope_head_dim": 1}),
        ({"model_type": "mistral", "num_key_value_heads": None}, {"model_type": "mistral", "num_key_value_heads": 2}),
        ({"partial_rotary_factor": 1.0}, {}),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 32, "beta_slow": 1, "truncate": True}},
        ),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            {"max_position_embeddings": 64,
             "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
        ),
        (  # layers from the first on see a window, those before it everything
            {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1},
            {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1,
             "layer_types": ["full_attention", "sliding_attention"]},
        ),
        (
            {**WINDOWED, "use_sliding_window": False, "max_window_layers": 0},
            {**WINDOWED, "use_sliding_window": False, "layer_types": ["full_attention"] * 2},
        ),
    ],
)  # fmt: skip
def test_what_does_not_is_not_told(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bookkeeping, dropout, spellings of other versions, and values that are left out and assumed anyway."""
    assert compared(tmp_path, one, other) == {}


@pytest.mark.parametrize(
    ("read", "unread", "assumed"),
    [
        ({"rms_norm_eps": 0.05}, "layer_norm_eps", "1e-06"),
        ({"hidden_act": "relu"}, "activation_function", '"silu"'),
        ({"rope_theta": 50.0}, "rotary_emb_base", "10000.0"),
        ({"rope_theta": 50.0}, "global_rope_theta", "10000.0"),
        ({"partial_rotary_factor": 0.5}, "rotary_pct", None),
    ],
)
def test_a_key_that_the_type_never_reads_is_no_spelling(
    tmp_path: Path, read: dict[str, Any], unread: str, assumed: str | None
) -> None:
    """Llama is loaded with its default: both the key that it reads and the one that it does not are told."""
    ((key, value),) = read.items()
    default = f"absent ({assumed} by default)" if assumed else "absent"
    found = compared(tmp_path, {"rms_norm_eps": 1e-6, **read}, {key: "left out", unread: value})
    assert found[unread] == ("absent", json.dumps(value))
    assert found[key][0] == json.dumps(value)
    assert found[key][1] in (default, assumed or default)
    assert list(compared(tmp_path, {key: "left out"}, {key: "left out", unread: value})) == [unread]


def test_spellings_that_a_type_reads_are_one(tmp_path: Path) -> None:
    neox = {"model_type": "gpt_neox", "rms_norm_eps": "left out"}
    now = {"rope_theta": 50.0, "partial_rotary_factor": 0.5}
    assert compared(tmp_path, {**neox, "rotary_emb_base": 50, "rotary_pct": 0.5}, {**neox, **now}) == {}
    gpt2 = {"model_type": "gpt2", "rms_norm_eps": "left out", "hidden_size": "left out"}
    assert compared(tmp_path, {**gpt2, "n_embd": 4}, {**gpt2, "hidden_size": 4}) == {}
    assert list(compared(tmp_path, {**gpt2, "n_embd": 4, "hidden_size": 8}, {**gpt2, "n_embd": 4})) == ["hidden_size"]


def test_the_spelling_that_the_files_have_is_proposed(tmp_path: Path) -> None:
    """With the first part that differs, and how many more do."""
    config = {"torch_dtype": "float16", "more": [1, 2, 3]}, {"torch_dtype": "float32", "more": [1, 5, 6]}
    ends = [Folder(folder(tmp_path / name, {"config.json": each})) for name, each in zip("ab", config, strict=True)]
    lines = [found.line("a", "b") for found in differences(*ends)]
    assert lines == [
        "config.json: more[1] is 2 in a and 5 in b (1 more of its parts differ); mend: make them equal, or accept = "
        '["more"]',
        'config.json: dtype is "float16" in a and "float32" in b; mend: make them equal, or accept = ["torch_dtype"]',
    ]


def test_layers_of_two_kinds_are_compared_in_either_spelling(tmp_path: Path) -> None:
    """As Gemma 3 wrote its two bases before and after; one of them that differs is told by its kind."""
    sizes = {"model_type": "gemma3_text", "num_hidden_layers": 6}
    before = {**sizes, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    kinds = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in KINDS}
    after = {**sizes, "rope_parameters": kinds, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
    assert compared(tmp_path, before, after) == {}
    assert compared(tmp_path, {**before, "rope_local_base_freq": 2e4}, after) == {
        "rope_theta.sliding_attention": ("20000.0", "10000.0")
    }
    assert list(compared(tmp_path, {**before, "sliding_window_pattern": 2}, after)) == ["layer_types[1]"]
    assert compared(tmp_path, {**before, "sliding_window_pattern": "left out"}, after) == {}  # 6 is the type's own
    assert compared(tmp_path, {**before, "rope_theta": "left out"}, after) == {}  # and so is a million
    scaled = {kind: {**held, "rope_type": "linear", "factor": 8.0} for kind, held in kinds.items()}
    some = {**kinds, "full_attention": scaled["full_attention"]}  # of one kind only
    ends = [
        folder(tmp_path / name, None, **after | {"rope_parameters": held})
        for name, held in (("a", some), ("b", scaled))
    ]
    assert [found.names[0] for found in differences(*map(Folder, ends))] == ["rope_parameters"]


KINDS = (("full_attention", 1e6), ("sliding_attention", 1e4))


def test_the_order_of_labels_counts_for_classifiers(tmp_path: Path) -> None:
    """The first label that differs, with how many do; a language model has none, whatever its config says."""
    cats, dogs = {"0": "cat", "1": "dog", "2": "cow"}, {"0": "dog", "1": "cat", "2": "cow"}
    turned = {label: int(place) for place, label in reversed(cats.items())}
    head = {"architectures": ["LlamaForSequenceClassification"]}
    assert compared(tmp_path, {**head, "id2label": cats}, {**head, "id2label": dogs}) == {
        "id2label.0": ('"cat"', '"dog"')
    }
    assert compared(tmp_path, {**head, "id2label": cats}, {**head, "label2id": turned}) == {}
    assert compared(tmp_path, {**head, "num_labels": 2}, head) == {}
    assert list(compared(tmp_path, {**head, "num_labels": 3}, head)) == ["id2label"]
    assert compared(tmp_path, {"id2label": cats}, {"id2label": dogs}) == {}


def test_an_inner_config_that_is_left_out_has_its_types_defaults(tmp_path: Path) -> None:
    inner = {"model_type": "siglip_vision_model", "layer_norm_eps": 1e-6}
    assert compared(tmp_path, {"vision_config": inner}, {}) == {}
    found = compared(tmp_path, {"vision_config": {**inner, "layer_norm_eps": 1e-5}}, {})
    assert found == {"vision_config.layer_norm_eps": ("1e-05", "absent (1e-06 by default)")}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt_neox", "bert", "vit", "t5", "whisper"])
def test_a_config_of_defaults_is_one_that_says_nothing(tmp_path: Path, model_type: str) -> None:
    """What transformers itself writes of a type's defaults is what the table assumes of it."""
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    mapping[model_type]().save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert [d.what for d in differences(Folder(tmp_path / "a"), Folder(tmp_path / "b"))] == []


BEFORE: dict[str, dict[str, Any]] = {  # as versions 4.3x to 4.4x wrote them, sizes made small
    "llama": {
        "num_key_value_heads": 1, "max_position_embeddings": 64, "pretraining_tp": 1, "torch_dtype": "bfloat16",
        "rope_theta": 5e5, "tie_word_embeddings": False, "eos_token_id": [1, 2],
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 16, "rope_type": "llama3"},
    },
    "qwen2": {"max_window_layers": 2, "sliding_window": 32, "use_sliding_window": False, "rope_theta": 1e6},
    "gemma3_text": {"num_hidden_layers": 6, "rope_theta": 1000000, "rope_local_base_freq": 10000, "sliding_window": 8,
                    "sliding_window_pattern": 6, "head_dim": 2, "cache_implementation": "hybrid"},
    "phi3": {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_theta": 1e4,
             "rope_scaling": {"long_factor": [1.5, 2.0], "short_factor": [1.0, 1.0], "type": "su",
                              "original_max_position_embeddings": 16}},
    "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "hidden_size": 16, "use_parallel_residual": True},
    "bert": {"position_embedding_type": "absolute", "gradient_checkpointing": False, "layer_norm_eps": 1e-12},
    "t5": {"feed_forward_proj": "gated-gelu", "d_model": 8, "n_positions": 512, "output_past": True, "d_kv": 4},
    "whisper": {"num_hidden_layers": 4, "encoder_layers": 4, "d_model": 8, "forced_decoder_ids": [[1, 2]]},
    "modernbert": {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3,
                   "num_hidden_layers": 4, "position_embedding_type": "absolute"},
}  # fmt: skip


@pytest.mark.parametrize("model_type", BEFORE)
def test_a_config_that_a_later_version_saved_again_is_the_same(tmp_path: Path, model_type: str) -> None:
    """However transformers spells it now; one of its numbers that changes is told."""
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 8}
    config = {"model_type": model_type, **common, **BEFORE[model_type]}
    old = folder(tmp_path / "old", {"config.json": config})
    transformers.AutoConfig.from_pretrained(old).save_pretrained(tmp_path / "new")
    assert [d.line("old", "new") for d in differences(Folder(old), Folder(tmp_path / "new"))] == []
