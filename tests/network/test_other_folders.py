"""Folders of models that answer by places in a text, and of those that lmccheck does not build: one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.hub import TEXT
from safetensors.torch import save_file

import lmccheck
from lmccheck.errors import LmcError, SourceError

OWN = 'mend: give model = "module:callable" that builds it'
DATA = [{"input_ids": torch.ones(2, 4, dtype=torch.int64), "labels": torch.tensor([0, 1])}]


def test_spans_of_answers_are_measured_as_transformers_does(tmp_path: Path) -> None:
    """Question answering: the loss is that of the model itself, given by start and end or by labels; it is aligned."""
    transformers = pytest.importorskip("transformers")
    models = []
    for k, name in enumerate("ab"):
        torch.manual_seed(k)
        models.append(transformers.BertForQuestionAnswering(transformers.BertConfig(**TEXT)).eval())
        models[-1].save_pretrained(tmp_path / name)
    tokens, ends = torch.randint(3, 23, (6, 9)), torch.randint(0, 9, (2, 6))
    spans = {"start_positions": ends[0], "end_positions": ends[1]}
    losses = []
    for more in (spans, {"labels": ends.T}):
        pair = lmccheck.load_pair(tmp_path / "a", tmp_path / "b", data=[{"input_ids": tokens, **more}], device="cpu")
        result = lmccheck.linear_connectivity(pair, align="none", limit=9.0, points=3)
        losses.append([result.details["loss_a"], result.details["loss_b"]])
    with torch.no_grad():
        own = [float(model(input_ids=tokens, **spans).loss) for model in models]
    assert losses[0] == losses[1] == pytest.approx(own, rel=1e-5)
    assert lmccheck.align(pair).function_deviation <= 1e-9


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"_class_name": "UNet2DModel", "sample_size": 8},
            "a config of diffusers, 'UNet2DModel', expected",
        ),
        ({"architecture": "resnet18", "num_classes": 10}, "a config of timm, 'resnet18', expected one of transformers"),
    ],
)
def test_folders_of_others_are_refused_with_the_mend(tmp_path: Path, config: dict[str, object], said: str) -> None:
    """They load with a model that the user builds."""
    pytest.importorskip("transformers")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({"weight": torch.randn(2, 4), "bias": torch.zeros(2)}, tmp_path / name / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        lmccheck.load_pair(tmp_path / "a", tmp_path / "b", data=DATA, device="cpu")
    assert said in str(caught.value)
    assert str(caught.value).endswith(OWN)
    data = torch.randn(4, 4), torch.tensor([0, 1, 0, 1])
    pair = lmccheck.load_pair(tmp_path / "a", tmp_path / "b", model=lambda: torch.nn.Linear(4, 2), data=data)
    assert pair.theta_a["weight"].shape == (2, 4)


def test_a_pipeline_of_several_models_is_none(tmp_path: Path) -> None:
    """Which of its models was merged has to be said."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    with pytest.raises(LmcError, match=r"got a pipeline of diffusers, model_index\.json, .*mend: name the folder"):
        lmccheck.load_pair(tmp_path, tmp_path, data=DATA)


def test_speech_aligned_with_its_text_needs_a_loss_of_the_users(tmp_path: Path) -> None:
    """CTC has no loss here; the line says why and what to give."""
    transformers = pytest.importorskip("transformers")
    small = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    small |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**TEXT, **small)).save_pretrained(tmp_path / "a")
    data = [{"input_values": torch.randn(2, 400), "labels": torch.ones(2, 3, dtype=torch.int64)}]
    with pytest.raises(SourceError, match=r"Wav2Vec2ForCTC of .* have none here: their targets are.*mend: give loss"):
        lmccheck.load_pair(tmp_path / "a", tmp_path / "a", data=data, device="cpu")
