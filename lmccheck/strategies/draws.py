"""Strategies for Hypothesis: each choice is ordered so that what is simpler, and fewer, comes first when shrinking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hypothesis import strategies as st

from lmccheck.errors import LmcError, nearest
from lmccheck.strategies.dyadic import BITS, beside_half
from lmccheck.strategies.losses import DROPS, Measurements, title
from lmccheck.strategies.values import DroppedUnits, PermutedUnits, Rows, WeightNoise

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Hypothesis draws, now and then, a constant that it read in the user's own modules: what is drawn would depend on what
# is imported. Nobody's modules hold integers as from here on.
FAR = 0x5EED_0F_D7AD1C5
BLOCKS = 256  # at most so many choices say which units are dropped
FINE = 4  # of so many draws all but one are as fine as can be
SEEDS = 1 << 16
SIZES = 64  # sizes of noise
SIXTEENTHS = 16  # of which weights are made

_FIXTURE: ContextVar[Callable[[str], Any] | None] = ContextVar("lmccheck fixture", default=None)


@contextmanager
def fixtures(value: Callable[[str], Any]) -> Iterator[None]:
    """Let strategies that are bound to a fixture's name find it, while a test runs."""
    token = _FIXTURE.set(value)
    try:
        yield
    finally:
        _FIXTURE.reset(token)


def bound(on: Any, what: str, kinds: Sequence[str]) -> Any:
    """Return what a strategy is bound to. Raises LmcError where the strategy means nothing for it."""
    if isinstance(on, str):
        value = _FIXTURE.get()
        if value is None:
            raise LmcError(
                f"{what}({on!r}): a fixture's name is known in a pytest test only; mend: give the pair itself"
            )
        on = value(on)
    kind = getattr(on, "kind", None)
    if kind not in kinds:
        got = {"widths": "a pair of two widths", "endpoint": "an endpoint"}.get(str(kind))
        got = got or (title(on) if kind in ("pair", "model", "set", "merge") else type(on).__name__)
        raise LmcError(f"{what}: got {got}, expected a {' or a '.join(kinds)}, or the name of a fixture that is one")
    return on


def below(most: int) -> st.SearchStrategy[int]:
    """Integers from 0 to ``most`` − 1, the same ones for a seed whatever is imported."""
    return st.integers(FAR, FAR + most - 1).map(lambda number: number - FAR)


@st.composite
def t_of(draw: Draw, bits: int) -> float:
    """How coarse, rounded towards 1/2 or away from it, on which side of 1/2, and how far from it.

    So the coarser neighbours of a t are one choice away when it is shrunk, and its finest ones when it climbs.
    """
    level, away = divmod(draw(below(2 * FINE * bits)), 2)
    under, distance = draw(st.booleans()), draw(below((1 << bits - 1) + 1))
    return beside_half(distance, bits, min(bits, 1 + level), away=bool(away), below=under)


@st.composite
def coefficients_of(draw: Draw, on: Any, layers: Sequence[str] | None, align: str, bits: int) -> dict[str, float]:
    """Each layer is in or out, and has a coefficient where it is in: the fewest layers make the shortest example."""
    pair = bound(on, "coefficients", ("pair",))
    known = pair.once(Measurements).box(align).layers
    for layer in layers or ():
        if layer not in known:
            raise LmcError(f"{title(pair)}: layer {layer!r}{nearest(layer, known)}; expected some of {list(known)}")
    return drawn_coefficients(draw, known if layers is None else layers, bits)


def drawn_coefficients(draw: Draw, layers: Sequence[str], bits: int = BITS) -> dict[str, float]:
    """Draw coefficients of some layers, zeros dropped."""
    found = {layer: draw(t_of(bits)) for layer in layers if draw(st.booleans())}
    return {layer: value for layer, value in found.items() if value}


@st.composite
def permutations_of(draw: Draw, on: Any, groups: Sequence[str] | None, most: int) -> PermutedUnits:
    """A few swaps, then perhaps a random member: no swap and seed 0 is the identity."""
    spec = bound(on, "permutations", ("pair", "model", "set", "merge")).network.spec
    named = [group for group in spec.groups if group.size > 1 and (groups is None or group.name in groups)]
    _require_known(on, groups, [group.name for group in spec.groups])
    if not named:
        return PermutedUnits()
    swaps: list[tuple[object, ...]] = []
    while len(swaps) < most and draw(st.booleans()):
        group = named[draw(below(len(named)))]
        copy = [draw(below(group.copies))] if group.within else []
        first = draw(below(group.size - 1))
        swaps.append((group.name, *copy, first, first + 1 + draw(below(group.size - 1 - first))))
    return PermutedUnits(tuple(swaps), draw(below(SEEDS)) if groups is None else 0)


@st.composite
def dropped_of(draw: Draw, on: Any, groups: Sequence[str] | None, rate: float) -> DroppedUnits:
    """Each unit stays or is dropped, with one choice more where it is dropped: the fewest make the shortest example.

    Of more than BLOCKS units neighbours are dropped together.
    """
    network = bound(on, "dropout_masks", ("pair", "model", "set", "merge")).network
    structure = network.droppable(f"dropout_masks: {DROPS}")
    _require_known(on, groups, structure.groups)
    chosen = [group for group in structure.groups if groups is None or group in groups]
    together = -(-sum(structure.sizes[group] for group in chosen) // BLOCKS)
    parts = round(SIXTEENTHS * rate)
    found: dict[str, tuple[int, ...]] = {}
    for group in chosen:
        size = structure.sizes[group]
        units: list[int] = []
        for start in range(0, size, together):
            if draw(below(SIXTEENTHS)) >= SIXTEENTHS - parts:
                draw(below(2))  # shrinks to nothing but its own length
                units += range(start, min(size, start + together))
        if kept := units[: size - 1]:  # one unit stays
            found[group] = tuple(kept)
    return DroppedUnits(found)


@st.composite
def rows_of(draw: Draw, on: Any, most: int) -> Rows:
    """A set of rows; fewer and earlier ones are simpler."""
    samples = bound(on, "batches", ("pair", "model", "set", "merge")).network.data.samples
    drawn = draw(st.lists(below(samples), min_size=1, max_size=min(most, samples), unique=True))
    return Rows(tuple(sorted(drawn)))


@st.composite
def noise_of(draw: Draw, on: Any, most: float) -> WeightNoise:
    """A size, the smaller the simpler, and a seed."""
    bound(on, "noise", ("pair", "model", "set", "merge"))
    size = most * draw(below(SIZES + 1)) / SIZES
    return WeightNoise(size, draw(below(SEEDS)))


@st.composite
def weights_of(draw: Draw, on: Any) -> dict[str, float]:
    """Parts 1, 0, 2, 3, … of each model, divided by their sum: equal weights are the simplest."""
    names = list(bound(on, "merge_weights", ("pair", "set", "merge")).named_endpoints)
    order = [1, 0, *range(2, SIXTEENTHS + 1)]
    parts = {name: order[draw(below(len(order)))] for name in names}
    total = sum(parts.values())
    if not total:
        parts, total = dict.fromkeys(names, 1), len(names)
    return {name: part / total for name, part in parts.items() if part}


def _require_known(on: Any, groups: Sequence[str] | None, known: Sequence[str]) -> None:
    for group in groups or ():
        if group not in known:
            raise LmcError(f"unit group {group!r}{nearest(group, known)}; expected some of {list(known)}")
