"""The alignment methods, one file each: a file here that declares one by ``@method`` is all that adding one takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lmccheck.alignment.contract import Method, Problem
from lmccheck.errors import LmcError
from lmccheck.registry import Registry

Run = TypeVar("Run", bound=Method)
NEEDS = ("calibration", "traced")


@dataclass(frozen=True)
class Declared:
    """A method as its file declares it.

    ``needs``: some of ``calibration`` (data) and ``traced`` (network), or none. ``source``: who it is by. ``start``:
    its place among those that ``learned`` begins from and ``best`` compares, of which the first wins where barriers are
    equal; None where it is none of them.
    """

    name: str
    run: Method
    needs: tuple[str, ...] = ()
    source: str = ""
    start: int | None = None

    @property
    def description(self) -> str:
        """The first line of its docstring."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]

    def require(self, problem: Problem) -> None:
        """Raise UnsupportedArchitecture or SourceError where the problem lacks what the method needs."""
        if "traced" in self.needs:
            problem.traced(self.name)
        if "calibration" in self.needs:
            problem.calibration(self.name)


METHODS = Registry[Declared]("method", __name__)
INNER = Registry[Declared]("method", __name__)  # tried by other methods, not chosen by name


def method(
    name: str, *, needs: tuple[str, ...] = (), source: str = "", start: int | None = None, inner: bool = False
) -> Callable[[Run], Run]:
    """Register the decorated function as the method of that name; an ``inner`` one is only tried by others."""

    if not isinstance(needs, tuple) or not set(needs) <= set(NEEDS):
        raise LmcError(f"method {name!r}: needs = {needs!r}; expected a tuple of some of {list(NEEDS)}")

    def register(run: Run) -> Run:
        (INNER if inner else METHODS).add(name, Declared(name, run, needs, source, start), run.__module__)
        return run

    return register


def declared(name: str) -> Declared:
    """Return a method by its name, inner ones included. Raises LmcError for an unknown one."""
    return INNER.get(name, "align") if name in INNER else METHODS.get(name, "align")


def starts() -> tuple[str, ...]:
    """Return the names of the methods that ``learned`` begins from and ``best`` compares, in their order."""
    both = [declared(name) for names in (INNER.names(), METHODS.names()) for name in names]
    placed = sorted((found.start, found.name) for found in both if found.start is not None)
    return tuple(name for _, name in placed)
