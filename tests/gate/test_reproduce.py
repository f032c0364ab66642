"""The last line of a failure, pasted into a shell, shows the same failure."""

from __future__ import annotations

import subprocess

import pytest


def reproduce_line(result):
    lines = [line for line in result.outlines if line.startswith("reproduce: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("reproduce: ")


@pytest.mark.parametrize("folder", ["gates", "my gates"])
def test_the_command_works_when_pasted(project, folder, monkeypatch):
    """Also with a space in the path, from a subfolder, and with the options that shaped the measurement."""
    project.gate(good="0.01", bad="2", name=f"{folder}/lmc.toml")
    elsewhere = project.path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    first = project.run(f"../{folder}", "--lmc-models", "--lmc-seed=7", "--lmc-profile=dev", "--lmc-device=cpu")
    command = reproduce_line(first)
    assert command == (
        f"pytest '../{folder}/lmc.toml::bad::linear_connectivity' --lmc-device=cpu --lmc-seed=7 --lmc-profile=dev"
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p fakecore")
    again = subprocess.run(command, shell=True, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert again.returncode == pytest.ExitCode.TESTS_FAILED, again.stdout + again.stderr
    assert f"reproduce: {command}" in again.stdout.splitlines()
    assert "1 failed" in again.stdout


def test_a_setting_of_the_ini_file_is_spelled_out(project):
    """The command repeats the measurement also where another ini file is found."""
    project.gate(bad="2")
    project.pytester.makeini("[pytest]\nlmc_seed = 5\n")
    assert reproduce_line(project.run("--lmc-models")) == "pytest 'lmc.toml::bad::linear_connectivity' --lmc-seed=5"


def test_a_failure_is_six_lines(project):
    """What failed; measured against limit; where; worst and smallest; endpoint losses; the command."""
    project.gate(bad="2")
    lines = project.run("--lmc-models").outlines
    start = next(k for k, line in enumerate(lines) if "bad: linear_connectivity" in line)
    assert lines[start + 1 : start + 7] == [
        "linear_connectivity failed for bad",
        "measured 2 nats, limit 0.05 nats",
        "at t = 0.5",
        "worst seen 0.2 at t = 0.5; smallest counterexample t = 0.25",
        "endpoint losses: a 0.1 nats, b 0.1 nats",
        "reproduce: pytest 'lmc.toml::bad::linear_connectivity'",
    ]
    assert "= lmccheck =" in lines[start + 7]
