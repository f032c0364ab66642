"""Code from two folders stays apart, and nothing of it is left in the way of anyone else."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from lmccheck.data.imports import imported_anew, load_object, running_in
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


def test_what_is_run_later_imports_its_own_folders_modules(tmp_path: Path) -> None:
    """An import inside of a function finds the folder's file, also after another folder's of the same name was found,
    and where its folder was left on the path."""
    found = []
    for k in (1, 2):
        path = folder(tmp_path / str(k), k)
        (path / "late.py").write_text(
            f"import sys\nsys.path.insert(0, {str(path)!r})\n\n"
            "def answer():\n    from helper import ANSWER\n    return ANSWER, sys.modules[__name__].answer is answer\n"
        )
        found.append((path, load_object("late:answer", path, "model")))
    try:
        for path, answer in (*found, *found):
            with running_in(path):
                assert answer() == (int(path.name), True)
    finally:
        for path, _ in found:
            sys.path.remove(str(path))
    assert not {"helper", "late"} & set(sys.modules)


def test_while_code_runs_libraries_are_the_installed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files called like modules of Python's or like an installed one hide neither; what nobody else has is found."""
    library = tmp_path / "lib" / "site-packages"
    for path in (tmp_path / "gate", library):
        path.mkdir(parents=True)
        for name in ("wanted", "this"):
            (path / f"{name}.py").write_text(f"WHERE = {str(path)!r}\n")
    (library / "this.py").unlink()
    (tmp_path / "gate" / "lonely.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(library)])
    with running_in(tmp_path / "gate"):
        assert str(library) == importlib.import_module("wanted").WHERE
        assert importlib.util.find_spec("this").origin != str(tmp_path / "gate" / "this.py")  # type: ignore[union-attr]
        assert importlib.import_module("lonely")
    assert "lonely" not in sys.modules
    del sys.modules["wanted"]


def test_what_is_installed_inside_of_the_folder_stays_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment beside the manifest: its libraries are everybody's, not imported a second time."""
    library = tmp_path / ".venv" / "lib" / "site-packages"
    library.mkdir(parents=True)
    (library / "shared_library.py").write_text("")
    (tmp_path / "nets.py").write_text("import shared_library\n\n\ndef build():\n    return shared_library\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(library)])
    module = load_object("nets:build", tmp_path, "model")()
    assert sys.modules.pop("shared_library") is module
    assert "nets" not in sys.modules


def test_modules_are_imported_anew_or_stay_as_they_are(tmp_path: Path) -> None:
    """What is kept in a file is forgotten; a file that can be imported only once is used as it is."""
    path = folder(tmp_path / "one", 1)
    (path / "once.py").write_text(
        "import sys\nif hasattr(sys, '_met'):\n    raise ImportError('twice')\nsys._met = True\n\nANSWER = 1\n"
    )
    first = load_object("nets:build", path, "model")
    assert imported_anew(path, lambda: load_object("nets:build", path, "model")) is not first
    assert imported_anew(None, lambda: 3) == 3
    try:
        assert load_object("once:ANSWER", path, "model") == 1
        assert imported_anew(path, lambda: load_object("once:ANSWER", path, "model")) == 1
    finally:
        del sys._met  # type: ignore[attr-defined]
