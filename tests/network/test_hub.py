"""Folders build their own model: transformers builds it and names its tensors, from the bytes that were read."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from networks.hub import ENCODER_DECODER, FAMILIES, TEXT, batch, built, folder
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.network.hub.folder import folder_model, loss_of
from lmccheck.network.loss import LOSSES

transformers = pytest.importorskip("transformers")


def mean_loss(model, given):
    """The mean over samples of what each of its counted tokens costs: by the model itself, in float32."""
    with torch.no_grad():
        inputs = {name: tensor for name, tensor in given.items() if name != "labels"}
        logits = model.eval()(**inputs).logits.double()
    targets = given.get("labels", given["input_ids"].masked_fill(given["attention_mask"] == 0, -100))
    rows = []
    for row, labels in zip(logits[:, :-1], targets[:, 1:], strict=True):
        counted = labels != -100
        rows.append(F.cross_entropy(row[counted], labels[counted]))
    return float(torch.stack(rows).mean())


def test_a_pair_of_folders_needs_no_model(tmp_path, capfd):
    """Two folders and a batch are enough: ends have the losses that the models themselves give, and nothing is said."""
    models = [built("Llama", seed) for seed in (0, 1)]
    a, b = (folder(tmp_path / name, model) for name, model in zip("ab", models, strict=True))
    given = batch("Llama")
    pair = lmccheck.load_pair(a, b, data=given, device="cpu")
    found = lmccheck.linear_connectivity(pair, points=3, align="none")
    assert found.details["losses"][0] == pytest.approx(mean_loss(models[0], given), abs=1e-6)
    assert found.details["losses"][-1] == pytest.approx(mean_loss(models[1], given), abs=1e-6)
    assert pair.loss.name == "next_token"
    assert "LlamaForCausalLM of " in pair.description["model"]
    assert a / "config.json" in pair.inputs
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", ["Mixtral", "ViT"])
def test_names_are_those_of_the_module(tmp_path, family):
    """Experts of single files are stacked and old names renamed, bit for bit, in shards too, in the stored dtype."""
    model = built(family, 3).to(torch.bfloat16)
    whole, parts = folder(tmp_path / "a", model), folder(tmp_path / "b", model, max_shard_size="2KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    stored = load_file(whole / "model.safetensors")
    assert stored.keys() != model.state_dict().keys()
    for path in (whole, parts):
        end = lmccheck.load_set([path, whole], data=batch(family), device="cpu").endpoints[0]
        assert end.theta.keys() == model.state_dict().keys()
        assert all(torch.equal(end.theta[name], tensor) for name, tensor in model.state_dict().items())
        assert all(tensor.dtype == torch.bfloat16 for tensor in end.theta.values())


def test_each_dtype_of_a_mixed_file_is_kept(tmp_path):
    """A file of several dtypes keeps each, also of tensors that are renamed and stacked."""
    model = built("Mixtral", 3)
    path = folder(tmp_path / "a", model)
    stored = load_file(path / "model.safetensors")
    half = {name: t.to(torch.float16) if ".experts." in name else t for name, t in stored.items()}
    save_file(half, path / "model.safetensors", {"format": "pt"})
    other = folder(tmp_path / "b", built("Mixtral", 4))
    end = lmccheck.load_pair(path, other, data=batch("Mixtral"), device="cpu").a
    theta = end.theta
    assert {n: h.torch_dtype for n, h in end.checkpoint.tensors.items()} == {
        n: "float16" if "experts" in n else "float32" for n in theta
    }
    assert {name: t.dtype for name, t in theta.items() if "experts" in name} == {
        f"model.layers.0.mlp.experts.{name}": torch.float16 for name in ("gate_up_proj", "down_proj")
    }
    assert torch.equal(theta["lm_head.weight"], model.lm_head.weight)


def damage(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), f"tensor '{NORM}' is missing"),
        (lambda t: t.update({"model.extra.weight": torch.ones(3)}), "tensor 'model.extra.weight' is unknown"),
        (lambda t: t.update({NORM: torch.ones(9)}), f"tensor '{NORM}' has shape (9,), model "),
        (lambda t: t.update({NORM: torch.full((8,), torch.nan)}), f"tensor '{NORM}': got 8 NaN"),
    ],
)
def test_nothing_is_drawn_or_dropped(tmp_path, change, words):
    """A tensor that is missing, unknown or of another shape is an error that names it; nothing is drawn at random."""
    a, b = (folder(tmp_path / name, built("Llama", seed)) for seed, name in enumerate("ab"))
    damage(b, change)
    with pytest.raises(CheckpointError) as caught:
        lmccheck.load_pair(a, b, data=batch("Llama"), device="cpu")
    assert words in str(caught.value)
    assert str(b) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"architectures": None}, "names no class"),
        ({"architectures": ["LlamaForCausalLn"]}, "did you mean 'LlamaForCausalLM'?"),
        ({"architectures": ["AutoModelForCausalLM"]}, "no model 'AutoModelForCausalLM'"),
        ({"architectures": None, "architecture": "resnet18"}, "timm"),
        ({"num_attention_heads": "two"}, "mend: "),
        ({"model_type": "bert"}, "'model_type' is 'bert', that of LlamaForCausalLM 'llama'"),
    ],
)
def test_a_config_that_builds_nothing_is_one_line(tmp_path, said, words):
    """Code of a folder is never run, packed weights are refused, and an unknown class is told with the nearest one."""
    path = folder(tmp_path / "a", built("Llama"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in {**config, **said}.items() if v is not None}))
    with pytest.raises(SourceError) as caught:
        lmccheck.load_pair(path, path, data=batch("Llama"), device="cpu")
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_config_the_model_must_be_given(tmp_path):
    """A file that lies in no folder of a model needs a model."""
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(SourceError, match=r"model: left out, and \S*a\.safetensors lies in no folder with a config"):
        lmccheck.load_pair(tmp_path / "a.safetensors", tmp_path / "a.safetensors", data=batch("Llama"))


def test_labels_are_what_a_decoder_reads(tmp_path):
    """An encoder-decoder model without decoder_input_ids reads its labels, one place later, as it was trained to."""
    models = [built("T5", seed) for seed in (0, 1)]
    a, b = (folder(tmp_path / name, model) for name, model in zip("ab", models, strict=True))
    given = batch("T5")
    found = lmccheck.linear_connectivity(
        lmccheck.load_pair(a, b, data=given, device="cpu"), points=3, align="none"
    ).details["losses"]
    for loss, model in zip((found[0], found[-1]), models, strict=True):
        with torch.no_grad():  # one by one: its own loss is a mean over all tokens of a batch
            own = [model.eval()(**{k: v[i : i + 1] for k, v in given.items()}).loss for i in range(6)]
        assert loss == pytest.approx(float(torch.stack(own).mean()), abs=1e-6)


def test_how_outputs_are_given_changes_nothing(tmp_path):
    """Caches, hidden states, tuples and kernels that a config asks for are no part of what is measured."""
    a, b = (folder(tmp_path / name, built("Llama", seed)) for seed, name in enumerate("ab"))
    found = []
    for change in ({}, {"use_cache": True, "output_hidden_states": True, "return_dict": False}):
        for path in (a, b):
            config = json.loads((path / "config.json").read_text())
            config |= {**change, "_attn_implementation": "flash_attention_2"}
            (path / "config.json").write_text(json.dumps(config))
        pair = lmccheck.load_pair(a, b, data=batch("Llama"), device="cpu")
        found.append(lmccheck.linear_connectivity(pair, points=3, align="none").details["losses"])
    assert found[0] == found[1]


def test_only_answers_are_computed_and_returned(tmp_path):
    """Of a config that asks for caches and hidden states, the module keeps none and returns its logits alone."""
    model = built("T5", use_cache=True, output_hidden_states=True)
    module = folder_model(folder(tmp_path / "a", model), "a")().eval()
    inner = []
    module.decoder.register_forward_hook(lambda *call: inner.append(call[-1]))
    given = batch("T5")
    with torch.no_grad():
        found, own = module(**given), model.eval()(**given)
    assert {"loss", "logits", "past_key_values", "encoder_last_hidden_state"} < own.keys()
    assert found.keys() == {"logits"}
    assert inner[0].keys() == {"last_hidden_state"}


@pytest.mark.parametrize(
    ("kind", "labels", "more"),
    [
        ("Bert", torch.tensor([0.5, -1.0, 2.0, 0.0]), {"num_labels": 1}),
        ("Bert", torch.arange(8.0).reshape(4, 2), {"num_labels": 2, "problem_type": "regression"}),
        ("Bert", torch.tensor([0, 2, 1, 1]), {"num_labels": 3}),
        ("Bart", torch.tensor([0, 2, 1, 1]), {"num_labels": 3}),
        ("Bert", torch.tensor([[1.0, 0.0, 1.0]]), {"num_labels": 3, "problem_type": "multi_label_classification"}),
    ],
)
def test_the_loss_of_a_classifier_is_the_one_it_is_trained_with(kind, labels, more):
    """Of classes, numbers and, for an encoder-decoder, its last token; several labels at once have none here."""
    settings = ENCODER_DECODER if kind == "Bart" else TEXT
    config = getattr(transformers, f"{kind}Config")(**settings, **more)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    name = loss_of(type(model).__name__, config)
    if "multi" in more.get("problem_type", ""):
        assert name is None
        return
    with torch.no_grad():
        said = model(input_ids=torch.tensor([[1, 5, 7, 2]]).repeat(len(labels), 1), labels=labels)
    targets = labels.reshape(said.logits.shape) if labels.is_floating_point() else labels
    assert float(LOSSES[name].function(said.logits, targets).mean()) == pytest.approx(float(said.loss), rel=1e-6)


def test_what_its_class_may_lack_is_not_drawn(tmp_path, monkeypatch):
    """A tensor that a class of transformers lets a file lack, and would draw at random without a word, is named."""
    path = folder(tmp_path / "a", built("Llama"))
    kind = folder_model(path, "a").kind  # there are two where pytester has taken back what it imported
    monkeypatch.setattr(kind, "_keys_to_ignore_on_load_missing", [r"norm\.weight"])
    damage(path, lambda tensors: tensors.pop(NORM))
    with pytest.raises(CheckpointError, match=f"tensor '{NORM}' is missing, and LlamaForCausalLM would draw it"):
        lmccheck.load_pair(path, path, data=batch("Llama"), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family):
    """Every family runs as a pair of folders, single and sharded: aligned with a verified permutation."""
    paths = [folder(tmp_path / name, built(family, seed)) for seed, name in enumerate("ab")]
    paths.append(folder(tmp_path / "c", built(family, 1), max_shard_size="2KB"))
    given = batch(family)
    one, parts = (lmccheck.load_pair(paths[0], b, data=given, calibration=given, device="cpu") for b in paths[1:])
    assert all(torch.equal(parts.theta_b[name], tensor) for name, tensor in one.theta_b.items())
    alignment = lmccheck.align(one)
    assert alignment.function_deviation <= 1e-9
    assert alignment.spec_deviation <= 1e-9
    assert alignment.spec.free_share > 0.9
    assert lmccheck.linear_connectivity(parts, points=3, limit=100.0).passed
