"""Files are written whole or not at all, with the mode that the umask leaves, and never over what was read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

import lmccheck
from lmccheck.errors import CheckpointError, LmcError
from lmccheck.store import files
from lmccheck.store.whole import NotOurs, overwritten, replacing, replacing_folder, write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Set the umask of this process for one test."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_the_mode_is_what_the_umask_leaves(tmp_path):
    """0640 under 027, for text and for tensors; a file that is replaced keeps its own."""
    write_whole(tmp_path / "deep/text", b"x")
    files.save({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert mode(tmp_path / "deep/text") == mode(tmp_path / "w.safetensors") == 0o640
    (tmp_path / "text").write_text("")
    (tmp_path / "text").chmod(0o604)
    write_whole(tmp_path / "text", b"y")
    assert mode(tmp_path / "text") == 0o604


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(0)])
def test_whatever_stops_it_leaves_the_old_file_and_nothing_else(tmp_path, error):
    """Also an interrupt: old bytes, no temporary file."""
    target = tmp_path / "report"
    target.write_text("old")

    def write():
        with replacing(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report"]


def test_two_files_are_written_together(tmp_path, monkeypatch):
    """Where the permutation cannot be written, the aligned weights are not left alone either."""
    first, second = tmp_path / "w.safetensors", tmp_path / "folder"
    second.mkdir()
    with pytest.raises(CheckpointError, match="folder: cannot be written: is a folder"):
        files.save_all({first: ({"w": torch.zeros(1)}, {}), second: ({"w": torch.zeros(1)}, {})})
    assert os.listdir(tmp_path) == ["folder"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    """As writing through it would do; a hard link is replaced and its other name keeps the old bytes."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "hard")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "hard").read_text() == "old"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """A device stays a device: text goes into it, and what a full one says is raised; weights are refused."""
    device = Path("/dev/full")
    if not device.is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        write_whole(device, b"x")
    with pytest.raises(CheckpointError, match="is a device, a pipe or a socket"):
        files.save({"w": torch.zeros(1)}, device)
    assert device.is_char_device()


@pytest.mark.parametrize("kind", ["same", "link", "hard link", "folder link", "dots"])
def test_an_input_is_found_under_every_name(tmp_path, kind):
    """Links, hard links, linked folders and detours are the same file."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in/a.safetensors"
    source.write_text("weights")
    target = tmp_path / "out"
    if kind == "same":
        target = source
    elif kind == "link":
        target.symlink_to(source)
    elif kind == "hard link":
        os.link(source, target)
    elif kind == "folder link":
        target.symlink_to(tmp_path / "in")
        target /= "a.safetensors"
    else:
        target = tmp_path / "in/../in/./a.safetensors"
    assert overwritten(target, [tmp_path / "other", source]) == source
    assert overwritten(tmp_path / "in/b.safetensors", [source]) is None


def test_what_python_writes_never_replaces_what_was_read(load, folder):
    """Checkpoints, data and models.py, under a link too, for every function that writes; the old bytes stay."""
    pair = load()
    (folder / "link.safetensors").symlink_to("b.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    alignment = lmccheck.align(pair)
    result = lmccheck.linear_connectivity(pair, limit=100.0)
    noise = lmccheck.noise_stability(pair, epsilon=100.0, masks=2)
    for name in ("a.safetensors", "link.safetensors", "data.safetensors", "models.py"):
        for save in (
            lambda target: lmccheck.save_aligned(alignment, target),
            lambda target: lmccheck.save_merged(pair, None, target),
            result.witness.save,
            noise.witness.save,
        ):
            with pytest.raises(CheckpointError, match=r"was read as .*expected a file of its own; mend: "):
                save(folder / name)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_permutation_beside_is_no_input_either(load, folder):
    """b-is-named x.permutation.safetensors, and x.safetensors would bring that name along."""
    (folder / "b.safetensors").rename(folder / "x.permutation.safetensors")
    alignment = lmccheck.align(load(b="x.permutation.safetensors"))
    with pytest.raises(LmcError, match=r"x.permutation.safetensors: was read"):
        lmccheck.save_aligned(alignment, folder / "x.safetensors")
    assert not (folder / "x.safetensors").exists()


def test_a_file_that_cannot_be_replaced_is_written_to(tmp_path, monkeypatch):
    """One that is mounted by itself, as containers do: the rename is refused, and what is there may be written."""

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "report").write_text("an older and longer text")
    write_whole(tmp_path / "report", b"new")
    assert (tmp_path / "report").read_text() == "new"
    with pytest.raises(OSError, match="busy"):
        write_whole(tmp_path / "none", b"new")
    assert os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(0)])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, error):
    """What stops it leaves the old folder and nothing beside it; what ends well leaves the new one only."""
    target = tmp_path / "out"
    with replacing_folder(target, "mark") as folder:
        (folder / "mark").write_text("")
        (folder / "old.safetensors").write_text("old")
        assert not target.exists()

    def write():
        with replacing_folder(target, "mark") as folder:
            (folder / "mark").write_text("")
            raise error

    with pytest.raises(type(error)):
        write()
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "old.safetensors").read_text() == "old"
    with replacing_folder(target, "mark") as folder:
        (folder / "mark").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert {path.name: path.read_text() for path in target.iterdir()} == {"mark": "new"}


@pytest.mark.parametrize("names", [["theirs.safetensors"], ["mark", "notes"]])
def test_a_folder_of_others_is_never_replaced(tmp_path, names):
    """One without the mark, and one with it in which something would be lost."""
    target = tmp_path / "out"
    target.mkdir()
    for name in names:
        (target / name).write_text("theirs")

    def write():
        with replacing_folder(target, "mark") as folder:
            (folder / "mark").write_text("")

    with pytest.raises(NotOurs) as caught:
        write()
    assert caught.value.names == [names[-1]]
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(target)) == names
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), replacing_folder(tmp_path / "file", "mark"):
        pass
