"""One check as a page shows it: the answers to what, where, how badly, why and what next, and the facts behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmccheck.explain import number
from lmccheck.report.plots import drawings
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.record import NOT_MEASURED, CheckRecord
from lmccheck.report.table import error_barrier

LOOKS = {  # of each verdict: the name of its colour, and a sign, so that no colour stands alone
    "pass": ("pass", "✓"),
    "fail": ("fail", "✕"),
    "error": ("error", "!"),
    "inconclusive": ("unsettled", "?"),
    NOT_MEASURED: ("unmeasured", "–"),
}
MEND = "; mend: "  # divides what is wrong from what to do
LISTED = 6  # parts of a list that are shown
WITNESS, LONGEST = 24, 200  # facts of a witness that are shown, and characters of each
WIDEST = 8.0  # times the limit: a bar that shows more is cut


@dataclass(frozen=True)
class Section:
    """A check; ``place`` is its number among all, which its ids begin with; ``rows`` those of tables."""

    record: CheckRecord
    place: int
    rows: int = 61

    @property
    def id(self) -> str:
        return f"check-{self.place}"

    @property
    def look(self) -> str:
        return LOOKS.get(self.record.verdict, LOOKS[NOT_MEASURED])[0]

    @property
    def sign(self) -> str:
        return LOOKS.get(self.record.verdict, LOOKS[NOT_MEASURED])[1]

    @property
    def verdict(self) -> str:
        warned = self.record.severity == "warn" and self.record.verdict in ("fail", "inconclusive")
        return f"{self.record.verdict}, warns only" if warned else self.record.verdict

    @property
    def passed(self) -> bool:
        return self.record.verdict == "pass"

    @property
    def name(self) -> str:
        """What was measured; of a manifest's own item the manifest."""
        return self.record.pair or self.record.manifest

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return self.record.value is not None

    @cached_property
    def drawings(self) -> list[Drawing]:
        return drawings(self.record, self.id, self.rows)

    @property
    def times(self) -> str:
        """How many times the limit the value is, in words; empty where that says nothing."""
        value, limit = self.record.value, self.record.limit
        if value is None or limit is None or not math.isfinite(value) or not value > limit > 0:
            return ""
        return f"{value / limit:.2g} times the limit" if value < 99 * limit else f"{value / limit:.0f} times the limit"

    @property
    def bar(self) -> tuple[float, float] | None:
        """The value and the limit as shares of a bar's width; None where there is none to draw."""
        value, limit = self.record.value, self.record.limit
        if value is None or limit is None or math.isnan(value):
            return None
        most = max(limit, min(max(value, 0.0), WIDEST * limit))
        return (min(max(value, 0.0) / most, 1.0), limit / most) if most > 0 else (float(value > limit), 0.0)

    @property
    def what(self) -> str:
        """What broke; of what is not worded so, the first line of its text."""
        told = self.record.answers.get("what") or self.record.failure[:1] or self.record.text.splitlines()[:1]
        said, _, _ = " ".join(told).partition(MEND)
        return said or f"{self.record.property}: {self.record.verdict}"

    @property
    def mend(self) -> str:
        """What to do, where the first line of a text that has a number says it itself; shown with what is next."""
        _, _, mend = self.record.failure[0].partition(MEND) if self.measured and self.record.failure else ("", "", "")
        return mend

    @property
    def where(self) -> list[str]:
        place = {
            name: " and ".join(part) if name == "pair" else number(part) for name, part in self.record.place.items()
        }
        return self.record.answers.get("where") or [f"{name} {part}" for name, part in place.items()]

    @property
    def how_badly(self) -> list[str]:
        """What is said of how much it is."""
        return [line for key in ("measured", "extremes", "endpoints") for line in self.record.answers.get(key, ())]

    @property
    def why(self) -> list[str]:
        """What explains it."""
        return [line for key in ("remarks", "why") for line in self.record.answers.get(key, ())]

    @property
    def endpoints(self) -> list[tuple[str, str, str]]:
        """The models that were compared: name, own loss, 0-1 error."""
        return [
            (end["name"], number(end["loss"]), "" if end.get("error") is None else f"{end['error']:.2%}")
            for end in self.record.endpoints
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """How it was measured, by name."""
        record = self.record
        return [
            ("how it is known", record.known or ""),
            ("baseline", self.baseline),
            ("interval", _interval(record.interval)),
            ("without alignment", "" if record.naive is None else f"{number(record.naive)} {record.unit}"),
            ("0-1 error above the chord", error_barrier(record)),
            ("loss at the worst point", number(record.worst_loss)),
            ("full passes over the data", str(record.evaluations or "")),
            ("seconds", "" if record.seconds is None else f"{record.seconds:.3g}"),
            ("seed", "" if record.seed is None else str(record.seed)),
            ("profile", record.profile),
            ("property", record.property if record.property != record.check else ""),
        ]

    @property
    def baseline(self) -> str:
        """What was stored, and how it changed."""
        found = self.record.baseline
        if found.get("value") is None:
            return ""
        change = (
            "" if found.get("change") is None else f", changed by {found['change']:+.4g}: {found.get('verdict', '')}"
        )
        return f"{number(found['value'])} {self.record.unit}{change}"

    @property
    def settings(self) -> list[tuple[str, str]]:
        """What the manifest asks for."""
        return [(name, written(value)) for name, value in self.record.settings.items()]

    @property
    def witness(self) -> list[tuple[str, str]]:
        """What proves the verdict, in short."""
        return [(name, text) for name, text in flat(self.record.witness) if len(text) <= LONGEST][:WITNESS]

    @property
    def line(self) -> str:
        """Where a reader can change something."""
        return f"{self.record.manifest}, line {self.record.line}" if self.record.line else self.record.manifest


def written(value: Any) -> str:
    """Return a setting as a manifest has it.

    >>> written(0.05), written(True), written(["a", 1]), written({"x": "5%"})
    ('0.05', 'true', '["a", 1]', '{ x = "5%" }')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {written(part)}' for name, part in value.items())} }}"
    return f"[{', '.join(map(written, value))}]" if isinstance(value, (list, tuple)) else str(value)


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested values by names that say where they are from; of a list the beginning.

    >>> flat({"a": {"b": 0.123456, "c": [1, 2, 3, 4, 5, 6, 7]}, "d": "x"})
    [('a.b', '0.1235'), ('a.c', '[1, 2, 3, 4, 5, 6, …]'), ('d', 'x')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            more = ", …" if len(value) > LISTED else ""
            rows.append((before + name, f"[{', '.join(map(number, value[:LISTED]))}{more}]"))
        elif value not in (None, ""):
            rows.append((before + name, str(value) if isinstance(value, int) else number(value)))
    return rows


def _interval(ends: list[float] | None) -> str:
    """Return an interval in words; of one that is not bounded above its lower end.

    >>> _interval([0.125, 0.5]), _interval([0.125, float("inf")]), _interval(None)
    ('0.125 to 0.5', 'at least 0.125', '')
    """
    if ends is None:
        return ""
    low, high = ends
    return f"at least {number(low)}" if math.isinf(high) else f"{number(low)} to {number(high)}"
