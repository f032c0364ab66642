"""Scales, and a drawing that is as wide as its place: x in shares of the width, y in pixels, texts of their own size.

Texts keep their size on a phone because nothing is scaled: positions across are percentages, and what cannot have
percentages (polylines, areas) lies in an inner picture that is stretched, its strokes not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

INNER = 1000  # units across the inner picture
SAID = ("up", "value", "mid")  # styles whose anchor the style sheet says
WIDE = 600  # pixels that a drawing is at most wide
STEPS = (1, 2, 2.5, 5, 10)

XY = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Numbers from ``low`` to ``high`` onto 0 to 1.

    >>> Scale(0.0, 4.0).of(1.0), Scale(0.0, 4.0).ticks(5)
    (0.25, [0.0, 1.0, 2.0, 3.0, 4.0])
    """

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | None], room: float = 0.0) -> Scale:
        """Return the scale of all finite numbers, with a share of ``room`` above them; never of no width.

        >>> Scale.over([0.0, 2.0, None, float("inf")], 0.5)
        Scale(low=0.0, high=3.0)
        """
        known = finite(values) or [0.0, 1.0]
        low, high = min(known), max(known)
        if not high > low:
            low, high = low - (abs(low) / 2 or 0.5) * (low != 0), high + (abs(high) / 2 or 0.5)
        return cls(low, high + room * (high - low))

    def of(self, value: float) -> float:
        """Return where a number lies, outside of 0 to 1 where it is outside."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return at most ``most`` round numbers on the scale."""
        if not math.isfinite(width := self.high - self.low):
            return []
        power = math.floor(math.log10(width)) - 1
        while True:
            for factor in STEPS:
                step = factor * 10.0**power
                first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
                if last - first < most:
                    return [round(k * step, 1 - power) + 0.0 for k in range(first, last + 1)]
            power += 1


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the numbers among values that have a place on a scale."""
    return [value for value in values if value is not None and math.isfinite(value)]


class Canvas:
    """A drawing of ``height`` pixels; ``name`` begins the ids of what describes it."""

    def __init__(self, name: str, title: str, says: str, height: float) -> None:
        self.height = height
        described = {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
        self.root = ElementTree.Element("svg", {"class": "plot", **described, "height": _px(height)})
        self._put("title", {"id": f"{name}-title"}).text = title
        self._put("desc", {"id": f"{name}-desc"}).text = says
        view = {"viewBox": f"0 0 {INNER} {_px(height)}", "preserveAspectRatio": "none", "width": "100%"}
        self._inner = ElementTree.Element("svg", {**view, "height": _px(height)})

    def line(self, one: XY, two: XY, style: str) -> None:
        """Draw a straight line between two points (share of the width, pixels)."""
        places = {"x1": _share(one[0]), "y1": _px(one[1]), "x2": _share(two[0]), "y2": _px(two[1])}
        self._put("line", {name: place for name, place in places.items() if place not in ("0%", "0")}, style)

    def curve(self, points: Sequence[XY], style: str, closed: bool = False) -> None:
        """Draw a line through points, or the area within them."""
        path = " ".join(f"{round(INNER * x)},{_px(y)}" for x, y in points)
        self._within("polygon" if closed else "polyline", {"points": path, "class": style})

    def points(self, points: Sequence[XY], style: str) -> None:
        """Draw round points, one picture for all."""
        self._within("path", {"d": "".join(f"M{round(INNER * x)} {_px(y)}h0" for x, y in points), "class": style})

    def strokes(self, lines: Iterable[tuple[XY, XY]], style: str) -> None:
        """Draw straight lines alike, one picture for all."""
        ends = (f"M{round(INNER * a)} {_px(b)}L{round(INNER * c)} {_px(d)}" for (a, b), (c, d) in lines)
        self._within("path", {"d": "".join(ends), "class": style})

    def boxes(self, boxes: Sequence[tuple[float, float, float, float]], style: str, opacity: float) -> None:
        """Draw rectangles (left, top, right, bottom) alike, one picture for all."""
        path = (
            f"M{_px(INNER * left)} {_px(top)}h{_px(INNER * (right - left))}v{_px(bottom - top)}"
            f"h{_px(INNER * (left - right))}z"
            for left, top, right, bottom in boxes
        )
        self._within("path", {"d": "".join(path), "class": style, "fill-opacity": f"{opacity:.2f}"})

    def box(self, left: float, top: float, right: float, bottom: float, style: str) -> None:
        """Draw a rectangle."""
        place = {"x": _share(min(left, right)), "y": _px(top)}
        size = {"width": _share(abs(right - left)), "height": _px(bottom - top)}
        self._put("rect", {name: at for name, at in place.items() if at not in ("0%", "0")} | size, style)

    def dot(self, at: XY, radius: float, style: str) -> None:
        """Draw a circle."""
        self._put("circle", {"cx": _share(at[0]), "cy": _px(at[1]), "r": _px(radius)}, style)

    def text(self, at: XY, said: str, style: str = "", anchor: str = "", dx: float = 0) -> None:
        """Write a text. Its anchor: ``start``, ``middle`` or ``end``, by default that which keeps it inside.

        Of some styles the style sheet says it: ``up`` and ``value`` end where they are put, ``mid`` is in the middle.
        """
        anchor = anchor or ("start" if at[0] < 0.3 else "end" if at[0] > 0.7 else "middle")
        place = ({"x": _share(at[0])} if at[0] else {}) | {"y": _px(at[1])} | ({"dx": _px(dx)} if dx else {})
        if anchor != "start" and not style.startswith(SAID):
            place["text-anchor"] = anchor
        self._put("text", place, style).text = said

    def __str__(self) -> str:
        return ElementTree.tostring(self.root, encoding="unicode")

    def _within(self, kind: str, attributes: dict[str, str]) -> None:
        """Put something into the inner picture."""
        if len(self._inner) == 0:
            self.root.append(self._inner)
        ElementTree.SubElement(self._inner, kind, attributes)

    def _put(self, kind: str, attributes: dict[str, str], style: str = "") -> ElementTree.Element:
        return ElementTree.SubElement(self.root, kind, attributes | ({"class": style} if style else {}))


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def _share(value: float) -> str:
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, its middle left out.

    >>> shortened("blocks.0.attention.out", 11)
    'block…n.out'
    """
    return text if len(text) <= most else f"{text[: (most - 1) // 2]}…{text[len(text) - most // 2 :]}"


def simplified(points: Sequence[XY], apart: float = 0.3) -> list[XY]:
    """Return the points of a line without those that lie within ``apart`` pixels of what is left (Douglas & Peucker).

    Pixels across are those of a page on a wide screen.

    >>> simplified([(0.0, 0.0), (0.25, 0.1), (0.5, 90.0), (0.75, 45.0), (1.0, 0.0)])
    [(0.0, 0.0), (0.25, 0.1), (0.5, 90.0), (1.0, 0.0)]
    >>> simplified([(0.0, 0.0), (0.25, 0.0), (0.5, 2.0), (0.75, 0.0), (1.0, 0.0)])
    [(0.0, 0.0), (0.25, 0.0), (0.5, 2.0), (0.75, 0.0), (1.0, 0.0)]
    """
    kept, parts = {0, len(points) - 1}, [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        (x, y), (right, down) = points[first], points[last]
        dx, dy = WIDE * (right - x), down - y
        length = math.hypot(dx, dy) or 1.0
        far, at = 0.0, first
        for k in range(first + 1, last):
            off = abs(dx * (points[k][1] - y) - dy * WIDE * (points[k][0] - x)) / length
            if off > far:
                far, at = off, k
        if far > apart:
            kept.add(at)
            parts += [(first, at), (at, last)]
    return [points[k] for k in sorted(kept)]
