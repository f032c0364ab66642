"""What a user's code does to a run: its errors name its own line, what it sets for itself changes no verdict."""

from __future__ import annotations

import json

import pytest

MANIFEST = """schema = 1
[pair.p]
a = "a.safetensors"
b = "b.safetensors"
model = "models:mlp"
data = "models:batches"
loss = "models:loss"
check.linear_connectivity = { align = "weight-matching", limit = 5.0, points = 5 }
"""
BATCHES = """
import torch

def batches():
    torch.manual_seed(9)
    return torch.randn(20, 4, dtype=torch.float32, device="cpu"), torch.randint(0, 3, (20,), device="cpu")

def loss(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


pytestmark = pytest.mark.usefixtures("real_core")


@pytest.fixture
def gate(folder, pytester, monkeypatch):
    """Run the real core on a pair of small networks whose models.py ends as given; return the result and the row."""
    monkeypatch.chdir(folder)
    models = (folder / "models.py").read_text()

    def run(*flags, more="", conftest="", ret=None):
        (folder / "lmc.toml").write_text(MANIFEST)
        (folder / "models.py").write_text(models + BATCHES + more)
        (folder / "conftest.py").write_text(conftest)
        result = pytester.runpytest_inprocess("--lmc-models", "--rootdir=.", "--lmc-report-json=r.json", *flags)
        assert ret is None or result.ret == ret
        checks = json.loads((folder / "r.json").read_text())["checks"]
        return result, next(check for check in checks if check["pair"])

    return run


BROKEN = {
    "build": "\ndef mlp():\n    return helper()\n\ndef helper():\n    raise ValueError('bad width')\n",
    "forward": "\nclass Broken(torch.nn.Linear):\n    def forward(self, x):\n        raise ValueError('bad width')\n\n"
    "def mlp():\n    return torch.nn.Sequential(Broken(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), "
    "torch.nn.ReLU(), torch.nn.Linear(5, 3))\n",
    "data": "\ndef batches():\n    if True: raise ValueError('no data')\n    yield\n",
    "loss": "\ndef loss(outputs, targets):\n    raise ValueError('no loss')\n",
    "import": "\nraise ValueError('not today')\n",
    "syntax": "\ndef mlp(:  # raise\n",
}


@pytest.mark.parametrize("where", BROKEN)
def test_an_error_names_the_users_line(gate, where):
    """The innermost line of the user's own: in the model's build and forward, the data, the loss, at import."""
    _, row = gate(more=BROKEN[where], ret=1)
    number = next(k for k, line in enumerate((BATCHES + BROKEN[where]).splitlines()) if "raise" in line)
    assert row["verdict"] == "error"
    assert f"(models.py:{number + 5})" in row["message"]  # below the 4 lines of the folder's models.py
    assert "callable without arguments" not in row["message"]
    assert "\n" not in row["message"]


def test_a_callable_that_needs_arguments_is_told_so(gate):
    """There the hint is right."""
    _, row = gate(more="\ndef mlp(width):\n    pass\n", ret=1)
    assert row["message"].endswith("mend: make it callable without arguments")


def test_the_whole_traceback_is_there_for_who_asks(gate):
    """One line by default; with --tb=long every frame, the user's first."""
    more = "\ndef mlp():\n    return helper()\n\ndef helper():\n    raise ValueError('bad width')\n"
    result, _ = gate(more=more)
    result.stdout.no_fnmatch_line("*Traceback*")
    for flag in ("--tb=long", "--full-trace"):  # the model is kept: it raises anew
        result, _ = gate(flag, more=more)
        result.stdout.fnmatch_lines(
            ["Traceback *", "*in helper", "*raise ValueError('bad width')", "ValueError: bad width"]
        )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("\ndef mlp():\n    import pytest\n    pytest.skip('no time')\n", "skipped: no time"),
        ("\nimport pytest\npytest.importorskip('nothing_such')\n", "skipped: could not import"),
        ("\ndef batches():\n    import pytest\n    pytest.xfail('not yet')\n    yield\n", "xfailed: not yet"),
        ("\ndef mlp():\n    import sys\n    sys.exit(0)\n", "SystemExit: 0"),
        ("\nimport sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("\ndef mlp():\n    import pytest\n    pytest.exit('enough', returncode=0)\n", "Exit: enough"),
    ],
)
def test_code_that_gives_up_measures_nothing(gate, more, reason):
    """Skips and exits inside the model, the data, or at import: not measured, with the reason, and never green."""
    result, row = gate("--lmc-report-only", more=more)
    assert result.ret != 0
    assert row["verdict"] == "not measured"
    assert reason in row["message"]
    assert "models.py:" in row["message"]


SETTINGS = {
    "float64": "torch.set_default_dtype(torch.float64)",
    "bfloat16": "torch.set_default_dtype(torch.bfloat16)",
    "meta device": "torch.set_default_device('meta')",
    "no gradients": "torch.set_grad_enabled(False)",
    "inference": "torch.inference_mode().__enter__()",
    "autocast": "torch.autocast('cpu', dtype=torch.bfloat16).__enter__()",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "products": "torch.set_float32_matmul_precision('medium')",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_conftest_sets_changes_no_number(gate, name):
    """Default dtype and device, autocast, inference mode: the value is the one without, bit for bit."""
    _, plain = gate(ret=0)
    undo = {
        "no gradients": "torch.set_grad_enabled(True)",
        "deterministic": "torch.use_deterministic_algorithms(False)",
        "products": "torch.set_float32_matmul_precision('highest')",
        "meta device": "torch.set_default_device(None)",
        "inference": "KEPT.__exit__(None, None, None)",
        "autocast": "KEPT.__exit__(None, None, None)",
    }.get(name, "torch.set_default_dtype(torch.float32)")
    statement = SETTINGS[name]
    if statement.endswith(".__enter__()"):
        statement = f"KEPT = {statement.removesuffix('.__enter__()')}; KEPT.__enter__()"
    conftest = (
        f"import pytest, torch\n@pytest.fixture(autouse=True)\ndef setting():\n    {statement}\n    yield\n    {undo}\n"
    )
    _, row = gate(conftest=conftest, ret=0)
    assert row["verdict"] == "pass"
    assert row["value"] == plain["value"]
    assert row["details"]["losses"] == plain["details"]["losses"]


@pytest.mark.parametrize(
    ("statement", "size"),
    [
        ("torch.empty(2**50)", "4,503,599,627,370,496 bytes (4.19e+06 GiB)"),
        ("__import__('numpy').empty(2**50)", "8.00 PiB"),
        ("(_ for _ in ()).throw(MemoryError())", "more"),
        (
            "(_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0'))",
            "20.00 GiB",
        ),
    ],
)
def test_memory_that_is_not_there_is_one_line(gate, statement, size):
    """The size that was asked for, the line that asked, and what to do."""
    model = (
        "\nclass Hungry(torch.nn.Linear):\n    def forward(self, x):\n"
        f"        {statement}\n        return super().forward(x)\n\n"
        "def mlp():\n    return torch.nn.Sequential(Hungry(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), "
        "torch.nn.ReLU(), torch.nn.Linear(5, 3))\n"
    )
    _, row = gate(more=model, ret=1)
    assert row["verdict"] == "error"
    assert f"out of memory: {size} asked for" in row["message"]
    assert "mend: give fewer or shorter samples" in row["message"]


def test_a_group_of_errors_is_one_line(gate):
    """The group, and its first error."""
    _, row = gate(more="\ndef mlp():\n    raise ExceptionGroup('both', [ValueError('one'), OSError('two')])\n", ret=1)
    assert "ExceptionGroup: both: ValueError: one" in row["message"]


@pytest.mark.parametrize("made", ["itself", "each other", "no text"])
def test_errors_that_cannot_be_told_are_told(gate, made):
    """Causes that lead back, which must not be followed for ever; a text that cannot be made."""
    statement = {
        "itself": "e = ValueError('e'); e.__cause__ = e; raise e",
        "each other": "e, f = ValueError('e'), ValueError('f'); e.__cause__, f.__cause__ = f, e; raise e",
        "no text": "raise type('E', (Exception,), {'__str__': lambda self: 1 // 0})()",
    }[made]
    result, row = gate(more=f"\ndef batches():\n    {statement}\n", ret=1)
    assert row["verdict"] == "error"
    said = "E: (its text could not be made: ZeroDivisionError)" if made == "no text" else "ValueError: e"
    assert f"raised {said}" in row["message"]
    assert "Traceback" not in result.stdout.str()
