"""What draws cost: the share of them that costs at most so much, against the limit and the share that has to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmccheck.explain import number
from lmccheck.finding import ALONE
from lmccheck.report.plots.bars import Chart, drawn
from lmccheck.report.plots.drawing import Axes, Drawing, style
from lmccheck.report.plots.svg import XY, Scale
from lmccheck.report.record import CheckRecord


def draw(record: CheckRecord, name: str) -> Drawing:
    """Return the drawing of draws: steps that rise with each."""
    curve = record.curve
    share, of, values = curve["share"], curve["of"], curve["values"]
    count = max(map(len, values.values()))
    title = f"Share of {_plural(of)} that cost at most so much"
    held = {end: sum(q <= (record.limit or 0.0) for q in row) for end, row in values.items()}
    told = ", ".join(
        f"{hits} of {len(values[end])}{'' if end == ALONE else f' for {end}'}" for end, hits in held.items()
    )
    says = (
        f"The cost of {count} {_plural(of)}. Within the limit of {number(record.limit)} {record.unit} are {told}; at "
        f"least {share:.0%} of all have to be. The {share:.0%} quantile is {number(record.value)}."
    )
    canvas = Axes(name, title, says, Scale(0.0, 1.0))
    across = Scale.over([0.0, record.limit, *(q for row in values.values() for q in row)], 0.05)
    _limits(canvas, record, across, share)
    for end, row in values.items():
        canvas.curve([(x, canvas.y(y)) for x, y in steps(row, across)], style(list(values), end))
    if record.value is not None and math.isfinite(record.value):
        _interval(canvas, record, across, share)
        canvas.mark((across.of(record.value), share), f"{share:.0%} cost at most {number(record.value)}")
    canvas.along([(across.of(tick), number(tick)) for tick in across.ticks(6)])
    legend = [(style(list(values), end), end) for end in values if end != ALONE]
    columns = [of, *("cost" if end == ALONE else f"cost of {end}" for end in values)]
    rows = [[str(k), *(number(row[k]) if k < len(row) else "" for row in values.values())] for k in range(count)]
    return Drawing(title, says, str(canvas), columns, rows, legend, unit=record.unit)


def attenuation(record: CheckRecord, name: str) -> Drawing | None:
    """Return the drawing of how much noise in each layer alone reaches the output; None where nobody measured it."""
    found = record.curve["attenuation"]
    if not found:
        return None
    layers = list(dict.fromkeys(layer for row in found.values() for layer in row))
    says = (
        "ψ of each layer: the relative squared change of the output over that of what the layer reads, for noise in "
        "that layer alone. 1 means that noise passes as it is, 0 that nothing of it arrives."
    )
    values = {end: [row.get(layer) for layer in layers] for end, row in found.items()}
    return drawn(
        Chart("ψ, what reaches the output of noise in one layer", says, layers, values, "layer", {}, "", None), name
    )


def _limits(canvas: Axes, record: CheckRecord, across: Scale, share: float) -> None:
    canvas.line((0, canvas.y(share)), (1, canvas.y(share)), "chord")
    canvas.text((1, canvas.y(share) + 15), f"{share:.0%} have to hold", "said", "end")
    if record.limit is not None and math.isfinite(record.limit):
        at = across.of(record.limit)
        canvas.box(at, canvas.y(1), 1, canvas.floor, "beyond")
        canvas.line((at, canvas.y(1) - 6), (at, canvas.floor), "limit")
        canvas.text((at, 16), f"limit {number(record.limit)}", "said limit")


def _interval(canvas: Axes, record: CheckRecord, across: Scale, share: float) -> None:
    if record.interval:
        low, high = (min(across.of(edge), 1.0) if math.isfinite(edge) else 1.0 for edge in record.interval)
        y = canvas.y(share)
        canvas.line((low, y), (high, y), "interval")
        for x in (low, high):
            canvas.line((x, y - 5), (x, y + 5), "height")


def steps(costs: Sequence[float], across: Scale) -> list[XY]:
    """Return the share of costs that are at most so large, as steps; what is infinite is never reached.

    >>> steps([1.0, 3.0], Scale(0.0, 4.0))
    [(0.0, 0.0), (0.25, 0.0), (0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (1.0, 1.0)]
    """
    points, height = [(0.0, 0.0)], 0.0
    for k, cost in enumerate(sorted(cost for cost in costs if math.isfinite(cost)), 1):
        x = across.of(cost)
        points += [(x, height), (x, height := k / len(costs))]
    return [*points, (1.0, height)]


def _plural(of: str) -> str:
    """Return the plural of what is drawn.

    >>> _plural("mask"), _plural("draw of noise")
    ('masks', 'draws of noise')
    """
    first, _, rest = of.partition(" ")
    return f"{first}s {rest}".rstrip()
