"""Folders that a process needs while it runs: gone with it, and where it was killed, with the next that makes one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from lmccheck.store.scratch import OWNER, drop_scratch, new_scratch, scratch
from lmccheck.store.whole import replacing_folder

CODE = """
import pathlib, sys, time
from lmccheck.store.scratch import new_scratch
folder = new_scratch("merge")
(folder / "model.safetensors").write_bytes(b"half")
print(folder, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    """While it runs nobody touches its folder; after kill -9 the next one removes it, and no folder of others."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        (tmp_path / "lmccheck-merge-of-another-version").mkdir()
        with scratch("laws") as mine:
            assert (left.is_dir(), mine.is_dir()) == (True, True)
        process.send_signal(signal.SIGKILL)
    assert left.is_dir()
    with scratch("merge"):
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lmccheck-merge-of-another-version"]


def test_two_of_one_process_stand_beside_one_another(tmp_path: Path) -> None:
    """Each is held until it is dropped."""
    first, second = new_scratch("merge"), new_scratch("merge")
    assert (first / OWNER).is_file()
    drop_scratch(first)
    assert list(tmp_path.iterdir()) == [second]
    drop_scratch(second)
    drop_scratch(second)
    assert not list(tmp_path.iterdir())


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    """Nor is what it points to removed."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("mine")
    (tmp_path / "lmccheck-merge-x").mkdir()
    (tmp_path / "lmccheck-merge-x" / OWNER).symlink_to(tmp_path / "own" / "file")
    drop_scratch(new_scratch("merge"))
    assert (tmp_path / "lmccheck-merge-x").is_dir()


def test_what_a_killed_process_was_replacing_is_removed_by_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    """What a kill between two renames leaves, once a minute has gone by since the rename."""
    (tmp_path / ".lmccheck-x.replaced").mkdir()
    (tmp_path / ".lmccheck-x.replaced" / "mark").write_text("old")

    def left() -> list[str]:
        with replacing_folder(tmp_path / "one", "mark") as folder:
            (folder / "mark").write_text("one")
        return sorted(path.name for path in tmp_path.iterdir())

    assert left() == [".lmccheck-x.replaced", "one"]
    monkeypatch.setattr("lmccheck.store.whole.MINUTE", -1.0)
    assert left() == ["one"]


def test_half_a_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    """Never while it is being written, and none that is a minute old; the folder itself is whole or not there."""
    minutes_ago = time.time() - 600
    for name in ("killed", "fresh"):
        (tmp_path / f".lmccheck-{name}.partial").mkdir()
        (tmp_path / f".lmccheck-{name}.partial" / "model.safetensors").write_bytes(b"half")
    os.utime(tmp_path / ".lmccheck-killed.partial", (minutes_ago, minutes_ago))
    with replacing_folder(tmp_path / "one", "mark") as first:
        (first / "mark").write_text("one")
        os.utime(first, (minutes_ago, minutes_ago))
        with replacing_folder(tmp_path / "two", "mark") as second:
            (second / "mark").write_text("two")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lmccheck-fresh.partial", "one", "two"]
    assert (tmp_path / "one" / "mark").read_text() == "one"
