"""What a room has many of, by name: each kind in a file of its own, found without being listed anywhere."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from lmccheck.errors import LmcError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Items by name, in the order of their files; ``package`` is searched for them at the first look.

    ``what`` names the kind of item in messages: ``alignment method``.
    """

    def __init__(self, what: str, package: str | None = None) -> None:
        self.what = what
        self._package = package
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register an item and return it. Raises LmcError for a name that is taken."""
        if self._items.setdefault(name, item) is not item:
            raise LmcError(f"{self.what} {name!r}: the name is taken; mend: choose another")
        return item

    def find(self, name: object, where: str) -> T:
        """Return an item; raise LmcError, beginning with ``where``, for a name that there is not."""
        items = self._found()
        if not isinstance(name, str) or name not in items:
            near = nearest(name, items) if isinstance(name, str) else ""
            raise LmcError(f"{where}: unknown {self.what} {name!r}{near}; expected one of {sorted(items)}")
        return items[name]

    def __getitem__(self, name: str) -> T:
        return self._found()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def _found(self) -> dict[str, T]:
        """Import every file of the package once, in order of their names."""
        package, self._package = self._package, None
        if package is not None:
            for module in pkgutil.iter_modules(import_module(package).__path__):
                import_module(f"{package}.{module.name}")
        return self._items
