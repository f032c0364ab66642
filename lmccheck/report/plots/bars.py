"""Costs by name as bars, a row a name, against the limit: dropped levels, layers, groups of units, means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmccheck.explain import number
from lmccheck.finding import ALONE
from lmccheck.report.plots.drawing import TOP, Drawing, style
from lmccheck.report.plots.svg import Canvas, Scale, finite, shortened
from lmccheck.report.record import CheckRecord

MOST = 12  # names that are drawn; the table has all
BARS = 0.8  # of the width: behind it stand the numbers
NAME, BAR, GAP, CHARACTERS = 18.0, 13.0, 9.0, 46

Costs = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Chart:
    """What a chart of bars shows, under a title: costs by name and series, beside others that are drawn hollow."""

    title: str
    says: str
    names: Sequence[str]
    values: Costs
    of: str
    beside: Costs
    beside_what: str
    limit: float | None
    unit: str = ""

    @property
    def ranked(self) -> list[int]:
        """The names that are drawn: where there are too many the costliest, in the order in which they were given."""
        if len(self.names) <= MOST:
            return list(range(len(self.names)))
        costs = [max(finite(row[k] for row in self.values.values()), default=-math.inf) for k in range(len(self.names))]
        return sorted(sorted(range(len(costs)), key=lambda k: -costs[k])[:MOST])


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of what names cost."""
    curve = record.curve
    many = len(curve["names"]) != 1
    says = (
        f"{curve['what']} of {len(curve['names'])} {curve['of']}{'s' if many else ''}; the largest is "
        f"{number(record.value)} {record.unit}, the limit is {number(record.limit)}."
    )
    title = f"{curve['what']} by {curve['of']}"
    title = title[0].upper() + title[1:] if title[0].isascii() else title
    names, values = curve["names"], curve["values"]
    chart = Chart(
        title, says, names, values, curve["of"], curve["beside"], curve["beside_what"], record.limit, record.unit
    )
    return drawn(chart, name)


def drawn(chart: Chart, name: str) -> Drawing:
    """Return a chart as a drawing."""
    series, ranked = list(chart.values), chart.ranked
    row = NAME + BAR * len(series) + GAP
    top = TOP if chart.limit is not None else 0.0
    canvas = Canvas(name, chart.title, chart.says, top + row * len(ranked) + 4)
    shown = [costs[k] for costs in (*chart.values.values(), *chart.beside.values()) for k in ranked]
    scale = Scale.over([0.0, chart.limit, *shown])
    zero = BARS * scale.of(0.0)
    for place, k in enumerate(ranked):
        y = top + place * row
        canvas.text((0, y + 13), shortened(chart.names[k], CHARACTERS), "name", "start")
        for number_of, one in enumerate(series):
            _bar(canvas, chart, one, k, y + NAME + BAR * number_of, scale)
    canvas.line((zero, top), (zero, canvas.height), "axis")
    if chart.limit is not None and math.isfinite(chart.limit):
        at = BARS * scale.of(chart.limit)
        canvas.line((at, top - 6), (at, canvas.height), "limit")
        canvas.text((at, 16), f"limit {number(chart.limit)}", "said limit")
    legend = [(f"fill {style(series, one)}", one) for one in series if len(series) > 1]
    legend += [("hollow", chart.beside_what)] if chart.beside else []
    left = (
        f"The {MOST} costliest of {len(chart.names)} are drawn; the table has all."
        if len(ranked) < len(chart.names)
        else ""
    )
    return Drawing(chart.title, chart.says, str(canvas), *_table(chart), legend, left, chart.unit, len(series) == 1)


def _bar(canvas: Canvas, chart: Chart, one: str, k: int, y: float, scale: Scale) -> None:
    cost, zero = chart.values[one][k], BARS * scale.of(0.0)
    over = chart.limit is not None and cost is not None and not cost <= chart.limit
    if cost is not None:
        end = BARS * scale.of(cost) if math.isfinite(cost) else BARS
        look = f"fill {style(list(chart.values), one)}{' over' if over else ''}"
        canvas.box(zero, y, end, y + BAR - 3, look)
        canvas.text((1, y + BAR - 3), number(cost), "value over" if over else "value", "end")
    if len(chart.values) > 1 and one != ALONE:
        canvas.text((0, y + BAR - 3), shortened(one, 6), "tick", "end", dx=-8)
    beside = chart.beside.get(one)
    if beside is not None and beside[k] is not None and math.isfinite(beside[k] or 0.0):
        end = BARS * scale.of(beside[k] or 0.0)
        canvas.box(zero, y + 1, end, y + BAR - 4, "hollow")


def _table(chart: Chart) -> tuple[list[str], list[list[str]]]:
    alone = len(chart.values) == 1
    columns = [chart.of, *("cost" if alone else one for one in chart.values)]
    columns += [f"{chart.beside_what}" if alone else f"{one}, {chart.beside_what}" for one in chart.beside]
    every = [*chart.values.values(), *chart.beside.values()]
    return columns, [[name, *(number(row[k]) for row in every)] for k, name in enumerate(chart.names)]
