"""What lies beside the checkpoints of a manifest is compared by its own item, but for what ``accept`` lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.beside import WORDS, folder, words
from safetensors.torch import save_file

from lmccheck.errors import ManifestError
from lmccheck.manifest.preflight import Inspected, inspected
from lmccheck.manifest.read import load_manifest

HEAD = 'schema = 1\n[defaults]\nmodel = "models:net"\ndata = "models:data"\n'
PAIR = '[pair.one]\na = "a"\nb = "b"\ncheck.linear_connectivity.limit = 1\n'
SET = '[set.all]\nmodels = ["a", "b", "c"]\ncheck.set_connectivity.limit = 1\n'


def saved(path: Path, seed: int, tokens: tuple[str, ...] = WORDS, **config: Any) -> None:
    """Write a folder with weights, a config and a tokenizer."""
    folder(path, {"tokenizer.json": words(tokens)}, **config)
    weights = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    save_file({"model.embed_tokens.weight": weights}, path / "model.safetensors")


def looked_at(tmp_path: Path, *tables: str, head: str = HEAD) -> Inspected:
    """Return what is found of a manifest in the folder."""
    (tmp_path / "lmc.toml").write_text(head + "".join(tables))
    return inspected(load_manifest(tmp_path / "lmc.toml"))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three folders of one model."""
    for seed, name in enumerate("abc"):
        saved(tmp_path / name, seed)
    return tmp_path


def test_folders_of_one_model_have_no_problem(folders: Path) -> None:
    assert looked_at(folders, PAIR, SET) == Inspected()


def test_a_config_without_the_others_rope_scaling(folders: Path) -> None:
    """Both values and both folders are named; ``accept`` of the item or of [defaults] takes it out."""
    scaling = {"rope_type": "linear", "factor": 4.0}
    saved(folders / "b", 1, rope_scaling=scaling)
    (line,) = looked_at(folders, PAIR).problems
    assert line == (
        f"pair.one: config.json: rope_scaling is absent in a ({folders / 'a'}) and "
        f'{{"rope_type": "linear", "factor": 4.0}} in b ({folders / "b"}); mend: make them equal, or accept = '
        '["rope_scaling"]'
    )
    accept = 'accept = ["rope_scaling"]\n'
    assert looked_at(folders, PAIR.replace("check", accept + "check")) == Inspected()
    assert looked_at(folders, PAIR, SET, head=HEAD + accept) == Inspected()
    assert len(looked_at(folders, PAIR.replace("check", "accept = []\ncheck"), SET, head=HEAD + accept).problems) == 1


def test_two_tokenizers_of_one_size(folders: Path) -> None:
    """The first id that is another token, in a set too, by the places of the models."""
    saved(folders / "c", 2, (*WORDS[:2], WORDS[3], WORDS[2], *WORDS[4:]))
    (line,) = looked_at(folders, PAIR, SET).problems
    assert line.startswith(
        f'set.all: tokenizer.json: id 2 is "▁the" in models[0] ({folders / "a"}) and "ing" in models[2] '
    )


def test_a_stale_index_beside_a_new_single_file(folders: Path) -> None:
    """Both are named, whatever the configs say."""
    index = '{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}}'
    (folders / "b" / "model.safetensors.index.json").write_text(index)
    shard = folders / "b" / "model-00001-of-00001.safetensors"
    save_file({"model.embed_tokens.weight": torch.zeros(8, 4)}, shard)
    (line,) = looked_at(folders, PAIR).problems
    assert line.startswith("pair.one.b: ")
    assert "model.safetensors.index.json" in line
    assert "model.safetensors" in line.replace("model.safetensors.index.json", "")


def test_accepted_names_are_told_where_nothing_needs_them(folders: Path) -> None:
    """A note for one that meets no difference, in no item that shares the list; an error for one that is none."""
    saved(folders / "c", 2, rms_norm_eps=1e-5)
    accept = 'accept = ["rms_norm_eps"]\n'
    assert looked_at(folders, PAIR, SET, head=HEAD + accept) == Inspected()
    note = "pair.one.accept: 'rms_norm_eps' meets no difference; mend: leave it out"
    assert looked_at(folders, PAIR.replace("check", accept + "check")) == Inspected(notes=[note])
    (line,) = looked_at(folders, PAIR, head=HEAD + 'accept = ["rms_norm_epsi"]\n').problems
    assert line == (
        "pair.one.accept: got 'rms_norm_epsi', expected a key of config.json or a part of a tokenizer "
        "(did you mean 'rms_norm_eps'?)"
    )


@pytest.mark.parametrize("given", ['"rope_scaling"', "[1]", "true"])
def test_accept_is_a_list_of_names(folders: Path, given: str) -> None:
    with pytest.raises(ManifestError, match=r"accept: got .*, expected an array of names of what may differ"):
        looked_at(folders, PAIR, head=HEAD + f"accept = {given}\n")


def test_networks_of_two_widths_may_differ_in_widths_only(folders: Path) -> None:
    """With ``model_b``, sizes differ as they are meant to; all else is compared."""
    saved(folders / "b", 1, intermediate_size=32, rms_norm_eps=1e-5)
    table = PAIR.replace("check.linear_connectivity", 'model_b = "models:wide"\ncheck.fused_connectivity')
    (line,) = looked_at(folders, table).problems
    assert line.startswith("pair.one: config.json: rms_norm_eps is 1e-06 in a")


def test_data_are_read_with_the_tokenizer_of_the_model(folders: Path) -> None:
    """Of [data.NAME] too, and of a check's own data; where the model has none, its rows must do."""
    saved(folders / "other", 3, (*WORDS[:2], WORDS[3], WORDS[2], *WORDS[4:]))
    (folders / "text.jsonl").write_text('{"text": "an"}\n')
    head = HEAD + '[data.text]\njsonl = "text.jsonl"\ntokenizer = "other"\n'
    mine = PAIR.replace("check", 'data = "text"\ncheck')
    lines = looked_at(folders, mine, head=head).problems
    assert lines == [
        f'pair.one: tokenizer.json: id 2 is "ing" in data.text ({folders / "other"}) and "▁the" in {name} '
        f'({folders / name}) (1 more ids differ); mend: make them equal, or accept = ["vocabulary"]'
        for name in "ab"
    ]
    assert looked_at(folders, mine, head=head.replace('"other"', '"other/tokenizer.json"')).problems == lines
    assert looked_at(folders, mine, head=head.replace('"other"', '"a"')) == Inspected()
    saved(folders / "other", 3, (*WORDS, "more"))
    for name in "ab":
        (folders / name / "tokenizer.json").unlink()
    first, _ = looked_at(folders, mine, head=head).problems
    assert first.startswith(f'pair.one: a ({folders / "a"}), data.text: tokenizer.json: token "more" has id 8, and ')


def test_an_adapter_belongs_to_the_base_it_was_trained_on(folders: Path) -> None:
    """Another is refused, with what its config says otherwise; a copy is none, a name from elsewhere a note."""

    def adapter(name: str, base: str, rank: int = 1) -> None:
        tensors = {"lora_A.weight": torch.ones(rank, 4), "lora_B.weight": torch.ones(8, rank)}
        prefix = "base_model.model.model.embed_tokens."
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2, "base_model_name_or_path": base}
        folder(folders / name, {"config.json": None, "adapter_config.json": config})
        save_file({prefix + key: value for key, value in tensors.items()}, folders / name / "adapter_model.safetensors")

    def lines(trained_on: str, more: str = "") -> Inspected:
        adapter("x", trained_on)
        adapter("y", str(folders / "a"), 2)
        tables = PAIR.replace('"a"', '{ base = "a", adapter = "x" }').replace('"b"', '{ base = "a", adapter = "y" }')
        return looked_at(folders, tables.replace("check", f"{more}check"))

    scales = "pair.one: a is an adapter of r 1, lora_alpha 2; b is an adapter of r 2, lora_alpha 2"
    assert lines(str(folders / "a")) == Inspected(notes=[scales])
    shutil.copytree(folders / "a", folders / "copy")
    assert lines(str(folders / "copy")) == Inspected(notes=[scales])
    assert lines("/elsewhere/a") == Inspected(notes=[scales])
    said = f"pair.one: a ({folders / 'x'}): was trained on '{{}}' and is put on {folders / 'a'}, "
    note = said.format("org/model") + "which cannot be compared"
    assert lines("org/model") == Inspected(notes=[note, scales])
    assert len(lines(str(folders / "b")).problems) == 1  # of other weights
    copy = str(folders / "copy")
    config = (folders / "copy" / "config.json").read_text()
    (folders / "copy" / "config.json").write_text(config.replace("{", '{"rope_theta": 500000.0, ', 1))
    assert lines(copy).problems == [
        f"{said.format(copy)}where rope_theta is 500000.0 and 10000.0; mend: name the base that it was trained on, or "
        'accept = ["base_model_name_or_path"]'
    ]
    assert lines(copy, 'accept = ["base_model_name_or_path"]\n') == Inspected(notes=[scales])


def test_what_is_shipped_is_compared_with_the_parents(folders: Path) -> None:
    """Its rope settings; what its tensors show is left to the check of them."""
    merge = """[merge.out]
parents = { x = "a", y = "b" }
recipe = { linear = { x = 0.5, y = 0.5 } }
shipped = "c"
check.shipped = {}
"""
    saved(folders / "c", 2, dtype="float64")
    assert looked_at(folders, merge) == Inspected()
    saved(folders / "c", 2, rope_scaling={"type": "linear", "factor": 2.0})
    (line,) = looked_at(folders, merge).problems
    assert line.startswith(f"merge.out: config.json: rope_scaling is absent in parents.x ({folders / 'a'}) and {{")
    assert f"in shipped ({folders / 'c'}); mend: " in line
    assert looked_at(folders, merge.replace("check", 'accept = ["rope_scaling"]\ncheck')) == Inspected()
