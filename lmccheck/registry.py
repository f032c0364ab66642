"""Things known by a name, each declared in a file of its own: a package's files are found when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from lmccheck.errors import LmcError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by name. ``what`` is what one is called; ``package`` holds the files that add some when imported.

    The package's files are imported when a name is first asked for; what other installed packages offer under the entry
    point ``group``, when a name is unknown even then, or when all names are listed.
    """

    def __init__(self, what: str, package: str | None = None, group: str | None = None) -> None:
        self.what = what
        self._items: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._sources: list[Callable[[], None]] = []  # not looked at yet
        if package is not None:
            self._sources.append(lambda: _import_files(package))
        if group is not None:
            self._sources.append(lambda: _import_installed(group))

    def add(self, name: str, item: T, origin: str = "") -> None:
        """Add an item. Raises LmcError where something of another ``origin``, such as a file, has its name."""
        if self._origins.get(name, origin) != origin:
            raise LmcError(
                f"{origin}: {self.what} {name!r} is already declared in {self._origins[name]}; mend: rename one of them"
            )
        self._items[name], self._origins[name] = item, origin

    def get(self, name: str, where: str = "") -> T:
        """Return an item. Raises LmcError, beginning with ``where``, for an unknown name."""
        if name not in self:
            near, valid = nearest(str(name), self._items), self.names()
            raise LmcError(f"{where}{': ' * bool(where)}{self.what} {name!r}: unknown{near}; expected one of {valid}")
        return self._items[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        while self._sources:
            self._sources.pop(0)()
        return sorted(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter([self._items[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        while name not in self._items and self._sources:
            self._sources.pop(0)()
        return name in self._items


def _import_files(package: str) -> None:
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")


def _import_installed(group: str) -> None:
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    for entry in entry_points(group=group):
        entry.load()
