"""Things known by a name, each declared in a file of its own: a package's files are found when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Generic, TypeVar

from lmccheck.errors import LmcError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by name. ``what`` is what one is called; ``package`` holds the files that add some when imported.

    The package's files are imported when a name is first asked for, or added from elsewhere; what installed packages
    offer as entry points of ``group``, when a name is unknown even then, or when all names are listed.
    """

    def __init__(self, what: str, package: str | None = None, group: str | None = None) -> None:
        self.what, self.package, self.group = what, package, group
        self._items: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._done: set[Callable[[str], None]] = set()

    def add(self, name: str, item: T, origin: str) -> None:
        """Add an item. Raises LmcError where something of another ``origin``, a module or a file, has its name."""
        if self.package is not None and self.package.replace(".", "/") not in origin.replace(".", "/"):
            self._read(_import_files, self.package)  # nobody else's may take the name of a built-in
        if self._origins.get(name, origin) != origin:
            raise LmcError(
                f"{origin}: {self.what} {name!r} is already declared in {self._origins[name]}; mend: give it another "
                "name"
            )
        self._items[name], self._origins[name] = item, origin

    def get(self, name: str, where: str = "") -> T:
        """Return an item. Raises LmcError, beginning with ``where``, for an unknown name."""
        if name not in self:
            near = nearest(name, self._items) if isinstance(name, str) else ""
            prefix = f"{where}: " if where else ""
            raise LmcError(f"{prefix}{self.what} {name!r}: unknown{near}; expected one of {self.names()}")
        return self._items[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._read(_import_files, self.package)
        self._read(_import_installed, self.group)
        return sorted(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter([self._items[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            self._read(_import_files, self.package)
        if name not in self._items:
            self._read(_import_installed, self.group)
        return name in self._items

    def _read(self, source: Callable[[str], None], name: str | None) -> None:
        """Import what a source has, once; where it fails, again at the next call, so that it is said again."""
        if name is None or source in self._done:
            return
        self._done.add(source)
        try:
            source(name)
        except LmcError:
            self._done.discard(source)
            raise


def _import_files(package: str) -> None:
    from pkgutil import iter_modules  # like what follows, needed by few runs

    for module in iter_modules(import_module(package).__path__):
        _import(f"{package}.{module.name}", partial(import_module, f"{package}.{module.name}"))


def _import_installed(group: str) -> None:
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    for entry in entry_points(group=group):
        _import(f"entry point {entry.name!r} of {group}", entry.load)


def _import(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except LmcError:
        raise
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        raise LmcError(f"{what}: cannot be imported: {type(error).__name__}: {said}; mend: correct it") from error
