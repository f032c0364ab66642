"""A verdict is about the bytes that were hashed: what is read is read once, and a file that changes is not believed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck import CheckpointError
from lmccheck.store import disk, files
from lmccheck.store.checkpoint import look_at

Load = Callable[..., lmccheck.ModelPair]
SPACE = {
    "b": torch.tensor([True, False, True]),
    "e": torch.zeros(0, 7),
    "h": torch.arange(5).to(torch.bfloat16),
    "i": torch.arange(-3, 3),
    "s": torch.tensor(2.5, dtype=torch.float64),
    "w": torch.arange(24.0).reshape(2, 3, 4),
}


def test_tensors_and_hash_are_of_the_same_bytes(tmp_path: Path) -> None:
    """Every dtype and shape as safetensors reads it; the hash is that of the whole file."""
    path = tmp_path / "x.safetensors"
    save_file(SPACE, str(path), metadata={"format": "pt"})
    stored = files.read(path)
    assert stored.held.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in load_file(str(path)).items():
        assert stored.tensors[name].dtype == tensor.dtype
        assert torch.equal(stored.tensors[name], tensor)
    assert stored.tensors.keys() == SPACE.keys()


def test_a_tensor_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    """No byte is lost where one reading ends and the next begins."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(files.CHUNK // 4 * 2 + 3)}, str(path))
    stored = files.read(path)
    assert torch.equal(stored.tensors["w"], torch.arange(files.CHUNK // 4 * 2 + 3))
    assert stored.held.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_no_file_stays_mapped(load: Load, folder: Path) -> None:
    """Cutting a file that is loaded kills nobody: its numbers are in memory of their own (SIGBUS otherwise)."""
    pair = load()
    before = {name: tensor.clone() for name, tensor in pair.theta_a.items()}
    os.truncate(folder / "a.safetensors", 0)
    assert all(torch.equal(pair.theta_a[name], tensor) for name, tensor in before.items())


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "overwritten in place": lambda path: flip(path),
    "overwritten in place, its times set back": lambda path: flip(path, restore=True),
    "replaced by rename": lambda path: flip_beside(path),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 4),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to another": lambda path: (
        flip_beside(path),
        path.rename(path.with_suffix(".other")),
        path.symlink_to(path.with_suffix(".other")),
    ),
}


def flip(path: Path, restore: bool = False) -> None:
    """Change the last byte of a file where it lies."""
    info = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    if restore:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def flip_beside(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    flip(other)
    other.replace(path)


@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors", "data.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_changed_is_named(load: Load, folder: Path, name: str, damage: Callable[[Path], Any]) -> None:
    """Whatever became of a checkpoint or of data after loading, the pair is no longer about what lies there."""
    pair = load()
    pair.require_unchanged()
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: changed after it was loaded") as error:
        pair.require_unchanged()
    assert "\n" not in str(error.value)


def test_calibration_and_specs_count_too(load: Load, folder: Path) -> None:
    """Whatever file the measurement rests on."""
    (folder / "c.safetensors").write_bytes((folder / "data.safetensors").read_bytes())
    pair = load()
    lmccheck.save_spec(lmccheck.discover_symmetry(pair.module, pair.example_inputs()), folder / "spec.toml")
    pair = load(calibration="c.safetensors", symmetry="spec.toml")
    sha256 = hashlib.sha256((folder / "spec.toml").read_bytes()).hexdigest()
    assert pair.description["symmetry"]["sha256"] == sha256
    for name in ("c.safetensors", "spec.toml"):
        whole = (folder / name).read_bytes()
        flip(folder / name)
        with pytest.raises(CheckpointError, match=name):
            pair.require_unchanged()
        (folder / name).write_bytes(whole)
        pair.require_unchanged()  # the same bytes are the same file, whatever their time


def test_a_large_settled_file_is_believed_by_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read again only where they say so; a file changed just before it was read is not trusted."""
    path = tmp_path / "x"
    path.write_bytes(b"before")
    monkeypatch.setattr(disk, "SMALL", 0)
    readings: list[Path] = []
    real = disk.hashed
    monkeypatch.setattr(disk, "hashed", lambda path: readings.append(path) or real(path))
    held = real(path)
    held.require_unchanged()
    assert len(readings) == 1  # young when it was read
    monkeypatch.setattr(disk, "FRESH", 0)
    held = real(path)
    held.require_unchanged()
    assert len(readings) == 1  # settled
    os.utime(path, ns=(0, 0))
    held.require_unchanged()
    held.require_unchanged()
    assert len(readings) == 2  # touched: read once, and found the same
    flip(path)
    with pytest.raises(CheckpointError):
        held.require_unchanged()


def test_a_small_file_is_read_again_whatever_its_times_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What writes through mapped memory need not change them, and reading a few megabytes costs nothing."""
    path = tmp_path / "x"
    path.write_bytes(b"before")
    monkeypatch.setattr(disk, "FRESH", 0)
    held = disk.hashed(path)
    assert held.settled
    flip(path)
    held.stamp = disk.Stamp.of(os.stat(path))  # as if the system had kept no trace
    with pytest.raises(CheckpointError, match="changed after it was loaded"):
        held.require_unchanged()


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of which half are old and half are new are no checkpoint."""
    path = tmp_path / "x.safetensors"
    save_file(SPACE, str(path))
    real = files._tensor

    def writing(file: Any, path: Path, name: str, *rest: Any) -> torch.Tensor:
        if name == "w":
            os.utime(path, ns=(1, 1))
        return real(file, path, name, *rest)

    monkeypatch.setattr(files, "_tensor", writing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        files.read(path)


def test_a_file_that_changes_between_its_header_and_its_tensors(tmp_path: Path) -> None:
    """What was looked at is what must be read, and what was hashed for a pin is."""
    path = tmp_path / "x.safetensors"
    save_file(SPACE, str(path))
    found = look_at(path, tmp_path, "a")
    save_file({"w": torch.zeros(3)}, str(path))
    with pytest.raises(CheckpointError, match="describes other tensors than when it was looked at"):
        found.read()
    found = look_at(path, tmp_path, "a")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path)
    with pytest.raises(CheckpointError, match="changed while it was loaded"):
        found.read()


def test_a_file_is_read_only_once_its_header_fits(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of another model, or data without targets, costs the reading of its header."""
    monkeypatch.setattr(files, "read", lambda *_: pytest.fail("was read"))
    save_file({"inputs": torch.zeros(2, 4)}, str(folder / "other.safetensors"))
    with pytest.raises(lmccheck.SourceError, match="'targets'"):
        load(data="other.safetensors")
    data = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="is unknown to model"):
        load(data=data, model=lambda: torch.nn.Sequential(torch.nn.Linear(4, 6)))


def test_a_pin_may_be_written_in_capitals(load: Load, folder: Path) -> None:
    """Hexadecimal digits are the same number either way; anything else that is no hash is refused as such."""
    sha256 = hashlib.sha256((folder / "a.safetensors").read_bytes()).hexdigest()
    assert any(digit.isalpha() for digit in sha256)
    assert load(sha256={"a": sha256.upper()}).description["files"]["a"]["sha256"] == sha256
    for wrong in (sha256[:-1], sha256 + " ", 3, "0x" + sha256[2:]):
        with pytest.raises(CheckpointError, match="expected 64 hexadecimal digits"):
            load(sha256={"a": wrong})


def test_a_pin_that_pins_nothing_is_refused(load: Load, folder: Path) -> None:
    """A key that names no side, and hashes that are not one for each model, would leave files unpinned unseen."""
    sha256 = hashlib.sha256((folder / "a.safetensors").read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match=r"sha256: got the key 'A'.*'a' and 'b'"):
        load(sha256={"A": sha256})
    given = {"model": "models:mlp", "data": "data.safetensors", "base": folder}
    with pytest.raises(CheckpointError, match=r"sha256: got 1 .*2 models"):
        lmccheck.load_set(["a.safetensors", "b.safetensors"], sha256=[sha256], **given)
