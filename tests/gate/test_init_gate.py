"""``lmccheck init``: what it writes runs at once, and what nothing says is refused in one line by the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lmccheck.cli.main import main
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

FIXTURES = Path(__file__).parents[2] / "fixtures"


def taught(folder: Path, activation: nn.Module, count: int = 2, *, labelled: bool = True) -> None:
    """Copies of one network with its hidden units in other orders, and samples labelled by it: its loss is near 0."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), activation, nn.Linear(16, 3))
    state = teacher.state_dict()
    state["0.weight"] *= 6
    state["2.weight"] *= 40
    inputs = torch.randn(400, 6)
    with torch.no_grad():
        targets = teacher(inputs).argmax(dim=1)
    for k in range(count):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(k))
        moved = {"0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order], "2.bias": state["2.bias"] + k}
        save_file({**moved, "2.weight": state["2.weight"][:, order].contiguous()}, folder / f"seed{k}.safetensors")
    if labelled:
        save_file({"inputs": inputs, "targets": targets}, folder / "test.safetensors")


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project.path)
    return project.path


def test_two_lone_files_become_a_gate_that_passes(project, here, capsys, real_core):
    """Nothing is asked: the network from names and shapes, its function from data, the data from their tensors."""
    taught(here, nn.Tanh())
    assert main(["init", "seed0.safetensors", "seed1.safetensors"]) == 0
    told = capsys.readouterr().out
    assert "data: test.safetensors\n" in told
    assert "model: inferred from names and shapes; Tanh has the lowest loss of 5 tried on test.safetensors" in told
    result = project.pytester.runpytest_inprocess("-W", "error", "--lmc-models", "--lmc-report-json=r.json")
    result.assert_outcomes(passed=2)
    check = next(each for each in json.loads((here / "r.json").read_text())["checks"] if each["pair"])
    assert (check["pair"], check["check"]) == ("seed0-seed1", "linear_connectivity")
    assert check["value"] < 1e-3 < check["naive"]


@pytest.mark.slow
def test_the_fixtures_give_the_value_that_is_known(project, here, real_core):
    """The README's MLP: the same barrier as under the network that trained it, 0.0329."""
    for name in ("mlp-seed0", "mlp-seed1", "digits-test", "digits-train"):
        shutil.copy(FIXTURES / f"{name}.safetensors", here)
    assert main(["init"]) == 0
    project.pytester.runpytest_inprocess("--lmc-models", "--lmc-report-json=r.json").assert_outcomes(passed=2)
    check = next(each for each in json.loads((here / "r.json").read_text())["checks"] if each["pair"])
    assert check["value"] == pytest.approx(0.03292951678962776, abs=1e-9)


def test_several_are_a_set_and_may_lie_elsewhere(here, capsys):
    """A folder of four, written beside it: paths are relative to the manifest."""
    taught(here / "round" / "7", nn.Tanh(), 4)
    (here / "gate").mkdir()
    assert main(["init", "round/7", "--output", "gate"]) == 0
    assert capsys.readouterr().out.endswith("then pytest --lmc-models gate\n")
    plan = load_manifest(here / "gate" / "lmc.toml")
    assert list(plan.sets[0].models) == [f"../round/7/seed{k}.safetensors" for k in range(4)]
    assert plan.sets[0].data == "../round/7/test.safetensors"
    assert [check.property for check in plan.sets[0].checks] == ["set_connectivity"]
    assert problems(plan) == []


def test_what_losses_do_not_tell_apart_is_left_to_a_person(project, here, capsys, real_core):
    """Without samples, and with functions that answer alike, the skeleton is written, and refuses in one line."""
    taught(here, nn.ReLU(), labelled=False)
    assert main(["init", "."]) == 0
    text = (here / "models.py").read_text()
    assert "('1', ACTIVATION())," in text
    result = project.pytester.runpytest_inprocess("-W", "error", "--lmc-models")
    result.assert_outcomes(passed=1, failed=1)
    said = [line for line in result.outlines if line.startswith(("model 'models:model'", "data 'models:data'"))]
    assert len(said) == 1
    assert "mend: say ACTIVATION = nn.ReLU, or another" in said[0]
    holder: dict[str, object] = {}
    exec(text.replace("ACTIVATION = None", "ACTIVATION = nn.ReLU"), holder)
    assert [*holder["model"]().state_dict()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_network_that_is_no_chain_is_a_stub(here, capsys):
    """The gate's one line says why, and names the function to fill in; tensors are listed."""
    for k in (0, 1):
        save_file({"a.weight_ih_l0": torch.full((4, 2), float(k))}, here / f"s{k}.safetensors")
    assert main(["init", "s0.safetensors", "s1.safetensors"]) == 0
    assert "model: not inferred: tensor 'a.weight_ih_l0' is of no layer" in capsys.readouterr().out
    holder: dict[str, object] = {}
    text = (here / "models.py").read_text()
    exec(text, holder)
    assert "# a.weight_ih_l0 (4, 2)" in text
    with pytest.raises(NotImplementedError, match=r"models\.py: which network .*; mend: return it in model\(\)"):
        holder["model"]()
    with pytest.raises(NotImplementedError, match=r"mend: return \[\(inputs, targets\)\] in data\(\)"):
        holder["data"]()


def test_a_models_py_that_is_there_is_used(here, capsys):
    """The one callable whose tensors are those of the files; what takes arguments or has other tensors is none."""
    taught(here, nn.Tanh())
    (here / "models.py").write_text(
        "from torch import nn\n"
        "def wide(): return nn.Linear(6, 99)\n"
        "def of(width): return nn.Linear(6, width)\n"
        "def mine(): return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))\n"
    )
    assert main(["init"]) == 0
    assert load_manifest(here / "lmc.toml").pairs[0].model == "models:mine"
    (here / "lmc.toml").unlink()
    (here / "models.py").write_text("def nothing(): raise OSError('no')\n")
    assert main(["init"]) == 2
    assert "models.py: none of nothing has the tensors of seed0.safetensors" in capsys.readouterr().err
    assert main(["init", "--model", "models:nothing"]) == 0
    assert 'model = "models:nothing"' in (here / "lmc.toml").read_text()


def test_nothing_is_overwritten(here, capsys):
    """Not the manifest, not by a second run, and nothing is left of what could not be written whole."""
    taught(here, nn.Tanh())
    assert main(["init"]) == 0
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert main(["init"]) == 2
    assert "lmc.toml: is there already, and nothing is overwritten; mend: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "none: no such file"),
        (["seed0.safetensors"], "init: got one checkpoint, seed0.safetensors, expected two or more"),
        (
            ["seed0.safetensors", "other.safetensors"],
            "other.safetensors: tensor '0.weight' is (5, 4), in seed0.safetensors it is (16, 6)",
        ),
        (["empty"], "empty: no checkpoints, expected .safetensors files or folders that save_pretrained wrote; w.bin"),
        (["seed0.safetensors", "seed1.safetensors", "--data", "no.safetensors"], "--data: no.safetensors: no such"),
        (["."], "seed0.safetensors: tensor '0.weight' is (16, 6), in other.safetensors it is (5, 4)"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(here, capsys, arguments, said):
    """The file, what was found, what is expected, the mend."""
    taught(here, nn.Tanh())
    save_file({"0.weight": torch.zeros(5, 4)}, here / "other.safetensors")
    (here / "empty").mkdir()
    (here / "empty" / "w.bin").write_bytes(b"pickle")
    assert main(["init", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "; mend: " in error
    assert error.count("\n") == 1
    assert not (here / "lmc.toml").exists()
    assert not (here / "models.py").exists()


def test_several_files_of_samples_are_asked_about(here, capsys):
    """One for training aligns; of two others neither is guessed."""
    taught(here, nn.Tanh())
    shutil.copy(here / "test.safetensors", here / "train.safetensors")
    assert main(["init"]) == 0
    pair = load_manifest(here / "lmc.toml").pairs[0]
    assert (pair.data, pair.calibration) == ("test.safetensors", "train.safetensors")
    (here / "lmc.toml").unlink()
    (here / "models.py").unlink()
    shutil.copy(here / "test.safetensors", here / "test-b.safetensors")
    assert main(["init"]) == 2
    assert "2 files have samples (test-b.safetensors, test.safetensors), expected one" in capsys.readouterr().err
    assert main(["init", "--data", "test-b.safetensors"]) == 0


def test_names_of_tensors_are_never_code(here):
    """What a stranger's file calls its tensors is written as text: quotes and line breaks leave no comment."""
    evil = '"""\nraise SystemExit\n#\'); import os'
    for k in (0, 1):
        save_file({f"{evil}.weight_ih": torch.full((2, 2), float(k))}, here / f"s{k}.safetensors")
    assert main(["init", "s0.safetensors", "s1.safetensors"]) == 0
    holder: dict[str, object] = {}
    exec((here / "models.py").read_text(), holder)
    assert {"model", "data"} <= holder.keys()
    assert "os" not in holder


@pytest.mark.slow
def test_two_folders_become_a_gate_that_runs(project, here, real_core, capsys):
    """Folders with a config.json and a tokenizer, and text beside them: no models.py, and a verdict."""
    pytest.importorskip("transformers")
    for name in ("prose", "code"):
        shutil.copytree(FIXTURES / "hub" / name, here / name)
    shutil.copy(FIXTURES / "hub" / "prose.jsonl", here / "prose.jsonl")
    assert main(["init", "prose", "code"]) == 0
    assert not (here / "models.py").exists()
    result = project.pytester.runpytest_inprocess("--lmc-models", "--lmc-report-json=r.json")
    result.assert_outcomes(passed=2)
    assert json.loads((here / "r.json").read_text())["checks"][-1]["unit"] == "nats"
