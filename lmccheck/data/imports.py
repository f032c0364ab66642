"""Importing the user's code from a manifest's folder without mixing it with anyone else's.

Two folders may each have a ``models.py`` and a ``helper.py``. While a folder's code is imported, called or run, modules
of the same names from elsewhere are set aside; afterwards everything is put back as it was and the folder's modules are
kept for its next turn. To imports of what is run the folder comes after what is installed, to all others first.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any, TypeVar

from lmccheck.errors import SourceError, nearest, shown_path

Made = TypeVar("Made")
_INSTALLED = {"site-packages", "dist-packages"}
_OURS = {"__main__", "lmccheck"}  # which a folder may have as well, and nobody imports again
_kept: dict[Path, dict[str, ModuleType]] = {}
_turns: list[Path] = []  # whose modules are the ones that are imported, the innermost last


def load_object(reference: str, folder: Path | None, what: str) -> Any:
    """Return the object behind ``"pkg.mod:name"``, imported with ``folder`` importable. Raises SourceError."""
    name, colon, attribute = reference.partition(":")
    if not colon or not name or not attribute:
        raise SourceError(
            f"{what} {reference!r}: expected 'module:name', for example 'models:build'; mend: name both parts"
        )
    if (
        folder is not None
        and name.partition(".")[0] in sys.stdlib_module_names
        and _has(folder, name.partition(".")[0])
    ):
        raise SourceError(f"{what} {reference!r}: {name} is a module of Python itself; mend: rename your file")
    with importable(folder):
        value: Any = _import(name, folder, f"{what} {reference!r}")
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise SourceError(
                    f"{what} {reference!r}: {name} has no {part!r}{nearest(part, dir(value))}; mend: correct the name"
                )
            value = getattr(value, part)
    return value


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Make ``folder``'s modules importable, and only its own where names clash, for as long as the context lasts."""
    if folder is None:
        yield
        return
    folder = folder.resolve()
    with running_in(folder):
        sys.path.insert(0, str(folder))
        try:
            yield
        finally:
            if str(folder) in sys.path:
                sys.path.remove(str(folder))


@contextmanager
def running_in(folder: Path | None) -> Iterator[None]:
    """Run what was imported with ``folder`` importable: what it imports by then is the folder's own where names clash.

    Names of Python's and of what is installed stay theirs: libraries are imported meanwhile, too.
    """
    folder = None if folder is None else folder.resolve()
    if folder is None or _turns[-1:] == [folder]:
        yield
        return
    own = _kept.setdefault(folder, {})
    there = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()  # looked up once, not per module
    hidden = {root for root in there & sys.modules.keys() if _shadows(root, folder)}
    aside = _of_roots(hidden)
    for name in aside:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in own.items() if name not in sys.modules})
    mine = {_root(name) for name in own}
    before = sys.modules.copy()
    importlib.invalidate_caches()
    finder = _Own(folder)
    sys.meta_path.insert(0, finder)
    _turns.append(folder)
    try:
        yield
    finally:
        _turns.pop()
        sys.meta_path.remove(finder)
        new = {_root(name) for name in list(sys.modules) if name not in before}
        new = new.difference(map(_root, before)) if new else new  # of what was there before no part is taken
        for name in [*_of_roots(new | mine)]:
            if _lies_in(sys.modules[name], folder):
                own[name] = sys.modules.pop(name)
        sys.modules.update(aside)


class _Own(MetaPathFinder):
    """Finds the modules of a folder by names that neither Python nor anything installed has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or name in sys.stdlib_module_names or not _has(self._folder, name):
            return None
        installed = PathFinder.find_spec(name, [each for each in sys.path if _INSTALLED & set(Path(each).parts)])
        if installed is not None and installed.origin is not None:
            return None
        return PathFinder.find_spec(name, [str(self._folder)])


def imported_anew(folder: Path | None, make: Callable[[], Made]) -> Made:
    """Return what ``make`` does with a folder's modules imported again, or as they are where that fails.

    For a process that ends afterwards: two copies of a module may have got into one another's way.
    """
    if folder is None:
        return make()
    folder = folder.resolve()
    mine = [name for name, module in list(sys.modules.items()) if _root(name) not in _OURS and _lies_in(module, folder)]
    before = _kept.pop(folder, {}), {name: sys.modules.pop(name) for name in mine}
    try:
        return make()
    except Exception:
        _kept[folder] = before[0]
        sys.modules.update(before[1])
        return make()


def imported() -> list[ModuleType]:
    """Return all modules that are imported, those that folders keep until their next turn among them."""
    found = [*sys.modules.values(), *(module for own in _kept.values() for module in own.values())]
    return [module for module in found if isinstance(module, ModuleType)]


def _root(name: str) -> str:
    return name.partition(".")[0]


def _of_roots(roots: set[str]) -> dict[str, ModuleType]:
    """Return the loaded modules of some packages; there are thousands of modules, and mostly none is asked for."""
    if not roots:
        return {}
    beginnings = tuple(f"{root}." for root in roots)
    names = [name for name in list(sys.modules) if name in roots or name.startswith(beginnings)]
    return {name: sys.modules[name] for name in names}


def _shadows(root: str, folder: Path) -> bool:
    """Whether a loaded module of the user's hides one that ``folder`` has; installed libraries are never set aside."""
    if root in sys.stdlib_module_names or not _has(folder, root) or _lies_in(sys.modules[root], folder):
        return False
    file = getattr(sys.modules[root], "__file__", None)
    return file is None or not _INSTALLED & set(Path(file).parts)


def _has(folder: Path, root: str) -> bool:
    return (folder / f"{root}.py").is_file() or (folder / root / "__init__.py").is_file()


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is one of a folder's own; what is installed there, in an environment, is none of them."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not Path(file).resolve().is_relative_to(folder):
        return False
    return not _INSTALLED & set(Path(file).resolve().relative_to(folder).parts)


def _import(name: str, folder: Path | None, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SystemExit as error:
        raise SourceError(
            f"{what}: importing {name} ended the program ({say(error)}); mend: guard it by __main__"
        ) from None
    except ModuleNotFoundError as error:
        if error.name in (name, name.partition(".")[0]):
            where = f" in {folder} or on the path" if folder else " on the path"
            raise SourceError(
                f"{what}: no module {error.name!r}{where}; mend: correct the name or install it"
            ) from None
        raise SourceError(
            f"{what}: importing {name} needs {error.name!r}, which is not installed; mend: install it"
        ) from error
    except Exception as error:
        raise SourceError(f"{what}: importing {name} raised {say(error)}; mend: make 'import {name}' work") from error


def say(error: BaseException) -> str:
    """Return an exception's type, the first line of its text, and where in the user's code it came from."""
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}: {error.message}: {say(error.exceptions[0])}"
    text = text_of(error).splitlines()
    said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return said + place(error)


def text_of(error: BaseException) -> str:
    """Return an exception's text, also where the code that makes it fails."""
    try:
        return str.strip(str(error))  # of a type of the user's, it may be anything
    except (Exception, SystemExit) as failed:
        return f"(its text could not be made: {type(failed).__name__})"


def takes_nothing(call: Callable[..., Any]) -> bool:
    """Whether something can be called without arguments, as far as it says."""
    try:
        inspect.signature(call).bind()
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def out_of_memory(error: BaseException) -> str | None:
    """Return what is said of memory that was asked for and is not there, with the mend; None for other errors."""
    text = text_of(error)
    lacking = "not enough memory", "can't allocate memory", "out of memory"
    if not isinstance(error, MemoryError) and not any(words in text.lower() for words in lacking):
        return None
    asked = re.search(r"(?:allocate|allocation of) (\d[\d.]*) ?(bytes|[KMGTP]i?B)", text)
    size = "more" if asked is None else f"{asked[1]} {asked[2]}"
    if asked is not None and asked[2] == "bytes":
        size = f"{int(float(asked[1])):,} bytes ({float(asked[1]) / 2**30:.3g} GiB)"
    return (
        f"out of memory: {size} asked for{place(error)}; mend: give fewer or shorter samples, data in smaller batches "
        "of its own, or another device"
    )


def place(error: BaseException) -> str:
    """Return ``" (models.py:22)"``, the innermost line of the user's own code that an exception passed, or nothing."""
    where = None
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        where = error.filename, error.lineno
    for frame, line in walk_tb(error.__traceback__):
        if _is_users(frame.f_code.co_filename):
            where = frame.f_code.co_filename, line
    return "" if where is None else f" ({shown_path(where[0])}:{where[1]})"


@cache
def _is_users(file: str) -> bool:
    """Whether a line is of the user's: of a file, neither of lmccheck nor of what is installed."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = str(Path(__file__).parent.parent)
    path = os.path.abspath(file)
    library = path.startswith(tuple(each + os.sep for each in (*installed, own))) or "site-packages" in path
    return os.path.isfile(path) and not library


def input_files(folder: Path, *named: Any) -> list[Path]:
    """Return the files behind what a user names, those that exist: paths, and the modules of ``"pkg.mod:name"``."""
    found = []
    for each in named:
        if not isinstance(each, (str, os.PathLike)):
            continue
        parts = os.fspath(each).partition(":")[0].split(".") if isinstance(each, str) and ":" in each else []
        modules = [folder.joinpath(*parts[: k + 1]) for k in range(len(parts))]
        files = [folder / each, *(path.with_suffix(".py") for path in modules), *(m / "__init__.py" for m in modules)]
        found += [file for file in files if file.is_file()]
    return found


def label(value: Any) -> str:
    """Return what messages call a source: its text, or the name of the object."""
    return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__)
