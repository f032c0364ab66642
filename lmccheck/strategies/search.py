"""The worst point of a box, looked for by Hypothesis, and the simplest one that exceeds a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st

from lmccheck.strategies.draws import drawn_coefficients
from lmccheck.strategies.dyadic import FIRST, simplicity

Coefficients = Mapping[str, float]
DIAGONAL = (0.5, 0.25, 0.75)  # of the line, looked at before anything is drawn
MOST = 1 << 16  # points that are listed at most


class _Found(Exception):
    """Raised inside a search, for Hypothesis to make what was found simpler."""


@dataclass
class Search:
    """Points that were looked at, in order, each with its height; ``most`` bounds how many are measured in all.

    What would be one too many is taken to be low: that is so whenever it is asked for, so that nothing is drawn twice
    with two outcomes. ``examples``: how many Hypothesis draws, half as many more since some are drawn again.
    """

    layers: Sequence[str]
    height: Callable[[Coefficients], float]
    examples: int
    most: int

    def __post_init__(self) -> None:
        self.seen: dict[tuple[tuple[str, float], ...], float] = {}
        self._chosen_from = 0  # points, those before which no height chose

    def __call__(self, point: Coefficients) -> float:
        """Return the height of a point, −∞ where nothing more is to be measured."""
        key = tuple(sorted(point.items()))
        if key not in self.seen:
            if len(self.seen) >= self.most:
                return float("-inf")
            self.seen[key] = self.height(point)
        return self.seen[key]

    @property
    def worst(self) -> tuple[dict[str, float], float]:
        """The highest point, of equal ones the simplest, and its height."""
        key = min(self.seen, key=lambda key: (-self.seen[key], order(dict(key), self.layers)))
        return self._named(key), self.seen[key]

    @property
    def fixed(self) -> list[dict[str, float]]:
        """The points that would have been looked at whatever their heights."""
        return [self._named(key) for key in list(self.seen)[: self._chosen_from]]

    def look_first(self, points: Iterable[Coefficients]) -> None:
        """Look at points before any that heights choose."""
        for point in points:
            self(point)
        self._chosen_from = len(self.seen)

    def simplest(self, bound: float) -> dict[str, float]:
        """Return the simplest of the points that are higher than ``bound``."""
        over = [key for key, height in self.seen.items() if height > bound]
        return self._named(min(over, key=lambda key: order(dict(key), self.layers)))

    def _named(self, key: tuple[tuple[str, float], ...]) -> dict[str, float]:
        point = dict(key)
        return {layer: point[layer] for layer in self.layers if layer in point}


def order(point: Coefficients, layers: Sequence[str]) -> tuple[object, ...]:
    """Return what orders points by simplicity: fewer layers, then simpler coefficients, then earlier layers.

    >>> points = [{"b": 0.25}, {"a": 0.5, "b": 0.5}, {"b": 0.5}, {"a": 0.5}]
    >>> sorted(points, key=lambda point: order(point, ["a", "b"]))
    [{'a': 0.5}, {'b': 0.5}, {'b': 0.25}, {'a': 0.5, 'b': 0.5}]
    """
    places = sorted((layers.index(layer), simplicity(value)) for layer, value in point.items())
    values = [value for _, value in places]
    return (len(point), sorted(values, reverse=True), [place for place, _ in places], values)


def search_worst(layers: Sequence[str], height: Callable[[Coefficients], float], *, seed: int, examples: int) -> Search:
    """Look for the highest point among ``examples``: the line, corners, then what Hypothesis draws towards the highest.

    The same seed draws the same points. They are no sample: nothing but the highest is to be said of them.
    """
    search = Search(layers, height, examples, examples)
    corners = (dict.fromkeys(corner, 1.0) for corner in _corners(layers, examples // 4))
    search.look_first([*(dict.fromkeys(layers, t) for t in DIAGONAL), *corners])
    _drawn(search, seed, float("inf"))
    return search


def search_simplest(search: Search, bound: float, *, seed: int, most: int) -> dict[str, float]:
    """Return the simplest point found to be higher than ``bound``, where one was seen: at most ``most`` more are tried.

    Hypothesis draws what it drew before and makes it smaller from where it first exceeds the bound; then layers are
    left out of the simplest so far while it still does; then all that is simpler still is tried, fewest layers first.
    """
    search.most = len(search.seen) + most // 3
    _drawn(search, seed, bound)
    search.most = len(search.seen) + most - most // 3
    point = search.simplest(bound)
    while (smaller := _reduced(search, point, bound)) is not None:
        point = smaller
    for other in _simpler_than(point, search.layers):
        if search(other) > bound or len(search.seen) >= search.most:
            break
    return search.simplest(bound)


def _corners(layers: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Return the layers that are b's in each corner but a's own, or, of more than ``most``, in those next to it."""
    sizes = range(1, len(layers) + 1) if 1 << len(layers) <= most else (1,)
    return [corner for size in sizes for corner in combinations(layers, size)][:most]


def _drawn(search: Search, number: int, bound: float) -> None:
    """Let Hypothesis draw points until the search has seen enough; above ``bound`` it looks for simpler ones."""

    @st.composite
    def points(draw: Callable[[st.SearchStrategy[object]], object]) -> dict[str, float]:
        return drawn_coefficients(draw, search.layers)

    def look(point: dict[str, float]) -> None:
        height = search(point)
        if height > bound:
            raise _Found
        if abs(height) < float("inf"):
            target(height)

    phases = (Phase.generate, Phase.target, *([Phase.shrink] if bound < float("inf") else []))
    chosen = settings(
        max_examples=search.examples * 3 // 2, phases=phases, database=None, deadline=None, derandomize=False,
        backend="hypothesis", suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
        verbosity=Verbosity.quiet,
    )  # fmt: skip
    try:
        seed(number)(chosen(given(points())(look)))()
    except _Found:
        return


def _reduced(search: Search, point: Coefficients, bound: float) -> dict[str, float] | None:
    """Return a point above the bound with a layer less, or with a simpler coefficient; None where there is none."""
    fewer = ({name: value for name, value in point.items() if name != layer} for layer in point)
    simpler = (
        {**point, layer: value}
        for layer, own in point.items()
        for value in FIRST
        if simplicity(value) < simplicity(own)
    )
    return next((other for other in (*fewer, *simpler) if search(other) > bound), None)


def _simpler_than(point: Coefficients, layers: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the points of few layers and simple coefficients that are simpler than a point, simplest first."""
    limit = order(point, layers)
    for size in range(len(point) + 1):
        if comb(len(layers), size) * len(FIRST) ** size > MOST:
            return
        points = (
            dict(zip(chosen, values, strict=True))
            for chosen in combinations(layers, size)
            for values in product(FIRST, repeat=size)
        )
        ordered = sorted((order(other, layers), k, other) for k, other in enumerate(points))
        yield from (other for key, _, other in ordered if key < limit)
