"""Things known by a name: found in their files when they are needed, and in other packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmccheck.errors import LmcError
from lmccheck.registry import Registry

HOME = "from lmccheck.registry import Registry\nTHINGS = Registry('thing', 'PACKAGE', group='PACKAGE')\n"
FILE = "from PACKAGE import THINGS\nTHINGS.add('NAME', 'a thing', __file__)\n"


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry[str]]:
    """A package with a file for each name, and an installed package that offers ``far`` under an entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def things(*names: str, package: str) -> Registry[str]:
        home = tmp_path / package
        home.mkdir()
        (home / "__init__.py").write_text(HOME.replace("PACKAGE", package))
        for name in names:
            (home / f"{name}.py").write_text(FILE.replace("PACKAGE", package).replace("NAME", name))
        (tmp_path / f"other_{package}.py").write_text(FILE.replace("PACKAGE", package).replace("NAME", "far"))
        facts = tmp_path / f"other_{package}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Name: other_{package}\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(f"[{package}]\nfar = other_{package}\n")
        found: Registry[str] = __import__(package).THINGS
        return found

    return things


def test_a_file_is_a_thing(things: Callable[..., Registry[str]]) -> None:
    """Nothing is imported before a name is asked for, and no other package before one is unknown."""
    found = things("near", "middle", package="things_a")
    assert "things_a.near" not in sys.modules
    assert found.get("near") == "a thing"
    assert "other_things_a" not in sys.modules
    assert "far" in found
    assert found.names() == ["far", "middle", "near"]
    assert list(found) == ["a thing"] * 3


def test_an_unknown_name_is_told_the_nearest(things: Callable[..., Registry[str]]) -> None:
    """Names of other packages are known, too."""
    found = things("near", package="things_b")
    with pytest.raises(LmcError) as caught:
        found.get("farr", "lmc.toml")
    assert str(caught.value) == "lmc.toml: thing 'farr': unknown (did you mean 'far'?); expected one of ['far', 'near']"


def test_two_things_of_one_name_are_refused() -> None:
    """Unless it is the same file, imported again."""
    found: Registry[int] = Registry("thing")
    found.add("x", 1, "a.py")
    found.add("x", 2, "a.py")
    with pytest.raises(LmcError, match=r"b\.py: thing 'x' is already declared in a\.py; mend: give it another"):
        found.add("x", 3, "b.py")
    assert found.get("x") == 2


def test_nobody_takes_the_name_of_a_file(things: Callable[..., Registry[str]]) -> None:
    """Whoever comes first: what others add is compared with the package's own files."""
    found = things("near", package="things_c")
    with pytest.raises(LmcError, match=r"conftest\.py: thing 'near' is already declared in .*near\.py"):
        found.add("near", "another", "conftest.py")
    assert found.get("near") == "a thing"


def test_a_file_that_cannot_be_imported_is_one_line_every_time(
    things: Callable[..., Registry[str]], tmp_path: Path
) -> None:
    """Not only at the first look, after which things would be unknown."""
    found = things("near", package="things_d")
    (tmp_path / "things_d" / "broken.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(LmcError, match=r"^things_d\.broken: cannot be imported: ZeroDivisionError: .*mend"):
            found.get("nowhere")
