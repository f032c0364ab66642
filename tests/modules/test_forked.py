"""A process of its own knows nothing of what was done after it was made, and never keeps anyone waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmccheck.errors import LmcError
from lmccheck.modules.forked import Forked

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no such processes there")


def test_what_is_done_here_is_not_known_there() -> None:
    """A list that is filled afterwards is empty there; its answer is larger than a pipe holds."""
    kept: list[int] = []
    with Forked(lambda: (list(kept), torch.arange(200_000.0))) as process:
        kept.append(1)
        there, numbers = process.ask(60.0)
    assert there == []
    assert torch.equal(numbers, torch.arange(200_000.0))


def test_nothing_is_printed_there(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither by Python nor by what lies below; what is printed here comes once."""
    print("here", end="")
    with Forked(lambda: (print("there"), os.write(1, b"below"))) as process:
        process.ask(60.0)
    assert capfd.readouterr().out == "here"


def _fails() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (_fails, "a process of its own raised ValueError: no"),
        (lambda: sys.exit("left"), "a process of its own raised SystemExit: left"),
        (lambda: os._exit(3), "a process of its own ended early"),
        (lambda: os.abort(), "a process of its own ended early"),
        (lambda: time.sleep(60), "a process of its own did not end in 0 s"),
        (lambda: lambda: 1, "a process of its own raised"),
    ],
)
def test_what_goes_wrong_there_is_one_line(compute: Callable[[], Any], said: str) -> None:
    """An exception, an end, a wait, an answer that cannot be sent: all are said, none is waited for."""
    began = time.monotonic()
    with pytest.raises(LmcError) as caught, Forked(compute) as process:
        process.ask(0.3 if "0 s" in said else 60.0)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30


def test_one_that_is_gone_before_it_is_asked_is_one_line() -> None:
    """Somebody who needs memory has ended it."""
    with Forked(_fails) as process:
        os.kill(process._process, signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(LmcError, match="ended early"):
            process.ask(60.0)


def test_where_none_can_be_made_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the system's; both pipes are closed again."""
    monkeypatch.setattr(os, "fork", lambda: os.open("/nowhere/at/all", os.O_RDONLY))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such file"), Forked(_fails):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_it_starts_keeps_nobody_waiting_and_ends_with_it() -> None:
    """A process of that process holds its pipe open, and would go on for a minute."""
    began = time.monotonic()
    with Forked(lambda: subprocess.Popen(["sleep", "60"], close_fds=False).pid) as process:
        started = process.ask(60.0)
    assert time.monotonic() - began < 30
    while time.monotonic() - began < 30:
        status = Path(f"/proc/{started}/stat")
        if not status.exists() or ") Z" in status.read_text():
            return
    pytest.fail("it goes on")


def test_one_that_is_not_asked_does_nothing(tmp_path: Path) -> None:
    """It waits, is gone after the context, and was never a second copy of a test."""
    with Forked(lambda: (tmp_path / "here").write_text("")) as process:
        number = process._process
        assert process.there
        time.sleep(0.2)
    assert not (tmp_path / "here").exists()
    assert not process.there
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_elsewhere_there_is_none(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be made safely none is made."""
    monkeypatch.setattr(sys, "platform", system)
    with Forked(_fails) as process:
        assert not process.there
