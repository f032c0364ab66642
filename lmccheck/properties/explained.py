"""Why a line is too high: what is asked of it then, at what cost, and the lines that say what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmccheck.diagnose.delta import Budget
from lmccheck.errors import LmcError
from lmccheck.evaluate.line import chord
from lmccheck.finding import Finding
from lmccheck.properties.measured_line import carried_by
from lmccheck.properties.remarks import REPEATS
from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.evaluate.layerwise import Exchange
    from lmccheck.evaluate.segment import Segment
    from lmccheck.network.network import Network
    from lmccheck.properties.measured_line import Apart, Line
    from lmccheck.symmetry.slots import UnitGroup

MORE = "explain = true measures more"
MOST_NAMES = 3  # layers, units or classes in a line
LAYERS = 12  # evaluations in which layers are moved one by one, part of every failure
LITTLE = 0.005  # of the value: less rounds to 0 %
LEAST, ASKED = 8, 200  # evaluations that an explanation may make more, at least; and where it is asked for


def wanted(explain: bool | None, profile: str, judged: str) -> bool:
    """Whether what was found is to be explained: failures, but not in profile ``dev``; passes only if asked.

    >>> wanted(None, "ci", "fail"), wanted(None, "dev", "fail"), wanted(None, "ci", "pass"), wanted(True, "dev", "pass")
    (True, False, False, True)
    """
    return explain if explain is not None else judged == "fail" and profile != "dev"


def budget_of(made: int, on: bool, explain: bool | None) -> Budget:
    """Return what explaining a check may cost that made so many evaluations: half as many again, more if asked for."""
    if not on:
        return Budget(LAYERS)
    return Budget(LAYERS + max(ASKED if explain else LEAST, (made + LAYERS) // 2))


@dataclass(frozen=True)
class AtWorst:
    """A line at its worst ``t``: ``ends``, (n,) losses of both original ends, which are called ``names``.

    ``which``, (n,) bool: the samples that are judged. ``known``: the loss of the line's own ends on them, where it is.
    """

    between: Segment
    t: float
    ends: tuple[Tensor, Tensor]
    names: tuple[str, str] = ("a", "b")
    which: Tensor | None = field(default=None, repr=False)
    known: tuple[float, float] | None = None

    @classmethod
    def of(cls, between: Segment, line: Line, ends: Sequence[Measured], apart: Apart | None) -> AtWorst:
        """Return a measured line at the worst of its points, or of those of its worst part."""
        which = None
        if apart is not None:
            name = str(line.worst_part)
            which = apart.slices.index == apart.slices.names.index(name)
            line = line.part(name)
        known = line.points[0].loss, line.points[-1].loss
        return cls(between, line.highest[1], (ends[0].losses, ends[1].losses), which=which, known=known)

    def mean(self, losses: Tensor) -> float:
        """Return the mean over the samples that are judged."""
        return float((losses if self.which is None else losses[self.which]).mean())

    @property
    def base(self) -> int:
        """The better end, from which layers are moved, 0 or 1; the first, where they are equal but for rounding."""
        a, b = map(self.mean, self.ends)
        return int(a - b > REPEATS * abs(a))

    @property
    def chord(self) -> float:
        """What the limit is above."""
        return chord(self.t, *map(self.mean, self.ends))

    def exchange(self, value: float, budget: Budget) -> Exchange:
        """Return what moves some layers of the better end to t, and says how far above the chord that is."""
        from lmccheck.evaluate.layerwise import Exchange

        evaluator, again = self.between.evaluator, self.between.reestimates
        height = self.chord

        def measure(weights: Mapping[str, Tensor], label: str) -> float:
            budget.spend()
            return self.mean(evaluator.measure(weights, reestimate=again, label=label).losses) - height

        base = self.between.second if self.base else self.between.first
        found = Exchange(base, self.between.weights(self.t), evaluator.network.module, measure, again)
        found.knows(value, moved=True)
        if self.known is not None:
            found.knows(self.known[self.base] - height, moved=False)
        return found


def explained(found: Finding, at: AtWorst, explain: bool | None, profile: str) -> tuple[Finding, list[str]]:
    """Return a finding with what carries it, where that is to be told, and what is to be said beside its value.

    Of a failure it is always told what each layer costs that alone is moved; ``explain`` says whether more is.
    """
    from lmccheck.diagnose.explanation import Case, Lost, explanation
    from lmccheck.evaluate.layerwise import layer_costs

    failing, on = found.judged != "pass", wanted(explain, profile, found.judged)
    if not failing and not on:
        return found, []
    network, base = at.between.evaluator.network, at.names[at.base]
    budget = budget_of(found.evaluations, on, explain)
    exchange, said = at.exchange(found.value, budget), []
    suspected: dict[str, float] = {}
    if failing:
        costs = layer_costs(exchange)
        found = replace(found, facts={**found.facts, "layers": {"from": base, "costs": costs}})
        said = carried_by(costs, base, found.unit)
        suspected = {layer: costs[part] for part, layers in exchange.parts.items() for layer in layers}
    if on:
        budget.spend()
        losses = at.between.measure(at.t).losses
        a, b = at.ends
        worse = {name: losses - end for name, end in zip(at.names, at.ends, strict=True)}
        case = Case(exchange, base, found.bound if failing else None, groups_of(network), suspected, budget)
        lost = Lost(network.data, losses - (a + at.t * (b - a)), worse, at.which)
        found = replace(found, explanation=explanation(case, lost))
        if not failing:
            found = replace(found, notes=[*found.notes, *told(found.explanation)])
    return replace(found, evaluations=found.evaluations + budget.used), said


def groups_of(network: Network) -> Sequence[UnitGroup]:
    """Return the network's unit groups; none where nothing is known of its units."""
    try:
        return network.spec.groups
    except LmcError:
        return ()


def told(found: Mapping[str, Any] | None) -> list[str]:
    """Return what was found, in three lines at most: the layers that are enough, the units, the samples."""
    return [] if found is None else [line for line in (_layers(found), _groups(found), _samples(found)) if line]


def told_beside(found: Mapping[str, Any]) -> list[str]:
    """Return it without the units, beside a line that says what goes with layers."""
    return [line for line in (_layers(found), _samples(found)) if line]


def _layers(found: Mapping[str, Any]) -> str:
    """Say which layers alone break the limit.

    >>> _layers({"from": "a", "layers": 12, "breaking_layers": ["fc2", "fc5"], "minimal_layers": ["fc2", "fc5"]})
    'enough to fail: fc2, fc5 alone, the other 10 layers as in a; without either of them the limit holds'
    >>> _layers({"from": "a", "layers": 1, "breaking_layers": ["fc2"], "minimal_layers": ["fc2"]})
    'enough to fail: fc2, the only layer that differs'
    """
    few, total, end = found["breaking_layers"], found["layers"], found["from"]
    if not few:
        return ""
    if total == 1:
        return f"enough to fail: {few[0]}, the only layer that differs"
    if not found["minimal_layers"]:
        if len(few) == total:
            return f"enough to fail: not known, fewer than all {total} layers perhaps; {MORE}"
        return f"enough to fail: {len(few)} of {total} layers, perhaps fewer: {some(few)}; {MORE}"
    if len(few) == total:
        return f"enough to fail: only all {total} layers together; with any one as in {end} the limit holds"
    others = "the other layer" if total - len(few) == 1 else f"the other {total - len(few)} layers"
    without = {1: "", 2: "; without either of them the limit holds"}
    return f"enough to fail: {some(few)} alone, {others} as in {end}" + without.get(
        len(few), f"; without any one of these {len(few)} the limit holds"
    )


def _groups(found: Mapping[str, Any]) -> str:
    """Say what goes when units are put back.

    >>> group = {"name": "fc1", "kind": "units", "share": 0.8, "alone": 0.1}
    >>> _groups({"from": "a", "groups": [group, {**group, "name": "fc2", "share": 0.5}], "groups_of": 3})
    'put back: with the units of fc1 as in a 80 % of it goes, of fc2 50 % (2 of 3 groups measured)'
    """
    groups = [group for group in found["groups"] if group["share"] >= LITTLE][:MOST_NAMES]
    if not groups or (found["groups_of"] == 1 and groups[0]["kind"] == "layer"):
        return ""
    units = groups[0]["kind"] == "units"
    (name, first), *others = [(group["name"], _share(group["share"])) for group in groups]
    what, of, parts = ("the units of ", "of ", "groups") if units else ("", "", "layers")
    measured, total = len(found["groups"]), found["groups_of"]
    rest = f" ({measured} of {total} {parts} measured)" if measured < total else ""
    named = "".join(f", {of}{other} {share}" for other, share in others)
    return f"put back: with {what}{name} as in {found['from']} {first} of it goes{named}{rest}"


def _share(share: float) -> str:
    """Return a share in words; what takes away more than all, down below the chord, takes away all.

    >>> _share(0.8), _share(3.86)
    ('80 %', '100 %')
    """
    return f"{100 * min(share, 1.0):.0f} %"


def _samples(found: Mapping[str, Any]) -> str:
    """Say which samples carry half of what is lost, and which parent is hurt more.

    >>> samples = {"half": 3, "of": 40, "classes": {"7": 2, "1": 1}}
    >>> _samples({"samples": samples, "parent": "b"})
    'samples: 3 of 40 carry half of it (class 7: 2, class 1: 1); most is lost where b answers best'
    >>> _samples({"samples": {"half": 1, "of": 9, "classes": {}, "places": ["math.jsonl:3"]}, "parent": None})
    'samples: 1 of 9 carries half of it (most math.jsonl:3)'
    """
    samples, parent = found["samples"], found["parent"]
    if not samples["half"]:
        return ""
    classes = [f"class {name}: {count}" for name, count in samples["classes"].items()]
    classes += [f"most {place}" for place in samples.get("places", ())[:1]]
    named = ", ".join(classes[:MOST_NAMES]) + (", …" if len(classes) > MOST_NAMES else "")
    carry = "carries" if samples["half"] == 1 else "carry"
    text = f"samples: {samples['half']} of {samples['of']} {carry} half of it" + (f" ({named})" if named else "")
    return text if parent is None else f"{text}; most is lost where {parent} answers best"
