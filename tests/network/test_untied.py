"""`untie = true`: endpoints and merges have heads of their own, and are written so that they load as they are."""

from __future__ import annotations

import json

import pytest
import torch
from networks.hub import built, folder
from networks.language import tied_language_model
from networks.quick import slowly
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.modules.untie import write_apart

TOKENS = torch.randint(7, (48, 6), generator=torch.Generator().manual_seed(0))
MAPS = ("head-maps", "stream-rotation")
GIVEN = {"data": (TOKENS[:16], TOKENS[:16]), "calibration": (TOKENS, TOKENS), "loss": "next_token", "device": "cpu"}


def tied_files(folder_of):
    """Write two tied models as files, the head under the embedding's name only; return the files and the models."""
    models = []
    for k, name in enumerate("ab"):
        torch.manual_seed(k)
        models.append(tied_language_model().eval())
        state = {n: t for n, t in models[-1].state_dict().items() if n != "head.weight"}
        save_file(state, folder_of / f"{name}.safetensors")
    return [folder_of / f"{name}.safetensors" for name in "ab"], models


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Learn for a few steps only: what is asked is what is written, not how near it lies."""
    for module in ("methods.learned", "beyond.learn"):
        monkeypatch.setattr(f"lmccheck.alignment.{module}.STEPS", 10)


def rotated(alignment):
    return alignment.facts["maps"]["groups"]["stream-rotation"]


def test_an_untied_stream_is_rotated_and_the_file_loads_in_the_untied_module(tmp_path, monkeypatch):
    """Tied, a stream stays; untied it turns, and what is written computes b's function in an own forward pass."""
    files, models = tied_files(tmp_path)
    pair = lmccheck.load_pair(*files, model=tied_language_model, **GIVEN)
    assert rotated(lmccheck.align(pair, "activation-matching", beyond=MAPS)) == []
    pair = lmccheck.load_pair(*files, model=tied_language_model, untie=True, **GIVEN)
    assert pair.description["untied"] == {"head.weight": "embed.weight"}
    assert torch.equal(pair.theta_a["head.weight"], pair.theta_a["embed.weight"])
    monkeypatch.setattr("lmccheck.alignment.beyond.api.CalibrationBarrier", lambda _: _last_is_best())
    alignment = lmccheck.align(pair, "activation-matching", beyond=MAPS)
    assert rotated(alignment) == ["embed"]
    assert alignment.function_deviation < 1e-9
    written = load_file(lmccheck.save_aligned(alignment, tmp_path / "out.safetensors"))
    assert not torch.allclose(written["head.weight"], written["embed.weight"], atol=0.1)
    fresh = write_apart(tied_language_model(), pair.network.heads).eval()
    fresh.load_state_dict(written)
    assert torch.allclose(fresh(TOKENS), models[1](TOKENS), atol=1e-4)
    wide = write_apart(tied_language_model(), pair.network.heads).eval().double()
    wide.load_state_dict(alignment.weights)
    assert (wide(TOKENS) - models[1].double()(TOKENS)).abs().max() < 1e-9


def _last_is_best():
    """Return barriers that fall from one candidate to the next, so that the learned maps are kept."""
    falling = iter(range(9, 0, -1))
    return lambda weights: next(falling)


@pytest.mark.parametrize("family", [slowly("GPT-2"), "Llama"])
def test_a_folder_says_that_its_head_is_its_own(tmp_path, monkeypatch, family):
    """Aligned b with its stream rotated: AutoModelForCausalLM loads the folder, whose config says that nothing is tied,
    and its logits are b's to 1e-5 of their size."""
    transformers = pytest.importorskip("transformers")
    ends = [folder(tmp_path / name, built(family, k, tie_word_embeddings=True)) for k, name in enumerate("ab")]
    assert all(json.loads((end / "config.json").read_text())["tie_word_embeddings"] for end in ends)
    pair = lmccheck.load_pair(*ends, untie=True, **GIVEN)
    monkeypatch.setattr("lmccheck.alignment.beyond.api.CalibrationBarrier", lambda _: _last_is_best())
    alignment = lmccheck.align(pair, "activation-matching", beyond=MAPS)
    assert rotated(alignment)
    out = lmccheck.save_aligned(alignment, tmp_path / "aligned")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    one, other = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (out, ends[1]))
    assert one.get_output_embeddings().weight is not one.get_input_embeddings().weight
    assert not torch.allclose(one.get_input_embeddings().weight, other.get_input_embeddings().weight, atol=1e-3)
    with torch.no_grad():
        mine, theirs = one(TOKENS).logits, other(TOKENS).logits
    assert (mine - theirs).abs().max() <= 1e-5 * (1 + theirs.abs().max())


def test_a_merge_of_tied_parents_is_written_untied(tmp_path):
    """The mean of both, head apart: the config says so, and from_pretrained gives the logits of the mean of weights."""
    transformers = pytest.importorskip("transformers")
    ends = {name: folder(tmp_path / name, built("GPT-2", k)) for k, name in enumerate("ab")}
    merge = lmccheck.load_merge(ends, "uniform", untie=True, **GIVEN)
    assert not torch.equal(merge.merged.theta["lm_head.weight"], torch.zeros(1))
    merge.ship(tmp_path / "out", ())
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    parents = [transformers.AutoModelForCausalLM.from_pretrained(end).eval() for end in ends.values()]
    mean = {n: (t + parents[1].state_dict()[n]) / 2 for n, t in parents[0].state_dict().items()}
    parents[0].load_state_dict(mean)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(found(TOKENS).logits, parents[0](TOKENS).logits, atol=1e-5)
