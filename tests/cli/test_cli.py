"""``lmccheck symmetry``: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from networks import NETWORKS
from safetensors.torch import save_file

import lmccheck
from lmccheck.cli import main as cli
from lmccheck.cli.symmetry import Input, example
from lmccheck.report.symmetry import describe, frozen_table, groups_table

MODELS = """\
import torch
from torch import nn

def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

def half():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).bfloat16()

def words():
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Embedding(9, 5), nn.Linear(5, 2)

    def forward(self, x, index):
        return self.c(self.a(x) + self.b(index))
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call ``lmccheck symmetry`` in a folder with a ``models.py``; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(["symmetry", *arguments])
        except SystemExit as end:  # argparse's own
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


CNN = ("models:cnn", "--input", "2,1,4,4")


def test_what_is_printed(run: Run) -> None:
    """A heading, the groups, what is frozen and why."""
    status, out, err = run(*CNN)
    heading, *rest = out.splitlines()
    assert (status, err) == (0, "")
    assert heading.startswith("models:cnn: 99 parameters, 1 unit group, ")
    assert "% free to move; verified in float64: outputs change by " in heading
    assert rest[1].split() == ["group", "size", "slots", "droppable", "made", "by", "read", "by"]
    assert rest[3].split() == [
        *("0", "4", "7", "yes"),
        *("0.{weight,bias},", "1.{weight,bias,running_mean,running_var}", "4.weight"),
    ]
    assert any(line.startswith("positions of the network's output are told apart (output)") for line in rest)


def test_a_saved_spec_is_loaded_and_verified(run: Run, tmp_path: Path) -> None:
    """``--output`` writes what ``--spec`` reads, with the model's name."""
    printed = run(*CNN)[1]
    status, out, _ = run(*CNN, "--output", "spec.toml")
    assert (status, out) == (0, f"{printed}\nwritten to spec.toml\n")
    assert '"models:cnn"' in (tmp_path / "spec.toml").read_text()
    status, out, _ = run(*CNN, "--spec", "spec.toml")
    assert (status, printed.startswith(out.rstrip())) == (0, True)
    assert printed.removeprefix(out.rstrip()).split()[0] == "property"  # what a traced network can be asked


def test_a_wrong_spec_is_exit_status_1(run: Run, tmp_path: Path) -> None:
    """It is shown, the group named on one line of stderr, and not written again."""
    run(*CNN, "--output", "spec.toml")
    text = (tmp_path / "spec.toml").read_text()
    (tmp_path / "spec.toml").write_text("\n".join(line for line in text.splitlines() if "running_mean" not in line))
    status, out, err = run(*CNN, "--spec", "spec.toml", "--output", "again.toml")
    assert status == 1
    assert "FAILED verification in float64: outputs change by " in out
    assert err.startswith("lmccheck: spec.toml: this permutation spec changes the output of model Sequential by ")
    assert "these groups do so: '0' (" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "again.toml").exists()


def test_a_derived_spec_that_fails_is_called_our_defect(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1 too, and no hint that the user could mend it."""
    monkeypatch.setattr("lmccheck.symmetry.verify.TOLERANCE", -1.0)
    status, _, err = run(*CNN)
    assert status == 1
    assert "this is a defect of lmccheck; mend: report the model" in err


def test_a_spec_can_be_shown_without_inputs(run: Run, tmp_path: Path) -> None:
    """Nothing is run when nothing is to be derived or verified."""
    run(*CNN, "--output", "spec.toml")
    status, out, _ = run("models:cnn", "--spec", "spec.toml", "--no-verify")
    assert status == 0
    assert out.splitlines()[0].endswith("free to move; not verified")


def test_inputs_of_several_kinds(run: Run, tmp_path: Path) -> None:
    """The model's own float unless a dtype is said, integers below a bound, several inputs, a file."""
    for arguments in (
        ("models:half", "--input", "2,4"),
        ("models:words", "--input", "2,5:int64"),
        ("models:Two", "--input", "3,4", "--input", "3:int64:9"),
    ):
        assert run(*arguments)[0] == 0, arguments
    save_file({"inputs": torch.randn(50, 4)}, str(tmp_path / "data.safetensors"))
    assert run("models:half", "--inputs", "data.safetensors")[0] == 0


def test_everything_on_request(run: Run) -> None:
    """``--all`` gives each frozen dimension, ``--table`` any tabulate format."""
    out = run(*CNN, "--all", "--table", "github")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in out.splitlines() if line.startswith("| 0.")]
    assert rows[-2:] == [["0.weight", "2", "3"], ["0.weight", "3", "3"]]


def test_seeds_repeat(run: Run) -> None:
    """The same seed gives the same output to the last digit."""
    assert run(*CNN, "--seed", "3", "--trials", "1") == run(*CNN, "--seed", "3", "--trials", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("models:cnn",), "lmccheck: symmetry: no example inputs; mend: say --input SHAPE"),
        (("models:cn", "--input", "2,1,4,4"), "model 'models:cn': models has no 'cn' (did you mean 'cnn'?)"),
        (("nowhere:cnn", "--input", "2,1,4,4"), "no module 'nowhere'"),
        (("models:cnn", "--input", "2,3,4,4"), "lmccheck: "),
        ((*CNN, "--spec", "gone.toml"), "lmccheck: gone.toml: no such file"),
        ((*CNN, "--output", "spec.yaml"), "lmccheck: spec.yaml: got the suffix '.yaml', expected .toml, as which"),
        ((*CNN, "--table", "simpel"), "lmccheck: --table: got 'simpel', expected a tabulate format (did you mean"),
        (("models:cnn", "--inputs", "gone.safetensors"), "lmccheck: gone.safetensors: no such file"),
        (("models:cnn", "--input", "2,x"), "argument --input: got '2,x', expected SHAPE[:DTYPE[:BOUND]]"),
        (("models:cnn", "--input", "2:int46"), "dtype 'int46' (did you mean 'int64'?); expected one of float32"),
        (("models:cnn", "--input", "2:float32:5"), "expected a whole number as the bound of an integer dtype"),
        ((*CNN, "--inputs", "x.safetensors"), "not allowed with argument --input"),
        ((*CNN, "--trials", "0"), "argument --trials: got '0', expected a whole number of at least 1"),
    ],
)
def test_a_mistake_is_exit_status_2(run: Run, arguments: tuple[str, ...], said: str) -> None:
    """One line on stderr (after argparse's usage), no traceback, nothing on stdout."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_inputs_without_the_tensor(run: Run, tmp_path: Path) -> None:
    """The file and what it holds are named."""
    save_file({"x": torch.randn(5, 4)}, str(tmp_path / "data.safetensors"))
    status, _, err = run("models:half", "--inputs", "data.safetensors")
    assert (status, "data.safetensors: has no tensor 'inputs', got ['x']" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2,3", Input((2, 3))),
        ("4:float64", Input((4,), "float64")),
        ("2,16:int64", Input((2, 16), "int64", 2)),
        ("2,16:int64:50257", Input((2, 16), "int64", 50257)),
    ],
)
def test_the_input_syntax(text: str, meant: Input) -> None:
    """SHAPE[:DTYPE[:BOUND]]."""
    assert example(text) == meant


def test_the_table_of_groups() -> None:
    """Groups inside others say how many copies there are; reasons are given once, below; long lists are cut."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["torch_encoder_post_norm"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    lines = groups_table(spec, "tsv").splitlines()
    rows = {cells[0].strip(): [cell.strip() for cell in cells] for cells in (line.split("\t") for line in lines)}
    assert rows["group"] == ["group", "size", "within", "slots", "droppable", "made by", "read by"]
    inner = rows["1.layers.1.self_attn/1"]
    assert inner[:3] == ["1.layers.1.self_attn/1", "4", "2 × 1.layers.1.self_attn/0"]
    assert inner[4] == rows["1.layers.0.self_attn/1"][4] == "no (2)"
    assert sum(line.startswith("(") for line in lines) == len({g.bound for g in spec.groups if g.bound})
    assert rows["0"][5].startswith("0.{weight,bias}, 1.layers.0.self_attn.out_proj.{weight,bias}, ")
    assert rows["0"][5].endswith(" more")
    assert " more" not in groups_table(spec, "tsv", everything=True)


def test_the_table_of_what_is_frozen() -> None:
    """One row per reason with its tensors and positions; nothing is lost when rows are merged."""
    torch.manual_seed(0)
    module, inputs = NETWORKS["vgg"]()
    spec = lmccheck.discover_symmetry(module, inputs)
    rows = [line.split("\t") for line in frozen_table(spec, "tsv").splitlines()[1:]]
    assert sum(int(row[2]) for row in rows) == sum(item.size for item in spec.frozen)
    assert [row[0].strip() for row in rows] == list(dict.fromkeys(item.reason for item in spec.frozen))
    assert len(frozen_table(spec, "tsv", everything=True).splitlines()) == 1 + len(spec.frozen)


def test_ops_without_a_rule_are_named() -> None:
    """Last, with how often they occur; where there are neither groups nor frozen axes only the heading is left."""
    spec = lmccheck.PermutationSpec((), (), {}, {"w": (2, 3)}, {"w": "w"}, {"aten.sort": 2, "aten.fft": 1})
    text = "m: 6 parameters, 0 unit groups, 0 % free to move; not verified"
    ops = "ops without a rule, which freeze what they touch: aten.fft (1), aten.sort (2)"
    assert describe("m: 6 parameters", spec, "not verified") == f"{text}\n\n{ops}"


def test_help_does_not_wait_for_torch() -> None:
    """Nor for anything else that takes time to import; ``python -m lmccheck`` is the same program."""
    heavy = "{'torch', 'numpy', 'pydantic', 'tabulate'}"
    code = f"import sys, lmccheck.cli.main\nlmccheck.cli.main.parser().format_help()\nprint({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"
    shown = subprocess.run([sys.executable, "-m", "lmccheck", "symmetry", "--help"], capture_output=True, text=True)
    assert (shown.returncode, "SHAPE[:DTYPE[:BOUND]]" in shown.stdout) == (0, True)


def test_the_console_script_is_this_program() -> None:
    """The name in pyproject.toml leads to ``main``."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert EntryPoint("lmccheck", project["scripts"]["lmccheck"], "console_scripts").load() is cli.main
