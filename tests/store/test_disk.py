"""What is no file on disk is refused at once, by whatever name it goes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lmccheck
from lmccheck.store import disk, files
from lmccheck.store.documents import read_document
from lmccheck.store.header import read_header


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # paths of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "FIFO": (os.mkfifo, r"got a FIFO \(named pipe\)"),
    "link to a FIFO": (lambda path: (os.mkfifo(f"{path}.fifo"), link(path, f"{path}.fifo")), "got a FIFO"),
    "socket": (bind, "got a socket"),
    "endless device": (lambda path: link(path, "/dev/zero"), "got a character device"),
    "empty device": (lambda path: link(path, "/dev/null"), "got a character device"),
    "folder": (lambda path: path.mkdir(), "got a folder|got an empty folder"),
    "link to nothing": (lambda path: link(path, "gone"), "got a link to 'gone', which is not there|a link to 'gone'"),
    "link to itself": (lambda path: link(path, path.name), "a link that leads back to itself"),
    "nothing": (lambda path: None, "no such file"),
    "below a file": (lambda path: (path.parent / "f").write_text(""), "no such file|Not a directory"),
}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail rather than wait: opening a FIFO waits for a writer."""
    import signal

    def give_up(*_: object) -> None:
        pytest.fail(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    """Headers, tensors, hashes and documents alike: one line that says what is there."""
    make, why = OTHERS[kind]
    path = tmp_path / "x.safetensors"
    make(path)
    if kind == "below a file":
        path = tmp_path / "f" / "x.safetensors"
    with at_most(10):
        for reader in (read_header, files.read, files.sha256_of):
            with pytest.raises(lmccheck.CheckpointError, match=why) as error:
                reader(path)
            assert str(error.value).isprintable()
        with pytest.raises(ValueError, match=why):
            read_document(path)


@pytest.mark.parametrize("kind", ["FIFO", "endless device", "link to itself", "folder", "socket"])
@pytest.mark.parametrize("name", ["a.safetensors", "data.safetensors"])
def test_pairs_and_data_too(load: Callable[..., Any], folder: Path, kind: str, name: str) -> None:
    """Nothing of a pair is waited for."""
    (folder / name).unlink()
    OTHERS[kind][0](folder / name)
    with at_most(20), pytest.raises(lmccheck.LmcError, match=OTHERS[kind][1]):
        load()


def test_what_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own reason is in the line (root may read everything, so the system is told to refuse)."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"{}")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(lmccheck.CheckpointError, match="Permission denied; mend"):
        files.read(path)


@pytest.mark.parametrize("name", ["x\0y.safetensors", "n" * 300 + ".safetensors", "\x1b[31m\n::error::x.safetensors"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    """A NUL, more than 255 bytes, and characters that a terminal or a CI log would obey."""
    for reader in (read_header, files.read, files.sha256_of):
        with pytest.raises(lmccheck.CheckpointError) as error:
            reader(tmp_path / name)
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= 500


def test_a_document_of_any_length_is_not_read(tmp_path: Path) -> None:
    """A few bytes more than there may be are enough to know."""
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert disk.read_bytes(path, "a TOML file", 5)[0] == b"12345"
    with pytest.raises(ValueError, match="got 5 bytes, expected a TOML file of at most 4"):
        disk.read_bytes(path, "a TOML file", 4)
