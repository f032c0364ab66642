"""Write lmccheck/beside/defaults.json, what transformers assumes of keys that a config.json leaves out.

Run by hand where transformers is installed: ``python tests/beside/make_defaults.py``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lmccheck
from lmccheck.beside.configs import empty, harmless

FILE = Path(lmccheck.__file__).parent / "beside" / "defaults.json"
WELL_KNOWN = """
albert bart beit bert big_bird blenderbot bloom clip clip_text_model clip_vision_model codegen cohere cohere2 convbert
convnext convnextv2 deberta deberta-v2 deepseek_v2 deepseek_v3 deit detr dinov2 distilbert electra ernie esm falcon
gemma gemma2 gemma3 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe hubert
layoutlm led levit llama llama4 llama4_text llava longformer longt5 m2m_100 mamba mamba2 marian mbart megatron-bert
mistral mistral3 mixtral mobilebert mobilenet_v2 mobilevit modernbert mpnet mpt mt5 nemotron nllb-moe olmo olmo2 olmo3
olmoe opt pegasus persimmon phi phi3 phimoe pix2struct qwen2 qwen2_moe qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text
qwen3 qwen3_moe qwen3_next recurrent_gemma regnet rembert resnet roberta roberta-prelayernorm roformer rwkv segformer
siglip siglip_text_model siglip_vision_model smollm3 speecht5 squeezebert stablelm starcoder2 swin swinv2
switch_transformers t5 unispeech-sat vilt vit vit_mae vit_msn wav2vec2 wavlm whisper xglm xlm-roberta xlm-roberta-xl
xlnet
"""


KNOWN_OTHERWISE = ("head_dim", "num_key_value_heads", "layer_types", "sliding_window", "rope_parameters", "model_type")


def fields(model_type: str) -> dict[str, Any]:
    """Return the defaults of a configuration's class, its rotary positions in one spelling.

    Under ``derived`` those that are made of other keys when they are left out, under ``aliases`` the names of names.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[model_type]
    found = {}
    for field in dataclasses.fields(made):
        value = field.default_factory() if callable(field.default_factory) else field.default
        found[field.name] = None if value is dataclasses.MISSING else value
    if "rope_parameters" in found:
        rope = made().rope_parameters or {}
        nested = not any(key in rope for key in ("rope_theta", "rope_type"))
        found |= (
            {"rope_parameters": rope}
            if nested
            else {key: rope.get(key) for key in ("rope_theta", "partial_rotary_factor")}
        )
    try:
        instance = made()
    except Exception:  # some types have no model of default sizes
        instance = PreTrainedConfig()
    made_up = {key: value for key, value in instance.to_dict().items() if not empty(value) and empty(found.get(key))}
    made_up = {
        key: value for key, value in made_up.items() if key not in KNOWN_OTHERWISE and not isinstance(value, dict)
    }
    made_up |= {key: value for key, value in found.items() if value == "auto"}
    found |= {key: made_up[key] for key in ("tie_word_embeddings",) if key in made_up}
    found["derived"] = sorted(key for key in made_up if key != "tie_word_embeddings" and not harmless(key))
    found["aliases"] = dict(made.attribute_map)
    kept = {key: value for key, value in found.items() if not harmless(key) and not key.startswith("_")}
    return json.loads(json.dumps(kept, default=str))


def everything() -> dict[str, Any]:
    """Return what the file says."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    of_type = {model_type: fields(model_type) for model_type in CONFIG_MAPPING_NAMES}
    values: dict[str, list[Any]] = {}
    for stated in of_type.values():
        for key, value in stated.items():
            values.setdefault(key, []).append(value)
    said = {key: {json.dumps(value, sort_keys=True) for value in each} for key, each in values.items()}
    shared = {key: values[key][0] for key, each in said.items() if len(each) == 1 and len(values[key]) > 1}
    varied = {
        key
        for key, each in said.items()
        if key not in ("derived", "aliases") and len(each) > 1 and not all(map(empty, values[key]))
    }
    return {
        "shared": {key: value for key, value in sorted(shared.items()) if not empty(value)},
        "varied": sorted(varied),
        "types": {
            model_type: {
                key: value for key, value in sorted(of_type[model_type].items())
                if key in (*varied, "use_sliding_window") or not empty(value)
            }
            for model_type in sorted(WELL_KNOWN.split())
        },
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")
