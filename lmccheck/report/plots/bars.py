"""Costs by name as bars, a row a name, against the limit: dropped levels, layers, groups of units, means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lmccheck.explain import number
from lmccheck.finding import ALONE
from lmccheck.report.plots.drawing import TOP, Drawing, style
from lmccheck.report.plots.svg import Canvas, Scale, finite, shortened
from lmccheck.report.record import CheckRecord

MOST = 8  # names that are drawn; the table has all
BARS = 0.74  # of the width: behind it stand the numbers
NAME, BAR, GAP, CHARACTERS = 18.0, 13.0, 9.0, 38  # pixels, and characters of a name

Costs = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Chart:
    """What bars show under a ``title``: ``values`` of names by series, beside others that are drawn hollow.

    ``of``: what is named. ``say`` words a value. ``value``: the one that the verdict is about, which is always drawn.
    """

    title: str
    says: str
    names: Sequence[str]
    values: Costs
    of: str
    beside: Costs = field(default_factory=dict)
    beside_what: str = ""
    limit: float | None = None
    unit: str = ""
    say: Callable[[float | None], str] = number
    value: float | None = None

    @property
    def ranked(self) -> list[int]:
        """The names that are drawn, in order: where there are too many, the costliest."""
        costs = [max(finite(row[k] for row in self.values.values()), default=-math.inf) for k in range(len(self.names))]
        return sorted(sorted(range(len(costs)), key=lambda k: (costs[k] != self.value, -costs[k]))[:MOST])

    def over(self, value: float | None) -> bool:
        """Whether a value is above the limit; what is no number is."""
        return self.limit is not None and value is not None and not value <= self.limit


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of what names cost."""
    curve = record.curve
    what, of, names = curve["what"], curve["of"], curve["names"]
    many, limited = "" if len(names) == 1 else "s", curve.get("limited", True)
    says = f"{what} of {len(names)} {of}{many}"
    says += f"; the value is {number(record.value)} {record.unit}, limit {number(record.limit)}." if limited else "."
    title = what[:1].upper() + what[1:] if what[:1].isascii() else what
    return drawn(
        Chart(
            f"{title} by {of}", says, names, curve["values"], of, curve["beside"], curve["beside_what"],
            *((record.limit, record.unit, number, record.value) if limited else ()),
        ),
        name,
    )  # fmt: skip


def drawn(chart: Chart, name: str) -> Drawing:
    """Return a chart as a drawing."""
    series, ranked = list(chart.values), chart.ranked
    row, top = NAME + BAR * len(series) + GAP, TOP if chart.limit is not None else 0.0
    canvas = Canvas(name, chart.title, chart.says, top + row * len(ranked) + 4)
    shown = [costs[k] for costs in (*chart.values.values(), *chart.beside.values()) for k in ranked]
    scale = Scale.over([0.0, chart.limit, *shown])
    zero = BARS * scale.of(0.0)
    canvas.line((zero, top), (zero, canvas.height), "axis")
    for place, k in enumerate(ranked):
        y = top + place * row
        canvas.text((0, y + 13), shortened(chart.names[k], CHARACTERS), "name", "start")
        for place_of, one in enumerate(series):
            _bar(canvas, chart, (one, k), y + NAME + BAR * place_of, scale)
    if chart.limit is not None and math.isfinite(chart.limit):
        at = BARS * scale.of(chart.limit)
        canvas.line((at, top - 6), (at, canvas.height), "limit")
        canvas.text((at, 16), f"limit {number(chart.limit)}", "said limit")
    legend = [
        (f"fill {style(series, one)}", one) for one in series if one != ALONE and (chart.beside or len(series) > 1)
    ]
    legend += [("hollow", chart.beside_what)] if chart.beside else []
    legend += [("", f"the {MOST} largest of {len(chart.names)}")] if len(ranked) < len(chart.names) else []
    return Drawing(chart.title, chart.says, str(canvas), *_table(chart), legend, "", chart.unit, len(series) == 1)


def _bar(canvas: Canvas, chart: Chart, which: tuple[str, int], y: float, scale: Scale) -> None:
    one, k = which
    cost, zero = chart.values[one][k], BARS * scale.of(0.0)
    over = chart.over(cost)
    if cost is not None:
        end = BARS * scale.of(cost) if math.isfinite(cost) else BARS
        canvas.box(zero, y, end, y + BAR - 3, f"fill {style(list(chart.values), one)}{' over' if over else ''}")
        canvas.text((1, y + BAR - 3), chart.say(cost), "value over" if over else "value")
    if len(chart.values) > 1 and one != ALONE:
        canvas.text((0, y + BAR - 3), shortened(one, 6), "up")
    beside = chart.beside.get(one, [None] * len(chart.names))[k]
    if beside is not None and math.isfinite(beside):
        canvas.box(zero, y + 1, BARS * scale.of(beside), y + BAR - 4, "hollow")


def _table(chart: Chart) -> tuple[list[str], list[list[str]]]:
    names = [*chart.values, *(f"{one}, {chart.beside_what}" for one in chart.beside)]
    if len(chart.values) == 1:
        one = next(iter(chart.values))
        names = ["cost" if one == ALONE else one, *([chart.beside_what] if chart.beside else [])]
    every = [*chart.values.values(), *chart.beside.values()]
    return [chart.of, *names], [[name, *(chart.say(row[k]) for row in every)] for k, name in enumerate(chart.names)]
