"""Faults in the middle of a run: signals, kill -9, a crashed worker, a full disk; and the reports they leave."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import pytest
from networks.quick import slowly

FLAGS = ("--lmc-models", "--lmc-report-json=report.json", "--lmc-report-md=report.md")
GREEN = json.dumps({"exit_status": 0, "checks": []})
WHERE = """
import fakecore, os, pathlib, signal, sys, time
load = fakecore.FakeCore.load_pair
def load_pair(*files, **given):
    if given["name"] == "p1":
        {statement}
    return load(*files, **given)
fakecore.FakeCore.load_pair = staticmethod(load_pair)
"""
WAIT = "pathlib.Path('reached').touch(); time.sleep(60)"


@pytest.fixture
def gate(project):
    """Three pairs that pass, and a green report of an earlier run in the way."""
    project.gate(p0="0.01", p1="0.01", p2="0.01")
    (project.path / "report.json").write_text(GREEN)
    (project.path / "report.md").write_text("all green")
    return project


def at_p1(project, statement):
    """Let something happen while the second pair is loaded."""
    project.pytester.makeconftest(WHERE.format(statement=statement))


@contextmanager
def running(project, *flags, **options):
    """Run pytest in a process of its own, from where the second pair is being loaded."""
    command = [sys.executable, "-m", "pytest", *project.alone, "-p", "fakecore", "-W", "error", *FLAGS, *flags]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # what runs in the background of a shell, as these tests may, ignores SIGINT
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=project.path, preexec_fn=listens, **options)
    try:
        deadline = time.monotonic() + 60
        while not (project.path / "reached").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def report_of(project):
    return json.loads((project.path / "report.json").read_text())


def verdicts(project):
    return {check["pair"]: (check["verdict"], check["message"]) for check in report_of(project)["checks"]}


def leftovers(project):
    return [path.name for path in project.path.glob(".*partial*")]


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--lmc-report-only",)),
        slowly(signal.SIGTERM, ()),
        slowly(signal.SIGINT, ("--lmc-report-only",)),
    ],
)
def test_an_interrupt_is_reported(gate, number, flags):
    """Ctrl-C and the signal that CI sends first: what was measured stays, the rest is not measured, status 2."""
    at_p1(gate, WAIT)
    with running(gate, *flags) as process:
        process.send_signal(number)
        output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == report_of(gate)["exit_status"] == 2
    found = verdicts(gate)
    assert found["p0"][0] == "pass"
    told = "terminated (SIGTERM)" if number == signal.SIGTERM else "KeyboardInterrupt"
    assert found["p1"] == ("not measured", f"interrupted while it ran: {told} (conftest.py:5)")
    assert found["p2"] == ("not measured", f"not reached: {told} (conftest.py:5)")
    assert "2 of 3 checks not measured" in output
    assert "**2 of 3 checks not measured.**" in (gate.path / "report.md").read_text()
    assert leftovers(gate) == []


def test_code_that_holds_on_to_the_signal_does_not_hold_up_the_run(gate):
    """A bare ``except`` in the user's code swallows the interrupt; the run ends after that check all the same."""
    at_p1(gate, "\n        try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n        except: pass")
    assert (
        subprocess.call(
            [sys.executable, "-m", "pytest", *gate.alone, "-p", "fakecore", *FLAGS],
            cwd=gate.path,
            stdout=subprocess.DEVNULL,
        )
        == 2
    )
    assert verdicts(gate)["p2"] == ("not measured", "not reached: terminated (SIGTERM)")


def test_a_handler_of_the_users_own_is_left_alone(gate):
    """Where something else listens for SIGTERM, it goes on listening, and after the run the default is back."""
    gate.pytester.makepyfile(
        own="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "def pytest_unconfigure(): print('HANDLER', signal.getsignal(signal.SIGTERM) == signal.SIG_IGN)"
    )
    gate.run_subprocess(*FLAGS, "-p", "own").stdout.fnmatch_lines(["HANDLER True"])
    before = signal.getsignal(signal.SIGTERM)
    assert gate.run(*FLAGS).ret == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_kill_leaves_no_older_green_report(gate):
    """After kill -9 both reports say that the run did not finish; the JSON claims no exit status."""
    at_p1(gate, WAIT)
    with running(gate) as process:
        process.kill()
        process.wait()
    report = report_of(gate)
    assert (report["status"], report["exit_status"], report["schema_version"]) == ("not finished", None, 1)
    assert [check["verdict"] for check in report["checks"]] == ["not measured"] * 4
    text = (gate.path / "report.md").read_text()
    assert "**NOT FINISHED" in text
    assert "all green" not in text
    assert leftovers(gate) == []


def test_a_kill_while_collecting_leaves_no_older_report_either(gate):
    """Reports of earlier runs are replaced before anything is collected; other files are left alone until then."""
    (gate.path / "report.json").write_text('{"schema_version": 1, "lmccheck_version": "0", "exit_status": 0}')
    gate.pytester.makepyfile(test_slow="import pathlib, time\npathlib.Path('reached').touch()\ntime.sleep(60)")
    with running(gate) as process:
        process.kill()
        process.wait()
    assert (report_of(gate)["status"], report_of(gate)["exit_status"]) == ("not finished", None)
    assert (gate.path / "report.md").read_text() == "all green"  # it is no report: the manifests may name it


def test_under_xdist_too(gate):
    """The controller replaces the reports when its workers have told what they selected."""
    at_p1(gate, WAIT)
    with running(gate, "-n", "1") as process:
        process.kill()
        process.wait()
    report = report_of(gate)
    assert (report["status"], report["exit_status"]) == ("not finished", None)
    assert {check["property"] for check in report["checks"]} == {"manifest", "linear_connectivity"}


@pytest.mark.parametrize("death", [slowly("os._exit(0)"), "os.kill(os.getpid(), signal.SIGKILL)", slowly("os.abort()")])
def test_a_crashed_worker_is_a_row(gate, death):
    """Its check is not measured, and says that the worker died; what others measured stays."""
    at_p1(gate, death)
    result = gate.run_subprocess(*FLAGS, "-n", "1", "--lmc-report-only")
    assert result.ret == report_of(gate)["exit_status"] == 1
    found = verdicts(gate)
    assert (found["p0"][0], found["p2"][0]) == ("pass", "pass")
    assert found["p1"][0] == "not measured"
    assert found["p1"][1].startswith("worker 'gw")
    assert "crashed while running 'lmc.toml::p1::linear_connectivity'" in found["p1"][1]
    result.stdout.fnmatch_lines(["1 of 3 checks not measured"])


def test_workers_that_may_not_be_replaced_leave_rows(gate):
    """With --max-worker-restart=0 the run ends at the first crash; every check has its row."""
    at_p1(gate, "os._exit(0)")
    result = gate.run_subprocess(*FLAGS, "-n", "1", "--max-worker-restart=0")
    assert result.ret != 0
    found = verdicts(gate)
    assert [found[p][0] for p in ("p0", "p1", "p2")] == ["pass", "not measured", "not measured"]
    assert "crashed" in found["p2"][1]


@pytest.mark.slow
def test_xdist_stops_after_failures(project):
    """-n 2 --maxfail=1: what no worker came to is not measured, with the reason."""
    project.gate(**{f"p{k}": "2" if k < 2 else "0.01" for k in range(12)})
    result = project.run_subprocess(*FLAGS, "-n", "2", "--maxfail=1")
    found = verdicts(project)
    assert result.ret == report_of(project)["exit_status"] == 2
    assert len([pair for pair in found if pair]) == 12
    missing = [message for verdict, message in found.values() if verdict == "not measured"]
    assert missing
    assert all("stopping after 1 failures" in message for message in missing)


def full_disk():
    """No file of this process may grow beyond 200 bytes; what is longer fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


def test_a_full_disk_leaves_nothing_green(gate):
    """One line per report, a red run; the older green reports are gone, not left to be read."""
    flags = ("-p", "no:cacheprovider", "--lmc-witness-dir=out")
    command = [sys.executable, "-B", "-m", "pytest", *gate.alone, "-p", "fakecore", *FLAGS, *flags]
    done = subprocess.run(command, cwd=gate.path, capture_output=True, text=True, preexec_fn=full_disk, check=False)
    assert done.returncode == 1
    assert "JSON report could not be written to" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (gate.path / "report.json").exists()
    assert not (gate.path / "report.md").exists()
    assert leftovers(gate) == []


def test_a_report_into_a_full_device_is_red(gate):
    """/dev/full stays a device, and the run is red."""
    device = "/dev/full"
    if not os.path.exists(device):
        pytest.skip("no /dev/full here")
    result = gate.run("--lmc-models", f"--lmc-report-md={device}", "--lmc-report-json=report.json")
    result.stdout.fnmatch_lines([f"Markdown report could not be written to {device}: No space left on device"])
    assert result.ret == report_of(gate)["exit_status"] == 1


def test_a_full_disk_keeps_the_summary_page_whole(gate, monkeypatch):
    """What could be appended of a report only in part is taken back: earlier steps' lines stay as they were."""
    page = gate.path / "summary.md"
    page.write_text("an earlier step\n")
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        *gate.alone,
        "-p",
        "fakecore",
        "--lmc-models",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(page)}
    assert subprocess.run(
        command, cwd=gate.path, env=environment, preexec_fn=full_disk, check=False, stdout=-3
    ).returncode
    assert page.read_text() == "an earlier step\n"


def test_code_that_ends_the_process_is_not_green(gate):
    """os._exit(0) ends no run as a success; a child of it may."""
    at_p1(gate, "os._exit(0)")
    assert gate.run_subprocess("--lmc-models", *FLAGS).ret == pytest.ExitCode.INTERRUPTED
    assert report_of(gate)["status"] == "not finished"
    at_p1(gate, "assert os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(0), 0)[1]) == 0")
    assert gate.run_subprocess("--lmc-models", *FLAGS).ret == pytest.ExitCode.OK
