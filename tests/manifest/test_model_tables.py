"""``[model.NAME]``: one checkpoint by itself, what may be asked of it, and what its file shows beforehand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.errors import ManifestError
from lmccheck.manifest.plan import CheckPlan, Plan
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.given import Adapted

HEAD = 'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "data.safetensors"\nloss = "mse"\n'
CHECK = "check.dropout_stability.epsilon = 0.05\n"
ONE = f'[model.one]\ncheckpoint = "a.safetensors"\n{CHECK}'


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a manifest beside a checkpoint and data, and read it."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(2, 3)}, "a.safetensors")
    save_file({"inputs": torch.zeros(2, 3), "targets": torch.zeros(2)}, "data.safetensors")

    def read(text: str) -> Plan:
        Path("lmc.toml").write_text(HEAD + text)
        return load_manifest(Path("lmc.toml"))

    return read


def test_a_model_inherits_and_overrides_as_a_pair_does(read):
    """A file, a folder or an adapter; one pin, in lower case; the line of its own header."""
    pin = "AB" * 32
    plan = read(
        ONE + '[pair.two]\na = "a"\nb = "b"\ncheck.linear_connectivity.limit = 1\n'
        f'[model.tuned]\nsha256 = "{pin}"\nloss = "next_token"\ncheckpoint = {{ base = "m", adapter = "ad" }}\n'
        'check.quiet = { property = "noise_stability", epsilon = "5%" }\n'
    )
    one, tuned = plan.models
    assert plan.comparisons == (*plan.pairs, one, tuned)
    assert (one.kind, one.name, one.checkpoint, one.pins, one.line) == ("model", "one", "a.safetensors", {}, 6)
    assert (one.model, one.data, one.loss) == ("models:mlp", "data.safetensors", "mse")
    assert one.checks == (CheckPlan("dropout_stability", "dropout_stability", "fail", {"epsilon": 0.05}),)
    assert (tuned.checkpoint, tuned.pins) == (Adapted("m", "ad"), {"checkpoint": pin.lower()})
    assert (tuned.loss, tuned.line) == ("next_token", 13)


KNOWN = "dropout_stability, noise_stability, verify_dropout"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ONE.replace("dropout_stability.epsilon", "linear_connectivity.limit"),
            'model.one.check.linear_connectivity: got "linear_connectivity" (a string), which is a property of a pair '
            f"without model_b, expected one of a single model ({KNOWN}); mend: ask it of a [pair.NAME]",
        ),
        (
            '[set.s]\nmodels = ["a", "b"]\n' + CHECK,
            'set.s.check.dropout_stability: got "dropout_stability" (a string), which is a property of a pair without '
            "model_b or of a single model, expected one of a set (set_connectivity); mend: ask it of a [pair.NAME] or "
            "a [model.NAME]",
        ),
        (
            ONE.replace("dropout_", "droput_"),
            f'model.one.check.droput_stability: got "droput_stability" (a string), expected a property ({KNOWN}) (did '
            "you mean 'dropout_stability'?); a check of another name says which with property = \"…\"",
        ),
        (
            ONE.replace("[model.one]", '[model.one]\nb = "b.safetensors"'),
            "model.one.b: unknown key (two checkpoints are a [pair.NAME]), expected one of model, data, calibration, "
            "loss, symmetry, accept, checkpoint, sha256, check",
        ),
        (
            ONE.replace("[model.one]", '[model.one]\nrecipe = { uniform = true }'),
            "model.one.recipe: unknown key (the recipe of a merge is named in a [merge.NAME]), expected one of model, "
            "data, calibration, loss, symmetry, accept, checkpoint, sha256, check",
        ),
        (
            '[pair.one]\ncheckpoint = "a"\na = "a"\nb = "b"\ncheck.linear_connectivity.limit = 1\n',
            "pair.one.checkpoint: unknown key (a single checkpoint is a [model.NAME]), expected one of model, data, "
            "calibration, loss, symmetry, accept, a, b, model_b, untie, sha256, check",
        ),
        (
            ONE.replace('"a.safetensors"', "3"),
            "model.one.checkpoint: got 3, expected the path of a .safetensors file or of a model's folder, or "
            '{ base = "…", adapter = "…" }',
        ),
        (
            ONE.replace("[model.one]", '[model.one]\nsha256 = { a = "x" }'),
            "model.one.sha256: got a table, expected 64 hexadecimal digits",
        ),
        (ONE.replace(CHECK, ""), "model.one: no checks, expected at least one [model.one.check.PROPERTY]"),
        (
            ONE.replace(" = 0.05", " = -1"),
            "model.one.check.dropout_stability.epsilon: got -1, expected a number ≥ 0 in the loss's unit, or a "
            'percentage of the worse endpoint\'s loss such as "5%"',
        ),
        (
            ONE + '[pair.one]\na = "a"\nb = "b"\ncheck.linear_connectivity.limit = 1\n',
            "model.one: the name 'one' is taken by a pair, expected another",
        ),
        (
            ONE + '[set.one]\nmodels = ["a", "b"]\ncheck.set_connectivity.limit = 1\n',
            "set.one: the name 'one' is taken by a model, expected another",
        ),
        (
            ONE.replace("one", "manifest"),
            "model.manifest: the name 'manifest' is taken by the manifest's own item, expected another",
        ),
        (
            ONE.replace("[model.one]", '[model."a:b"]'),
            "model.\"a:b\": expected a name of letters, digits, '.', '_' and '-' only",
        ),
        ('[model]\ncheckpoint = "a"\n', 'model.checkpoint: got "a" (a string), expected a table'),
        (
            "\n", "no pairs, no models, no sets and no merges, expected at least one [pair.NAME], [model.NAME], "
            "[set.NAME] or [merge.NAME]",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_models_table_is_one_line(read, text: str, message: str) -> None:
    """Key, got, expected, and where a key or a check belongs that is none of a single model."""
    with pytest.raises(ManifestError) as caught:
        read(text)
    assert str(caught.value) == f"lmc.toml: {message}"


@pytest.mark.parametrize(
    ("file", "more", "said"),
    [
        ("a.safetensors", f'sha256 = "{"0" * 64}"\n', "model.one.sha256: a.safetensors has sha256 "),
        ("b.safetensors", "", "model.one.checkpoint: no file 'b.safetensors' in "),
        ("torn.safetensors", "", "model.one.checkpoint: "),
        ("empty", "", "model.one.checkpoint: "),
        ("data.safetensors", "", None),  # whether it fits the network is found when that is built
        ("a.safetensors", 'calibration = "none.safetensors"\n', "model.one.calibration: no file 'none.safetensors'"),
        ("folder", "", "model.one: folder/config.json: not valid JSON"),
    ],
)
def test_a_models_file_is_looked_at_beforehand(read, file: str, more: str, said: str | None) -> None:
    """Its header and its pin, and what lies beside it in a folder; one line, which names the key."""
    Path("torn.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-3])
    Path("empty").mkdir()
    Path("folder").mkdir()
    save_file({"w": torch.ones(2, 3)}, "folder/model.safetensors")
    Path("folder/config.json").write_text('{"model_type": ')
    found = problems(read(ONE.replace('"a.safetensors"\n', f'"{file}"\n{more}')))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_a_models_right_pin_is_no_problem(read) -> None:
    """The hash of its one file."""
    pin = hashlib.sha256(Path("a.safetensors").read_bytes()).hexdigest()
    assert problems(read(ONE.replace("[model.one]", f'[model.one]\nsha256 = "{pin}"'))) == []
