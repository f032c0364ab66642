"""What a run writes never replaces what it reads, and no two outputs are one file."""

from __future__ import annotations

import json
import os

import pytest
from networks.quick import slowly


@pytest.fixture
def gate(project):
    """A pair and a set, with a models.py and a symmetry spec beside them."""
    project.manifest(
        project.pair("p", value="0.01")
        + 'symmetry = "spec.toml"\ncalibration = "cal.safetensors"\n'
        + project.check("p"),
        project.set("s", value="0.01") + project.set_check("s"),
    )
    for name in ("models.py", "spec.toml", "conftest.py", "cal.safetensors"):
        (project.path / name).write_text("")
    return project


LOGS = ("stdout", "stderr")  # where pytester keeps what a process said


def contents(project):
    return {path.name: path.read_bytes() for path in project.path.iterdir() if path.is_file() and path.name not in LOGS}


INPUTS = ("p-a.safetensors", "p-b.safetensors", "s-2.safetensors", "data.safetensors", "cal.safetensors", "lmc.toml",
          "models.py", "spec.toml", "conftest.py")  # fmt: skip


@pytest.mark.parametrize("option", ["--lmc-report-json", "--lmc-report-md"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_report_never_replaces_an_input(gate, option, name):
    """Checkpoints, data, the manifest and the code beside it: a usage error before anything is written."""
    before = contents(gate)
    result = gate.run("--lmc-models", f"{option}={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {option}: {name} is an input, {name}, which would be overwritten; mend: *"])
    assert contents(gate) == before


@pytest.mark.parametrize("how", ["link", "hard link"])
def test_links_are_looked_through(gate, how):
    """Under xdist too, where workers find it and the controller would write."""
    (os.symlink if how == "link" else os.link)(gate.path / "p-a.safetensors", gate.path / "r.json")
    before = contents(gate)
    assert gate.run("--lmc-models", "--lmc-report-json=r.json").ret == pytest.ExitCode.USAGE_ERROR
    if how == "link":
        result = gate.run_subprocess("--lmc-models", "--lmc-report-json=r.json", "-n", "1")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert contents(gate) == before


@pytest.mark.parametrize(
    ("flag", "file"),
    [
        ("--lmc-aligned-dir", "out/p-b-aligned.safetensors"),
        ("--lmc-aligned-dir", "out/p-b-aligned.permutation.safetensors"),
        ("--lmc-aligned-dir", "out/s/s-1-aligned.safetensors"),
        ("--lmc-witness-dir", "out/p-linear_connectivity.safetensors"),
    ],
)
def test_what_is_aligned_or_proves_never_replaces_an_input(gate, flag, file):
    """A checkpoint that lies where a file would be written, under a link."""
    (gate.path / file).parent.mkdir(parents=True)
    (gate.path / file).symlink_to(gate.path / "p-b.safetensors")
    result = gate.run("--lmc-models", f"{flag}=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {flag} (*): {file} is an input, p-b.safetensors, which *"])


def test_two_outputs_at_one_place_are_refused(gate):
    """Two reports, a report and JUnit's file, and two witnesses whose names run together."""
    for flags in (
        ("--lmc-report-json=r", "--lmc-report-md=r"),
        ("--lmc-report-json=r", "--lmc-report-md=./x/../r"),
        ("--lmc-report-json=r", "--junitxml=r"),
    ):
        result = gate.run("--lmc-models", *flags)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --*: r is written by --lmc-report-*, too; mend: give each *"])
    gate.manifest(
        gate.pair("a") + gate.check("a", "b-c", property="linear_connectivity"),
        gate.pair("a-b") + gate.check("a-b", "c", property="linear_connectivity"),
    )
    result = gate.run("--lmc-models", "--lmc-witness-dir=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --lmc-witness-dir (a-b::c): out/a-b-c.safetensors is written by *(a::b-c), too*"]
    )


def test_a_report_goes_where_it_was_asked_for_though_code_changes_folders(project):
    """Relative to where pytest was started, also where the folder is gone by then."""
    project.gate(good="0.01", bad="2")
    project.pytester.makeconftest(
        "import fakecore, os, tempfile\nload = fakecore.FakeCore.load_pair\n"
        "def load_pair(*a, **b):\n    folder = tempfile.mkdtemp()\n    os.chdir(folder)\n    os.rmdir(folder)\n"
        "    return load(*a, **b)\nfakecore.FakeCore.load_pair = staticmethod(load_pair)\n"
    )
    result = project.run_subprocess("--lmc-models", "--lmc-report-json=out/r.json", "--lmc-report-md=r.md")
    assert result.ret == 1
    assert json.loads((project.path / "out/r.json").read_text())["exit_status"] == 1
    assert (project.path / "r.md").exists()


def test_secrets_and_places_stay_out_of_the_json(project):
    """What looks like a token is hidden; paths are relative to the root."""
    project.gate(good="0.01", name="gates/lmc.toml")
    token = "ghp_" + "a1B2" * 9
    project.pytester.makeconftest(
        "def pytest_addoption(parser):\n    parser.addoption('--hub-token')\n    parser.addoption('--endpoint')\n"
    )
    path = project.path / "report.json"
    project.run(
        "--lmc-models", "--hub-token", "hunter2", f"--endpoint=https://me:hunter2@host/{token}",
        f"--lmc-report-json={path}", "-o", "cache_dir=x9Y8z7W6v5U4t3S2r1Q0p9O8",
    )  # fmt: skip
    text = path.read_text()
    assert "hunter2" not in text
    assert "a1B2" not in text
    assert "x9Y8" not in text
    assert str(project.path) not in text
    report = json.loads(text)
    assert report["pairs"][0]["files"]["a"]["path"] == "gates/good-a.safetensors"
    assert "--lmc-report-json=report.json" in report["environment"]["arguments"]


def test_rows_name_their_manifest_where_there_are_several(project):
    """Two manifests with a pair of one name: terminal, notes, Markdown and JSON tell them apart."""
    for folder in ("x", "y"):
        project.manifest(
            project.pair("same", folder, value="0.01", note=f"from {folder}") + project.check("same"),
            name=f"{folder}/lmc.toml",
        )
    result = project.run("--lmc-models", "--lmc-report-md=r.md", "--lmc-report-json=r.json")
    result.stdout.fnmatch_lines(
        ["x/lmc.toml::same *", "y/lmc.toml::same *", "x/lmc.toml::same::linear_connectivity: from x"]
    )
    text = (project.path / "r.md").read_text()
    assert "| x/lmc.toml::same |" in text
    rows = json.loads((project.path / "r.json").read_text())["checks"]
    assert [(row["manifest"], row["pair"]) for row in rows if row["pair"]] == [
        ("x/lmc.toml", "same"),
        ("y/lmc.toml", "same"),
    ]
    project.run("--lmc-models", "x").stdout.fnmatch_lines(["same *linear_connectivity*"])


@pytest.mark.parametrize("option", ["--lmc-report-json", slowly("--lmc-report-md"), "--junitxml"])
def test_code_and_settings_that_no_manifest_names_are_inputs_too(gate, option):
    """A helper, pytest's settings, under a hard link too, another folder's conftest; through a folder that is not."""
    gate.pytester.makeini("[pytest]")
    (gate.path / "helper.py").write_text("X = 1")
    (gate.path / "conftest.py").write_text("Y = 1")
    os.link(gate.path / "tox.ini", gate.path / "r.json")
    before = contents(gate)
    for name in ("helper.py", "tox.ini", "r.json", "conftest.py", "./no/../lmc.toml"):
        assert gate.run("--lmc-models", f"{option}={name}").ret == pytest.ExitCode.USAGE_ERROR
        assert contents(gate) == before
    assert gate.run_subprocess("--lmc-models", f"{option}=lmc.toml", "-n", "1").ret == pytest.ExitCode.USAGE_ERROR
    assert contents(gate) == before


def test_a_place_that_cannot_be_is_one_line(project):
    """A name too long for the file system; characters that a terminal would obey."""
    project.gate(p="0.01")
    long = "r" * 300
    result = project.run("--lmc-models", f"--lmc-report-json={long}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"JSON report could not be written to *{long[:100]}*: File name too long"])
    result = project.run("--lmc-models", f"--lmc-aligned-dir={long}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["--lmc-aligned-dir: cannot write *: File name too long"])
    result = project.run("--lmc-models", "--lmc-report-json=r\x1b[2J\n::error::x")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([r"JSON report written to */r\x1b[[]2J\n\::error::x"])
