"""What is computed of an object once, and kept as long as the object is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Keeps:
    """An object that keeps what is made of it; a copy by ``replace`` keeps nothing of the original's."""

    _made: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, make: Callable[..., Made], *args: Any) -> Made:
        """Return ``make(self, *args)``, computed at the first call and kept as long as this object is."""
        key = (make, *args)
        if key not in self._made:
            self._made[key] = make(self, *args)
        made: Made = self._made[key]
        return made
