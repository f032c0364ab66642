"""``lmccheck doctor``: what can be asked of a network, from the table of facts, with inputs that nobody had to name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lmccheck
from lmccheck.cli import main as cli
from lmccheck.symmetry.capabilities import untraced

MODELS = """\
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))

class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 4 * 8 * 8))

class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Embedding(9, 6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, index):
        x = self.a(index)
        return self.d(x + self.c(torch.relu(self.b(x))))

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.relu(h) if float(h.sum()) > 0 else torch.relu(h) * 1.0)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x, y):
        return self.a(x) + self.a(y)
"""
MODELS += """
class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) + torch.randn(8))
"""
Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call ``lmccheck doctor`` in a folder with a ``models.py``; return exit status, lines of stdout, and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)

    def run(*arguments: str) -> tuple[int, list[str], str]:
        status = cli.main(["doctor", *arguments])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return run


def told(lines: list[str]) -> dict[str, str]:
    """How each property would be known, as the table of the output says it."""
    start = next(k for k, line in enumerate(lines) if line.startswith("property ")) + 2
    column = lines[start - 2].index("how")
    rows = lines[start : start + 6]
    return {row[:column].strip(): row[column:].split()[0] for row in rows}


def test_a_network_whose_every_unit_can_be_dropped(run: Run) -> None:
    """Inputs by its first layer; 4·5 + 5 + 5·3 + 3 = 43 numbers, of which 4·5 + 5 + 5·3 = 40 are a unit's."""
    status, lines, _ = run("models:mlp")
    assert status == 0
    assert lines[:3] == [
        "models:mlp: 43 parameters",
        "inputs: (2, 4) float32, guessed from '0' (say --input where it takes others)",
        "runs: yes, outputs (2, 3) float32",
    ]
    assert lines[3].startswith("traced: yes, verified in float64: outputs change by ")
    assert lines[4] == "units: 1 groups, 1 of them droppable (5 units); 93.02 % of its numbers may be permuted"
    assert lines[5] == "paths: dropout_path certified, ten_segment_path certified"
    assert set(told(lines).values()) == {"sampled", "certified"}
    assert any(line.startswith("0 ") and " yes " in line for line in lines)


def test_a_network_that_draws_at_random_is_told_so(run: Run) -> None:
    """In evaluation mode: that is no defect of ours, and nothing can be verified of it."""
    status, lines, error = run("models:Noisy")
    assert (status, lines) == (2, [])
    assert "models:Noisy: gives two outputs for the same weights and inputs; mend: make forward" in error


@pytest.mark.parametrize(
    ("model", "inputs"),
    [("cnn", "(2, 1, 28, 28) float32"), ("Rows", "(2, 1, 8, 8) float32"), ("Stream", "(2, 16) int64")],
)
def test_inputs_are_guessed(run: Run, model: str, inputs: str) -> None:
    """The side of images that its head fits, where it answers one per sample; tokens of its vocabulary."""
    status, lines, _ = run(f"models:{model}")
    assert status == 0
    assert lines[1].startswith(f"inputs: {inputs}, guessed from ")


def test_why_not_is_said(run: Run) -> None:
    """Of a residual stream no path of the theory drops its levels one by one; the table says so with its mend."""
    _, lines, _ = run("models:Stream", "--input", "2,5:int64:9")
    assert told(lines)["dropout_path"] == "refused"
    assert told(lines)["ten_segment_path"] == "certified"
    assert lines[5] == "paths: dropout_path refused, ten_segment_path certified"
    assert "mend: ask for ten_segment_path" in "\n".join(lines)


def test_what_cannot_be_traced_can_be_asked_for_some_things(run: Run) -> None:
    """Exit status 1, the reason, and what is left; nothing is said of units."""
    status, lines, _ = run("models:Branch")
    assert status == 1
    assert lines[3].startswith("traced: no: model Branch: torch.export cannot trace it: ")
    assert told(lines) == {name: found.how for name, found in untraced("").items()}


def test_the_table_of_what_is_not_traced_is_true() -> None:
    """Each property, asked of such a network, answers or refuses as the table says."""
    holder: dict[str, type] = {}
    exec(MODELS, holder)
    states = [(torch.manual_seed(seed), holder["Branch"]().state_dict())[1] for seed in (0, 1)]
    data = torch.randn(8, 4), torch.randint(0, 3, (8,))
    pair = lmccheck.load_pair(*states, model=holder["Branch"], data=data, calibration=data, device="cpu")
    asked: dict[str, Callable[[], lmccheck.Result]] = {
        "linear_connectivity": lambda: lmccheck.linear_connectivity(pair, align="none", points=3),
        "dropout_stability": lambda: lmccheck.dropout_stability(pair),
        "noise_stability": lambda: lmccheck.noise_stability(pair),
        "noise = 'gaussian'": lambda: lmccheck.noise_stability(pair, noise="gaussian", masks=2),
        "ten_segment_path": lambda: lmccheck.ten_segment_path(pair, profile="dev"),
        "dropout_path": lambda: lmccheck.dropout_path(pair),
    }
    answers = {}
    for name, ask in asked.items():
        try:
            answers[name] = "sampled" if "sampled" in ask().details["known"] else "other"
        except lmccheck.UnsupportedArchitecture:
            answers[name] = "refused"
    assert answers == {name: found.how for name, found in untraced("").items()}


def test_samples_of_a_file_are_taken(run: Run, tmp_path: Path) -> None:
    """Its tensor `inputs`, two of them."""
    save_file({"inputs": torch.randn(9, 4)}, tmp_path / "data.safetensors")
    assert run("models:mlp", "--input", "data.safetensors")[1][1] == "inputs: (2, 4) float32, as given"
    assert run("models:Two", "--input", "2,4", "--input", "2,4")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("models:Two",), "models:Two: no --input, and of 2 guesses none runs: *; mend: say --input SHAPE"),
        (("models:mlp", "--input", "2,5"), "models:mlp: running the model raised RuntimeError: "),
        (("models:mlp", "--input", "2x4"), "--input: got '2x4', expected SHAPE[:DTYPE[:BOUND]], such as "),
        (("models:mlp", "--input", "none.safetensors"), "none.safetensors: no such file"),
        (("models:none",), "model 'models:none': "),
        (("a.safetensors",), "a.safetensors: weights, expected a network: module:callable, or a folder"),
        ((".",), "config.json: no such file, got a folder without it"),
        (("models:mlp", "--table", "simpel"), "--table: got 'simpel', expected a tabulate format (did you mean"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    """Exit status 2, and nothing on stdout."""
    status, lines, error = run(*arguments)
    assert (status, lines) == (2, [])
    first, _, second = said.partition("*")
    assert error.startswith(f"lmccheck: {first}")
    assert second in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_model_of_a_folder(run: Run, tmp_path: Path) -> None:
    """A config.json says both the network and what it takes: 16 tokens, of 40 that there are."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    status, lines, _ = run("llama")
    assert status == 0
    assert lines[0].startswith("LlamaForCausalLM of llama: ")
    assert lines[1:3] == ["inputs: (2, 16) int64, by its config.json", "runs: yes, outputs (2, 16, 40) float32"]
    assert told(lines)["dropout_stability"] == "inner"
