"""``lmccheck align`` and ``lmccheck merge``: what they print and write, and their exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lmccheck
from lmccheck.cli import main as cli
from lmccheck.store.files import read_header

FIXTURES = Path(__file__).parents[2] / "fixtures"
Run = Callable[..., tuple[int, str, str]]
SMALL = ("a.safetensors", "b.safetensors", "--model", "models:mlp", "--data", "data.safetensors")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in the folder with the small pair; return exit status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main([*arguments, "--device", "cpu"])
        except SystemExit as end:  # argparse's own
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def shipped(kind: str) -> tuple[str, ...]:
    """Return the arguments that name a shipped pair."""
    return (
        f"{kind}-seed0.safetensors", f"{kind}-seed1.safetensors", "--model", f"models:{kind}",
        "--data", "digits-test.safetensors", "--calibration", "digits-train.safetensors",
    )  # fmt: skip


def test_align_writes_b_aligned(run: Run, folder: Path) -> None:
    """What Python's save_aligned writes, and a summary."""
    status, out, err = run("align", *SMALL, "-o", "new/b.safetensors", "--seed", "2")
    assert (status, err) == (0, "")
    assert out.endswith(f"written to {Path('new/b.safetensors')}\n")
    rows = [line.split("  ")[0] for line in out.splitlines()[:6]]
    assert rows == [
        *("method", "objective", "unit groups moved", "outputs of B change by"),
        *(f"barrier at t = 0.5, {which} (nats)" for which in ("unaligned", "aligned")),
    ]
    pair = lmccheck.load_pair(
        "a.safetensors", "b.safetensors", model="models:mlp", data="data.safetensors", device="cpu"
    )
    lmccheck.save_aligned(lmccheck.align(pair, seed=2), "same.safetensors")
    for name in ("{}.safetensors", "{}.permutation.safetensors"):
        one, two = folder / "new" / name.format("b"), folder / name.format("same")
        assert read_header(one) == read_header(two)
        same = load_file(str(two))
        assert all(torch.equal(tensor, same[key]) for key, tensor in load_file(str(one)).items())


def test_align_says_what_best_chose(run: Run) -> None:
    """With calibration data the method with the lowest barrier on it."""
    out = run("align", *SMALL, "--calibration", "data.safetensors", "--method", "best", "-o", "o.safetensors")[1]
    assert out.splitlines()[0].startswith("method ")
    assert " best (of which " in out.splitlines()[0]


def test_the_barriers_of_align_are_the_gates(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BatchNorm re-estimated where there is calibration data, said to be interpolated where there is none."""
    monkeypatch.chdir(FIXTURES)
    arguments = (*shipped("cnn"), "--output", str(tmp_path / "o.safetensors"))
    status, out, _ = run("align", *arguments)
    assert status == 0
    assert "3 of 3, " in out
    unaligned = next(line for line in out.splitlines() if "unaligned" in line)
    assert float(unaligned.split()[-1]) == pytest.approx(0.8835, abs=0.001)
    out = run("align", *(a for a in arguments if a not in ("--calibration", "digits-train.safetensors")))[1]
    assert "aligned (nats), BatchNorm statistics interpolated" in out


def test_merge_writes_what_save_merged_does(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And prints the losses of the two, of what is written, and of the merge without alignment."""
    monkeypatch.chdir(FIXTURES)
    written, same = tmp_path / "m.safetensors", tmp_path / "same.safetensors"
    status, out, err = run("merge", *shipped("cnn"), "-t", "0.25", "--repair", "repair", "-o", str(written))
    assert (status, err) == (0, "")
    a, b, *arguments = shipped("cnn")
    options = {key.removeprefix("--"): value for key, value in zip(arguments[::2], arguments[1::2], strict=True)}
    pair = lmccheck.load_pair(a, b, device="cpu", **options)
    result = lmccheck.linear_connectivity(pair, points=5, profile="dev", repair="repair")
    lmccheck.save_merged(pair, result.witness, same, t=0.25, repair="repair")
    one, two = load_file(str(written)), load_file(str(same))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert read_header(written) == read_header(same)
    rows = [re.split(" {2,}", line) for line in out.splitlines()[2:6]]
    found = {row[0]: float(row[1]) for row in rows}
    expected = {
        "A": result.details["loss_a"],
        "B": result.details["loss_b"],
        "merged, t = 0.25": result.details["losses"][1],
        "merged unaligned": result.details["naive_losses"][1],
    }
    assert found == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}


def test_merge_without_alignment(run: Run, folder: Path) -> None:
    """Plain interpolation, said so in the file."""
    status, out, _ = run(
        "merge", *SMALL, "--method", "none", "-t", "0.5", "--loss", "cross_entropy", "-o", "m.safetensors"
    )
    assert (status, "merged unaligned" in out) == (0, False)
    assert json.loads(read_header(folder / "m.safetensors").metadata["lmccheck"])["method"] == "none"
    weights = [load_file(str(folder / f"{name}.safetensors")) for name in "abm"]
    for name, tensor in weights[2].items():
        assert torch.equal(tensor, torch.lerp(weights[0][name], weights[1][name], 0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("align", *SMALL, "-o", "b.safetensors"), "lmccheck: --output: b.safetensors is read from, expected a file"),
        (("merge", *SMALL, "-o", "./a.safetensors"), "lmccheck: --output: a.safetensors is read from, expected a file"),
        (("merge", *SMALL, "-o", "hard.safetensors"), "lmccheck: --output: hard.safetensors is read from, expected"),
        (("merge", *SMALL, "-o", "data.safetensors"), "lmccheck: --output: data.safetensors is read from, expected a"),
        (("merge", *SMALL, "-o", "m.pt"), "lmccheck: --output: got 'm.pt', expected a .safetensors file, since A is"),
        (
            ("align", "x.permutation.safetensors", *SMALL[1:], "-o", "x.safetensors"),
            "lmccheck: --output: x.permutation.safetensors is read from, expected a file of its own; mend: choose",
        ),
        (("align", *SMALL, "-o", "m.safetensors", "--method", "wieght-matching"), "(did you mean 'weight-matching'?)"),
        (("align", *SMALL, "-o", "m.safetensors", "--method", "none"), "align: unknown method 'none'"),
        (("merge", *SMALL, "-o", "m.safetensors", "--method", "bets"), "align: unknown method 'bets' (did you mean"),
        (("merge", *SMALL, "-o", "m.safetensors", "--repair", "repiar"), "repair = 'repiar' (did you mean 'repair'?)"),
        (("merge", *SMALL, "-o", "m.safetensors", "--repair", "repair"), "needs calibration data and none is given"),
        (("merge", *SMALL, "-o", "m.safetensors", "-t", "1.5"), "argument -t: got '1.5', expected a number from 0"),
        (("merge", *SMALL, "-o", "m.safetensors", "-t", "half"), "argument -t: got 'half', expected a number from"),
        (("merge", *SMALL[:4], "-o", "m.safetensors"), "the following arguments are required: --data"),
        (("align", *SMALL), "the following arguments are required: -o/--output"),
        (("align", "gone.safetensors", *SMALL[1:], "-o", "m.safetensors"), "gone.safetensors: no such file"),
        (("align", *SMALL[:3], "models:mpl", *SMALL[4:], "-o", "m.safetensors"), "(did you mean 'mlp'?)"),
        (("align", *SMALL, "--symmetry", "gone.toml", "-o", "m.safetensors"), "gone.toml: no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_exit_status_2(run: Run, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    """One line on stderr (after argparse's usage), nothing on stdout, nothing overwritten or written."""
    os.link(folder / "a.safetensors", folder / "hard.safetensors")
    (folder / "x.permutation.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    before = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.glob("*.safetensors")} == before


@pytest.mark.parametrize("command", ["align", "merge"])
def test_help_is_complete(command: str) -> None:
    """Every method is named; ``python -m lmccheck`` is the same program."""
    words = [sys.executable, "-m", "lmccheck", command, "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "500"})
    assert shown.returncode == 0
    text = " ".join(shown.stdout.split())
    assert "activation-matching, best, incoming, learned, transport, transport-both or weight-matching" in text
    assert ("none, activation-matching" in text, "-t T" in text) == (command == "merge", command == "merge")
