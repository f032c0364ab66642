"""Code from two folders stays apart, and nothing of it is left in the way of anyone else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lmccheck.data.imports import load_object
from lmccheck.errors import SourceError


def folder(path: Path, answer: int) -> Path:
    """Make a folder whose ``nets.py`` takes its answer from its own ``helper.py``."""
    path.mkdir()
    (path / "helper.py").write_text(f"ANSWER = {answer}\n")
    (path / "nets.py").write_text("from helper import ANSWER\n\n\ndef build():\n    return ANSWER\n")
    return path


def test_two_folders_with_modules_of_the_same_names(tmp_path: Path) -> None:
    """Each folder gets its own nets and its own helper, in any order and again."""
    one, two = folder(tmp_path / "one", 1), folder(tmp_path / "two", 2)
    assert [load_object("nets:build", f, "model")() for f in (one, two, one, two)] == [1, 2, 1, 2]
    assert load_object("nets:build", one, "model") is load_object("nets:build", one, "model")


def test_modules_of_the_users_own_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test suite's own ``nets`` is the same object before and after."""
    suite = folder(tmp_path / "suite", 0)
    monkeypatch.syspath_prepend(str(suite))
    own = importlib.import_module("nets")
    assert load_object("nets:build", folder(tmp_path / "gate", 3), "model")() == 3
    assert sys.modules["nets"] is own
    assert str(tmp_path / "gate") not in sys.path
    for name in ("nets", "helper"):
        del sys.modules[name]


def test_a_module_that_was_imported_from_the_same_folder_is_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conftest beside the manifest and the manifest get one module, not two of one file."""
    suite = folder(tmp_path / "suite", 5)
    monkeypatch.syspath_prepend(str(suite))
    own = importlib.import_module("nets")
    try:
        assert load_object("nets:build", suite, "model") is own.build
        assert sys.modules["nets"] is own
    finally:
        for name in ("nets", "helper"):
            sys.modules.pop(name, None)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """After loading, the folder's modules are not in the way of later imports."""
    load_object("nets:build", folder(tmp_path / "gate", 4), "model")
    assert not {"nets", "helper"} & set(sys.modules)


def test_a_file_named_like_a_module_of_python_is_refused(tmp_path: Path) -> None:
    """``random.py`` beside a manifest would never be found; the line says to rename it."""
    (tmp_path / "random.py").write_text("def build():\n    return 1\n")
    with pytest.raises(SourceError, match="rename your file"):
        load_object("random:build", tmp_path, "model")
