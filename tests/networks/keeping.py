"""Networks that keep what they computed from weights, or hold weights twice; each computes what ``Plain`` computes.

``plain`` is the independent oracle: the same function written without anything kept. ``KEEPING`` are networks that
a freshly loaded module of computes exactly that; every one must be measured right, or refused.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[], nn.Module]
KEEPING: dict[str, Build] = {}


def keeping(build: Build) -> Build:
    """Register a network that keeps or aliases something."""
    KEEPING[build.__name__] = build
    return build


class Plain(nn.Module):
    """x ↦ B·(tanh(A·x)·gain), the gain normalised: what all of these compute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def effective(self) -> Tensor:
        return F.normalize(self.gain, dim=0) * 3

    def kept(self) -> Tensor:
        return self.effective()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * self.kept())


def plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return what ``Plain`` computes, by hand."""
    gain = 3 * state["gain"] / state["gain"].norm()
    return (x @ state["a.weight"].T + state["a.bias"]).tanh() * gain @ state["b.weight"].T + state["b.bias"]


def state(seed: int) -> dict[str, Tensor]:
    """Return weights of ``Plain`` in which nothing is as it was built."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in Plain().state_dict().items()}


@keeping
class InNamespace(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c = types.SimpleNamespace(kept=None)

    def kept(self) -> Tensor:
        if self.c.kept is None:
            self.c.kept = self.effective().detach()
        return self.c.kept


class Cache:
    """As nflows' LinearCache: an object with slots of its own."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[Any] = [{"deep": deque()}]


@keeping
class InDeepObject(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c = Cache()

    def kept(self) -> Tensor:
        queue = self.c.items[0]["deep"]
        if not queue:
            queue.append(self.effective().detach())
        return queue[0]


@keeping
class InCachedProperty(Plain):
    @functools.cached_property
    def once(self) -> Tensor:
        return self.effective().detach()

    def kept(self) -> Tensor:
        return self.once


@keeping
class InMethodCache(Plain):
    @functools.cache  # noqa: B019  # what is to be seen through
    def kept(self) -> Tensor:
        return self.effective().detach()


@functools.lru_cache
def _by_width(width: int) -> list[Tensor]:
    return []


@keeping
class InFunctionCache(Plain):
    def kept(self) -> Tensor:
        held = _by_width(8)
        if not held:
            held.append(self.effective().detach())
        return held[0]


_BY_MODULE: Any = weakref.WeakKeyDictionary()


@keeping
class InWeakDictionary(Plain):
    def kept(self) -> Tensor:
        return _BY_MODULE.setdefault(self, self.effective().detach())


BY_IDENTITY: dict[Any, Any] = {}  # what one network leaves behind, another may be taken to have put there


@keeping
class InDictionaryByIdentity(Plain):
    """Whose id another module has as soon as it is gone."""

    def kept(self) -> Tensor:
        found: Tensor = BY_IDENTITY.setdefault(id(self), self.effective().detach())
        return found


@keeping
class InDictionaryByIdentityAndName(Plain):
    def kept(self) -> Tensor:
        if (id(self.a), "gain") not in BY_IDENTITY:
            BY_IDENTITY[id(self.a), "gain"] = self.effective().detach()
        found: Tensor = BY_IDENTITY[id(self.a), "gain"]
        return found


LENGTHS: dict[int, float] = {}


@keeping
class NumberByIdentity(Plain):
    def kept(self) -> Tensor:
        if id(self) not in LENGTHS:
            LENGTHS[id(self)] = float(self.gain.detach().norm())
        return self.gain * (3 / LENGTHS[id(self)])


@keeping
class InOwnDictionaryByIdentity(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}

    def kept(self) -> Tensor:
        if id(self.a) not in self.found:
            self.found[id(self.a)] = self.effective().detach()
        return self.found[id(self.a)]


_BY_NAME: dict[str, Tensor] = {}


@keeping
class InGlobalDictionary(Plain):
    def kept(self) -> Tensor:
        return _BY_NAME.setdefault("gain", self.effective().detach())


_ONE: Tensor | None = None


@keeping
class InGlobalVariable(Plain):
    def kept(self) -> Tensor:
        global _ONE  # what is to be refused
        if _ONE is None:
            _ONE = self.effective().detach()
        return _ONE


@keeping
class InClassAttribute(Plain):
    held: Tensor | None = None

    def kept(self) -> Tensor:
        if InClassAttribute.held is None:
            InClassAttribute.held = self.effective().detach()
        return InClassAttribute.held


@keeping
class InDefaultArgument(Plain):
    def kept(self, held: list[Tensor] = []) -> Tensor:  # noqa: B006  # what is to be refused
        if not held:
            held.append(self.effective().detach())
        return held[0]


@keeping
class ByParameterId(Plain):
    table: dict[int, Tensor] = {}  # noqa: RUF012  # what is to be refused

    def kept(self) -> Tensor:
        return self.table.setdefault(self.gain.data_ptr(), self.effective().detach())


@keeping
class InClosure(Plain):
    def __init__(self) -> None:
        super().__init__()
        held: list[Tensor] = []

        def kept() -> Tensor:
            if not held:
                held.append(self.effective().detach())
            return held[0]

        self.get = kept

    def kept(self) -> Tensor:
        return self.get()


@keeping
class AtEvaluation(Plain):
    c: Tensor | None = None

    def train(self, mode: bool = True) -> Any:
        self.c = None if mode else self.effective().detach()
        return super().train(mode)

    def kept(self) -> Tensor:
        return self.effective() if self.c is None else self.c


@keeping
class PostHook(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", self.effective().detach(), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, keys: module.refresh())

    def refresh(self) -> None:
        self.held = self.effective().detach()

    def kept(self) -> Tensor:
        return self.held


@keeping
class OwnLoading(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.held = torch.ones(8)

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self.held = self.effective().detach()

    def kept(self) -> Tensor:
        return self.held.to(self.gain)


@keeping
class Forked(Plain):
    """The weights are read through another module in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.others = [nn.Linear(5, 8)]
        self.others[0].weight, self.others[0].bias = self.a.weight, self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.others[0](x)) * self.effective())


@keeping
class Alias(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.gain.detach()

    def kept(self) -> Tensor:
        return F.normalize(self.scale, dim=0) * 3


@keeping
class ListAlias(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.held = {"deep": [types.SimpleNamespace(gain=self.gain)]}

    def kept(self) -> Tensor:
        return F.normalize(self.held["deep"][0].gain, dim=0) * 3


@keeping
class ViewAlias(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.halves = self.gain.detach()[:4], self.gain.detach()[4:]

    def kept(self) -> Tensor:
        return F.normalize(torch.cat(self.halves), dim=0) * 3


@keeping
class ClosureAlias(Plain):
    def __init__(self) -> None:
        super().__init__()
        gain = self.gain
        self.get = lambda: F.normalize(gain, dim=0) * 3

    def kept(self) -> Tensor:
        return self.get()


@keeping
class NumpyAlias(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.held = self.gain.detach().numpy()

    def kept(self) -> Tensor:
        return F.normalize(torch.from_numpy(self.held).to(self.gain), dim=0) * 3


@keeping
class HookOfItself(Plain):
    """A forward hook that writes to the module it was made in, by a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None
        self.a.register_forward_hook(lambda module, given, output: setattr(self, "seen", output))

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        assert self.seen is not None
        return self.b(torch.tanh(self.seen) * self.effective())


NUMBERS: dict[str, float] = {}


@keeping
class NumberByName(Plain):
    def kept(self) -> Tensor:
        return self.gain * (3 / NUMBERS.setdefault("gain", float(self.gain.detach().norm())))


_LENGTH = 0.0


@keeping
class NumberInVariable(Plain):
    def kept(self) -> Tensor:
        global _LENGTH  # what is to be refused
        if not _LENGTH:
            _LENGTH = float(self.gain.detach().norm())
        return self.gain * (3 / _LENGTH)


@keeping
class NumberInClass(Plain):
    length: float | None = None

    def kept(self) -> Tensor:
        kind = type(self)
        if kind.length is None:
            kind.length = float(self.gain.detach().norm())
        return self.gain * (3 / kind.length)


@keeping
class TensorOfOneNumber(Plain):
    held: dict[str, Any] = {"deep": types.SimpleNamespace(length=None)}  # noqa: RUF012  # what is to be refused

    def kept(self) -> Tensor:
        place = self.held["deep"]
        if place.length is None:
            place.length = self.gain.detach().norm()
        return self.gain * (3 / place.length)


def _remembering() -> Callable[[Tensor], float]:
    length = None

    def of(gain: Tensor) -> float:
        nonlocal length
        if length is None:
            length = float(gain.detach().norm())
        return length

    return of


_LENGTH_OF = _remembering()


@keeping
class NumberInClosure(Plain):
    def kept(self) -> Tensor:
        return self.gain * (3 / _LENGTH_OF(self.gain))


@functools.lru_cache
def _lengths(width: int) -> list[float]:
    return []


@keeping
class NumberInFunctionCache(Plain):
    def kept(self) -> Tensor:
        held = _lengths(8)
        if not held:
            held.append(float(self.gain.detach().norm()))
        return self.gain * (3 / held[0])


_WIDE: dict[str, Tensor] = {}


@keeping
class OfLargeBatches(Plain):
    """What is kept outside is made, and used, for batches of more than two samples only."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.effective()
        if len(x) > 2:
            gain = _WIDE.setdefault("gain", gain.detach())
        return self.b(torch.tanh(self.a(x)) * gain)


@keeping
class NumberWithFlag(Plain):
    """A number of the module's own that a flag guards."""

    def __init__(self) -> None:
        super().__init__()
        self.ready, self.norm = False, -1.0

    def kept(self) -> Tensor:
        if not self.ready:
            self.norm, self.ready = float(self.gain.detach().norm()), True
        return self.gain * (3 / self.norm)


@keeping
class LazyBuffer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", None, persistent=False)

    def kept(self) -> Tensor:
        if self.held is None:
            self.held = self.effective().detach()
        return self.held


@keeping
class NumberKept(Plain):
    """The norm is kept as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm: dict[str, float] = {}

    def kept(self) -> Tensor:
        if "gain" not in self.norm:
            self.norm["gain"] = float(self.gain.detach().norm())
        return self.gain * (3 / self.norm["gain"])
