"""What laws of merging are tried on, and what is found where one is broken: an entry that rounding does not explain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmccheck.merging.rounding import Rounding, strays
from lmccheck.store.compare import difference, shown_apart

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

Make = Callable[["Setting"], "Made"]
Act = Callable[["Checkpoint"], "Checkpoint"]
Explained = Callable[["Tensor", "Tensor", "list[Tensor]"], "Tensor"]  # of got, expected and sources, by entry


@dataclass(frozen=True)
class Made:
    """A merge that was made, and what its recipe said of it."""

    checkpoint: Checkpoint
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a merge is made of. ``weights`` None: those that the recipe says itself."""

    parents: Mapping[str, Checkpoint]
    base: Checkpoint | None = None
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Trial:
    """A merge and what its laws are tried on.

    ``make`` makes it. ``weighted``: whether its weights can be given. ``act`` lets a permutation of the network's units
    act on a checkpoint; None where there is none. ``dtype``: that of all floating tensors, where it was promised.
    ``buffers``: floating tensors that nothing learns; None where that is not known. ``layout``: whether the merge is
    to have its parents' names and shapes. ``most``: how many parents are taken one by one. ``once``: whether sums are
    made in float64 and rounded once.
    """

    make: Make
    setting: Setting
    weighted: bool = False
    act: Act | None = None
    dtype: str | None = None
    buffers: frozenset[str] | None = None
    layout: bool = True
    most: int = 100
    once: bool = False

    def given(self, made: Made) -> Trial:
        """Return the trial, which need not make the merge itself."""
        object.__setattr__(self, "made", made)
        return self

    def merged(self) -> Made:
        """Return the merge, made at the first look."""
        if "made" not in self.__dict__:
            object.__setattr__(self, "made", self.make(self.setting))
        made: Made = self.__dict__["made"]
        return made


@dataclass(frozen=True)
class Broken:
    """A law that does not hold: of which tensor, at which entry, what was got and what is expected, or in words."""

    law: str
    said: str
    tensor: str | None = None
    index: tuple[int, ...] = ()
    got: float = math.nan
    expected: float = math.nan
    apart: float = math.nan
    allowed: float = 0.0

    @property
    def words(self) -> str:
        """The law, and where it does not hold.

        >>> Broken("unit", "M({x: 1}) ≠ x", "w", (0,), 2.0, 1.0, 1.0, 1e-7).words
        "unit: M({x: 1}) ≠ x: tensor 'w' (0,): got 2, expected 1, apart 1 (rounding explains 1e-07)"
        """
        if math.isnan(self.apart):
            return f"{self.law}: {self.said}"
        got, expected = shown_apart(self.got, self.expected)
        return (
            f"{self.law}: {self.said}: tensor {self.tensor!r} {self.index}: got {got}, expected {expected}, apart "
            f"{self.apart:.4g} (rounding explains {self.allowed:.2g})"
        )


def in_place_of(content: Checkpoint, original: Checkpoint) -> Checkpoint:
    """Return a checkpoint that a recipe takes for ``original``, of whose files it is, and that holds other numbers."""
    return replace(content, files=original.files, path=None, digest=None, digests=None, lies={})


def sources_of(setting: Setting) -> list[Checkpoint]:
    """Return all that a merge is made of."""
    return [*setting.parents.values(), *base_of(setting)]


def base_of(setting: Setting) -> list[Checkpoint]:
    """Return the base, if there is one."""
    return [] if setting.base is None else [setting.base]


def rounding_of(trial: Trial) -> Rounding:
    """Return how the trial's merges are rounded, by what their recipe says."""
    facts = trial.merged().facts
    weights = facts.get("weights") or trial.setting.weights or {}
    size = max(1.0, math.fsum(abs(weight) for weight in weights.values()))  # Σ |w|, by which roundings grow
    return Rounding(trial.once, bool(facts.get("products")), size)


def compared(
    law: str, said: str, made: Made, expected: Checkpoint, sources: Iterable[Checkpoint], explained: Explained
) -> Broken | None:
    """Return the entry of the first tensor that has one further from the expected than rounding explains."""
    sources = list(sources)
    for name in expected.tensors:
        if name not in made.checkpoint.tensors or made.checkpoint.tensors[name].shape != expected.tensors[name].shape:
            return Broken(law, f"{said}: it has no tensor {name!r} of shape {expected.tensors[name].shape}")
        every = [one.get(name) for one in sources if name in one.tensors]
        got, wanted = made.checkpoint.get(name), expected.get(name)
        if not got.is_floating_point():
            continue  # which of the parents' integers it takes is its own matter
        if difference(name, got, wanted) is None:
            continue
        if found := unlike(law, said, name, got, wanted, explained(got, wanted, every)):
            return found
    return None


def unlike(law: str, said: str, name: str, got: Tensor, expected: Tensor, allowed: Tensor) -> Broken | None:
    """Return the entry that is furthest beyond what rounding explains in it, or None."""
    off = _apart(got, expected)
    over = (off - allowed.nan_to_num(posinf=0.0)).reshape(-1)
    if not bool((over > 0).any()):
        return None
    return _at(int(over.argmax()), law, said, name, (got, expected, off, allowed))


def astray(
    law: str, said: str, name: str, got: Tensor, expected: Tensor, terms: list[tuple[float, Tensor]], allowed: Tensor
) -> Broken | None:
    """Return the entry of a sum that is furthest off, where all together stray further than roundings do, or None."""
    along = strays(got, expected, terms, allowed)
    if along is None:
        return None
    off = _apart(got, expected)
    said = f"{said}, over all entries of a tensor, whose roundings cancel"
    return _at(int((off * along.abs()).argmax()), law, said, name, (got, expected, off, allowed))


def _apart(got: Tensor, expected: Tensor) -> Tensor:
    import torch

    off = (got.double() - expected.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return off.masked_fill((got.double() == expected.double()) | (got.isnan() & expected.isnan()), 0.0)


def _at(at: int, law: str, said: str, name: str, shown: tuple[Tensor, ...]) -> Broken:
    import torch

    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), shown[0].shape))
    return Broken(law, said, name, index, *(float(one.reshape(-1)[at]) for one in shown))
